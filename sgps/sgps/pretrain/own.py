"""Weights that a user brings: a timm checkpoint becomes the base network as it is, without any training here."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor

from sgps.errors import ConfigError, InputError
from sgps.files import read_limited
from sgps.pretrain.networks import BASE, Input, rounded
from sgps.settings import parse
from sgps.target import network

SIZES = (32, 512)  # pixels, as in a recipe
_LIMIT = 1 << 30  # bytes of a checkpoint
_EXAMPLE = "for example .485,.456,.406"
_CLASSIFIER, _COUNTER = "classifier.", "num_batches_tracked"


@dataclass(frozen=True)
class Own:
    """What a user says about a checkpoint. size, mean, std: of the images it was trained on; none is what timm says of the
    architecture. source, licence: they go into every release and classifier made from it."""

    file: Path
    source: str
    licence: str
    architecture: str = BASE
    size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


@dataclass(frozen=True)
class Weights:
    """A checked checkpoint. state: without classifier, rounded as it is stored."""

    input: Input
    source: str
    licence: str
    sha256: str  # of the user's file
    state: dict[str, Tensor] = field(repr=False)

    def record(self) -> dict[str, Any]:
        """What base.yaml says."""
        return {"source": self.source, "licence": self.licence, "sha256": self.sha256}


def read_own(own: Own) -> Weights:
    """Raises ConfigError for an unknown architecture, an impossible input or a missing source or licence; InputError when the
    file is not safetensors or does not hold this network."""
    for option, said in (("--weights-source", own.source), ("--weights-licence", own.licence)):
        if not said.strip():
            raise ConfigError("is needed with --weights", where=option, do="say it: every release will name it")
    try:
        wanted = network(own.architecture).state_dict()
    except ValueError as error:
        raise ConfigError(str(error), where="--architecture") from error
    known = timm.get_pretrained_cfg(own.architecture)
    if known is None:
        raise ConfigError("timm does not say what it takes", where="--architecture", do="use another")
    given = Input(
        own.architecture,
        known.input_size[-1] if own.size is None else own.size,
        _channels(own.mean or known.mean, "--mean"),
        _channels(own.std or known.std, "--std"),
    )
    if not SIZES[0] <= given.size <= SIZES[1]:
        raise ConfigError(f"must lie in {SIZES[0]}..{SIZES[1]} pixels", where="--size")
    if min(given.std) <= 0:
        raise ConfigError("must be positive", where="--std")
    data = read_limited(own.file, _LIMIT)
    state = _state(data, wanted, own)
    return Weights(given, own.source.strip(), own.licence.strip(), hashlib.sha256(data).hexdigest(), state)


def numbers(text: str, where: str) -> tuple[float, ...] | None:
    """`.485,.456,.406` -> numbers; nothing -> none. Raises ConfigError."""
    try:
        return tuple(float(part) for part in text.split(",")) if text.strip() else None
    except ValueError as error:
        raise ConfigError("needs three numbers, one a channel", where=where, do=_EXAMPLE) from error


def _channels(values: Sequence[float], where: str) -> tuple[float, float, float]:
    if len(values) != 3 or not all(math.isfinite(v) for v in values):
        raise ConfigError("needs three numbers, one a channel", where=where, do=_EXAMPLE)
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _state(data: bytes, wanted: dict[str, Tensor], own: Own) -> dict[str, Tensor]:
    """The tensors of the network without classifier. Step counters may be missing: nothing reads them."""
    file, other = own.file, f"name its --architecture, {own.architecture} does not fit"
    try:
        stored = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InputError(
            "is not a safetensors file", where=file, do="save the state dict with safetensors.torch.save_file"
        ) from error
    stored = {n: t for n, t in stored.items() if not n.startswith(_CLASSIFIER)}
    if missing := [n for n in wanted if n not in stored and not n.endswith(_COUNTER)]:
        raise InputError(f"lacks {missing[0]}", where=file, do=other)
    if strange := sorted(set(stored) - set(wanted)):
        raise InputError(f"holds {strange[0]}, which is not of the network", where=file, do=other)
    for name, tensor in stored.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{list(tensor.shape)} instead of {list(wanted[name].shape)}"
            raise InputError(f"{name} has the shape {shapes}", where=file, do=other)
    out = rounded({n: stored.get(n, t).to(t.dtype) for n, t in wanted.items()})
    if bad := [n for n, t in out.items() if not bool(torch.isfinite(t).all())]:
        raise InputError(f"{bad[0]} holds numbers that are not finite in float16", where=file)
    return out


def input_of(base: Path) -> Input:
    """What the base network in this folder takes. Raises InputError when `base.yaml` is missing, ConfigError when it is not one."""
    path = base / "base.yaml"
    made = parse(read_limited(path, 4 << 20).decode(), path)["network"]
    return Input(
        made["architecture"],
        int(made["size"]),
        _channels([float(x) for x in made["mean"]], "mean"),
        _channels([float(x) for x in made["std"]], "std"),
    )
