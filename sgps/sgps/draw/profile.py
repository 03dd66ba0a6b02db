"""A class of drawn lesions: how likely each attribute is, the mean of each colour, and the size."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from sgps.draw.canvas import generator
from sgps.errors import InputError
from sgps.vocabulary import ATTRIBUTES, COLOUR_MEANS, MULTIPLE

_STATED: Final = 0.5
_STATED_ABSENT: Final = 0.15
_PROFILE_STREAM: Final = 1
_TRUTH_STREAM: Final = 2

# How often a random class has a value as its leading one (groups with one value) or at all (groups with several).
_LEADING: Final[Mapping[str, tuple[float, ...]]] = MappingProxyType(
    {
        "symmetry": (0.40, 0.28, 0.32),
        "border": (0.32, 0.24, 0.20, 0.24),
        "colours": (0.50, 0.36, 0.16, 0.18, 0.18, 0.20, 0.10, 0.12, 0.10, 0.16),
        "network": (0.44, 0.17, 0.16, 0.11, 0.12),
        "globules": (0.52, 0.16, 0.18, 0.14),
        "streaks": (0.64, 0.18, 0.18),
        "structureless": (0.56, 0.10, 0.14, 0.10, 0.10),
        "vessels": (0.46, 0.10, 0.10, 0.08, 0.08, 0.09, 0.09),
        "keratin": (0.16, 0.13, 0.10, 0.12),
        "bcc signs": (0.10, 0.08, 0.07, 0.08),
        "vascular": (0.08, 0.08, 0.04),
        "centre": (0.86, 0.14),
    }
)


@dataclass(frozen=True)
class Profile:
    """A class of drawn lesions.

    ``probabilities``: group -> one probability per value of ``ATTRIBUTES[group]``; they sum to 1 in groups where exactly one
    value holds and are independent in groups of ``MULTIPLE``. ``palette``: colour name -> mean RGB in [0, 1].
    ``size``: mean radius of the lesion in picture sides; ``size_spread``: its standard deviation.
    Raises InputError when a group is missing or its probabilities do not fit.
    """

    id: str
    probabilities: Mapping[str, tuple[float, ...]]
    palette: Mapping[str, tuple[float, float, float]] = field(default_factory=lambda: COLOUR_MEANS)
    size: float = 0.30
    size_spread: float = 0.04

    def __post_init__(self) -> None:
        if set(self.probabilities) != set(ATTRIBUTES):
            odd = sorted(set(self.probabilities) ^ set(ATTRIBUTES))
            raise InputError(f"attribute groups missing or unknown: {', '.join(odd)}", where=f"profile {self.id}")
        for group, values in ATTRIBUTES.items():
            p = self.probabilities[group]
            if len(p) != len(values) or not all(0 <= v <= 1 for v in p):
                raise InputError(
                    f"must be {len(values)} probabilities in [0, 1]", where=f"profile {self.id}, group {group}"
                )
            if group not in MULTIPLE and abs(sum(p) - 1) > 1e-6:
                raise InputError(f"probabilities sum to {sum(p):.4f}, not 1", where=f"profile {self.id}, group {group}")
        if set(self.palette) != set(COLOUR_MEANS):
            raise InputError("the palette must name exactly the colours of the vocabulary", where=f"profile {self.id}")

    @property
    def key(self) -> int:
        """A number for the id, mixed into every patient's seed so that two classes never share patients."""
        return zlib.crc32(self.id.encode())


def _single(rng: np.random.Generator, leading: tuple[float, ...]) -> tuple[float, ...]:
    p = np.array(leading) / sum(leading)
    first = int(rng.choice(len(p), p=p))
    # The rest goes where values are common anyway, mostly to one of them.
    rest = rng.dirichlet(p * 2 + 0.05)
    rest[first] = 0.0
    rest = rest / rest.sum() if rest.sum() > 1e-9 else (np.arange(len(p)) != first) / (len(p) - 1)
    share = rng.uniform(0.76, 0.97)
    out = (1 - share) * rest
    out[first] = share
    return tuple(float(v) for v in out / out.sum())


def _several(rng: np.random.Generator, leading: tuple[float, ...]) -> tuple[float, ...]:
    present = rng.random(len(leading)) < np.array(leading)
    high, low = rng.uniform(0.7, 0.97, len(leading)), rng.uniform(0.0, 0.1, len(leading))
    return tuple(float(v) for v in np.where(present, high, low))


def draw_profile(seed: int) -> Profile:
    """The random class number ``seed`` (0 or more); its id is ``drawn-NNNN``. Raises InputError for a negative seed."""
    if seed < 0:
        raise InputError("must be 0 or more", where=f"profile seed {seed}")
    rng = generator(_PROFILE_STREAM, seed)
    chances: dict[str, tuple[float, ...]] = {}
    for group, leading in _LEADING.items():
        chances[group] = (_several if group in MULTIPLE else _single)(rng, leading)
    colours = list(chances["colours"])
    if max(colours) < _STATED:
        weights = np.array(_LEADING["colours"])
        colours[int(rng.choice(len(colours), p=weights / weights.sum()))] = float(rng.uniform(0.85, 0.97))
    chances["colours"] = tuple(colours)
    if chances["structureless"][1] > _STATED:
        # Homogeneous pigment is the absence of network, globules and streaks.
        for group in ("network", "globules", "streaks"):
            rest = (1 - 0.95) / (len(ATTRIBUTES[group]) - 1)
            chances[group] = (0.95,) + (rest,) * (len(ATTRIBUTES[group]) - 1)
    shift = rng.normal(0, 0.035, (len(COLOUR_MEANS), 3))
    palette = {
        name: (
            float(np.clip(mean[0] + d[0], 0, 1)),
            float(np.clip(mean[1] + d[1], 0, 1)),
            float(np.clip(mean[2] + d[2], 0, 1)),
        )
        for (name, mean), d in zip(COLOUR_MEANS.items(), shift, strict=True)
    }
    return Profile(
        f"drawn-{seed:04d}", chances, palette, float(rng.uniform(0.23, 0.33)), float(rng.uniform(0.02, 0.05))
    )


def sampled_attributes(profile: Profile, seed: int) -> dict[str, tuple[str, ...]]:
    """The attributes that patient ``seed`` of ``profile`` really has: group -> values (one, or any number in ``MULTIPLE``)."""
    rng = generator(_TRUTH_STREAM, profile.key, seed)
    truth: dict[str, tuple[str, ...]] = {}
    for group, values in ATTRIBUTES.items():
        p = np.array(profile.probabilities[group])
        if group in MULTIPLE:
            present = rng.random(len(p)) < p
            if group == "colours" and not present.any():
                present[int(p.argmax())] = True
            truth[group] = tuple(v for v, here in zip(values, present, strict=True) if here)
        else:
            truth[group] = (values[int(rng.choice(len(p), p=p / p.sum()))],)
    return truth


def attribute_vector(profile: Profile) -> npt.NDArray[np.float32]:
    """Signed attributes in the order of ``ATTRIBUTE_NAMES``: +1 where a value is typical, -1 where it hardly occurs.

    A structure that is typically absent has none of its kinds, one that is typically present is not absent.
    """
    signs: list[int] = []
    for group, values in ATTRIBUTES.items():
        own = [1 if p >= _STATED else -1 if p <= _STATED_ABSENT else 0 for p in profile.probabilities[group]]
        if values[0] == "none" and own[0] == 1:
            own[1:] = [-1] * len(own[1:])
        elif values[0] == "none" and 1 in own:
            own[0] = -1
        signs += own
    return np.array(signs, dtype=np.float32)
