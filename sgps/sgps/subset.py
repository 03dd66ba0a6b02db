"""Which small parts of the generator a round of kind `episodes` may train, and how their change enters a release.

A name is that of a tensor in generator.safetensors; the change is added to it. Two maps into the features, 1,280 x 32 numbers, are
too large to be trained under privacy: `<map>.core` [16, 32] stands for them, with M <- M + R D^T core, D the first 16 public
coordinates [16, f] and R their radius. A core is a change, so it starts at zero in every round. What is not listed here is not
trained: the base network and the coordinates least of all, because rows live in their space (design D13).

NumPy only: the coordinator checks, adds and writes without torch.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from sgps.errors import InputError
from sgps.files import read_limited
from sgps.memory import Coordinates
from sgps.release import FILE_LIMIT, GENERATOR, Release

Array = NDArray[Any]
PREFIX, CORE = "generator.", ".core"
COORDINATES = 16  # of a core: the fewer numbers, the more of them is left under noise
PARTS: dict[str, tuple[str, ...]] = {
    "token": ("image_kind", "shots", "memory.weight"),
    "text": ("text_kind", "text_up.core"),
    "head": ("gate.weight", "gate.bias", "token_down.weight", "token_down.bias", "token_up.core"),
    "body": ("norm.weight", "norm.bias", "core.weight", "core.bias", "chan.weight", "chan.bias", "tap.bias"),
}
"""Names without `generator.`, by the learned part that they belong to; a token serves all parts and is none of its own."""
_ENCODER = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")  # of each layer of the set encoder; token parts
_LEARNED = ("body", "head", "text")


def allowed(release: Release) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that may be trained, parts that ship at zero included. Empty for a release without a generator."""
    stored = release.tensors(GENERATOR, PREFIX)
    width = min(COORDINATES, len(release.memory().coordinates.directions))
    out: dict[str, tuple[int, ...]] = {}
    for name in _names(release.manifest.architecture.depth):
        whole = stored.get(_tensor(name))
        if whole is not None:
            out[PREFIX + name] = (width, whole.shape[1]) if name.endswith(CORE) else whole.shape
    return out


def start(release: Release, names: Iterable[str]) -> dict[str, NDArray[np.float32]]:
    """What a round of these names starts from, float32. Raises InputError for a name that is not allowed."""
    shapes, stored = allowed(release), release.tensors(GENERATOR)
    out: dict[str, NDArray[np.float32]] = {}
    for name in names:
        if name not in shapes:
            raise InputError(
                "may not be trained", where=name, do=f"use names of {', '.join(sorted(shapes)) or 'no part'}"
            )
        core = name.endswith(CORE)
        out[name] = np.zeros(shapes[name], np.float32) if core else stored[name].astype(np.float32)
    return out


def learned(release: Release, names: Iterable[str]) -> tuple[str, ...]:
    """The learned parts that are on while these names are trained, and in the release after: those of the release and of the names.

    A part that is switched on at zero changes no number of a classifier. Raises InputError when the names are tokens' alone and no
    part reads a token: their gradient would be zero.
    """
    given = {n.removeprefix(PREFIX) for n in names}
    on = set(release.manifest.architecture.learned) | {p for p in _LEARNED if given & set(PARTS[p])}
    tokens = given & {"text_kind", *PARTS["token"], *_encoder(release.manifest.architecture.depth)}
    if tokens and not on & {"head", "body"}:
        raise InputError(
            "no learned part reads a token", where=", ".join(sorted(tokens)), do="train a name of the head too"
        )
    return tuple(p for p in _LEARNED if p in on)


def apply(tensors: Mapping[str, Array], change: Mapping[str, Array], coordinates: Coordinates) -> dict[str, Array]:
    """All tensors of generator.safetensors after a change. What does not change stays as it is, bit for bit; what does is float32,
    so that small changes of many rounds add up.

    change: name -> difference, of the shapes of `allowed`. Raises ValueError for an unknown name, another shape or numbers that are
    not finite.
    """
    out = dict(tensors)
    names = {n for part in PARTS.values() for n in part}
    for name, difference in change.items():
        short, target = name.removeprefix(PREFIX), PREFIX + _tensor(name.removeprefix(PREFIX))
        layered = short.startswith("encoder.") and short.endswith(_ENCODER)
        if not name.startswith(PREFIX) or not (short in names or layered) or target not in out:
            raise ValueError(f"{name} is no part that may be trained")
        whole = out[target]
        k = min(COORDINATES, len(coordinates.directions))
        if difference.shape != ((k, whole.shape[1]) if short.endswith(CORE) else whole.shape):
            raise ValueError(f"the change of {name} has another shape than it")
        if not np.isfinite(difference).all():
            raise ValueError(f"the change of {name} holds numbers that are not finite")
        if difference.any():
            moved = lifted(difference, coordinates) if short.endswith(CORE) else difference
            out[target] = (whole.astype(np.float64) + moved).astype(np.float32)
    return out


def lifted(core: Array, coordinates: Coordinates) -> Array:
    """A core [k, m] as the change R D^T core [f, m] of the map that it stands for."""
    basis: Array = coordinates.radius * coordinates.directions[: len(core)].T.astype(np.float64)
    return np.asarray(basis @ core)


def generator_bytes(release: Release, change: Mapping[str, Array]) -> bytes:
    """generator.safetensors of the next release. A change of zero gives the bytes that are there. Errors are those of `apply`."""
    before = release.tensors(GENERATOR)
    after = apply(before, change, release.memory().coordinates)
    if all(after[n] is before[n] for n in before):
        return read_limited(release.folder / GENERATOR, FILE_LIMIT)
    return bytes(save({n: np.asarray(a, order="C") for n, a in sorted(after.items())}))


def _tensor(name: str) -> str:
    return name.removesuffix(CORE) + ".weight" if name.endswith(CORE) else name


def _encoder(depth: int) -> tuple[str, ...]:
    return tuple(f"encoder.{layer}.{end}" for layer in range(depth) for end in _ENCODER)


def _names(depth: int) -> tuple[str, ...]:
    return (*(n for part in PARTS.values() for n in part), *_encoder(depth))
