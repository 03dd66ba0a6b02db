"""Public statistics of a base network: the coordinates of the class memory, and samples for the reference bank.

All from public images, so that a release may carry them. Source of the coordinates: plain centred principal directions,
without whitening; one space for exemplars, rows and head.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.memory import Coordinates
from sgps.pretrain.features import Features

Array = npt.NDArray[Any]

COORDINATES = 64
BANK_SKIN, BANK_OTHER = 60, 8  # lesions or images of a class
BANK_DRAWN_FIRST, BANK_DRAWN_PROFILES, BANK_DRAWN_PATIENTS = 1000, 20, 10


@dataclass(frozen=True)
class Space:
    """coordinates: of the class memory. plain_mean (1280,): their mean for single views. means (classes, 1280): of the atlas."""

    coordinates: Coordinates
    plain_mean: Array
    means: Array


def _scatter(x: Array) -> Array:
    out: Array = x.T @ x / len(x)
    return out


def _median_over_classes(groups: Sequence[Array]) -> float:
    """Median of values of which every group counts the same, however many it has."""
    values = np.concatenate(groups)
    weight = np.concatenate([np.full(len(g), 1 / len(g)) for g in groups])
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weight[order]), len(groups) / 2)])


def public_space(
    atlas: Features, others: Sequence[Features], base_classes: Sequence[str], count: int = COORDINATES
) -> Space:
    """Coordinates of the class memory from the atlas (training lesions of the base classes) and other public sets.

    Mean: of the base classes' means over lesions. Directions: the first `count` principal directions of the atlas scatter
    about the mean (within and between, classes weighing the same) plus the within-class scatter of the other sets, each set
    and the two parts scaled to trace 1. Radius: median norm of atlas lesions, classes weighing the same; within: mean over base
    classes of the trace of their covariance; both in the coordinates. Raises InputError when a class is missing or has a
    single lesion.
    """
    lesions = [atlas.by_lesion(c).astype(np.float64) for c in base_classes]
    if any(len(x) < 2 for x in lesions):
        raise InputError("every base class needs at least two lesions", where=atlas.set)
    means = np.stack([x.mean(0) for x in lesions])
    mean = means.mean(0)
    plain = np.mean([atlas.one[atlas.label == c].mean(0, dtype=np.float64) for c in base_classes], 0)
    total = np.mean([_scatter(x - mean) for x in lesions], 0)
    total /= np.trace(total)
    for part in others:
        classes = [part.eight[part.label == c].astype(np.float64) for c in np.unique(part.label)]
        within = np.mean([_scatter(x - x.mean(0)) for x in classes], 0)
        total += within / np.trace(within) / len(others)
    vectors = np.linalg.eigh(total)[1][:, ::-1][:, :count].T
    signs = np.sign(
        vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)]
    )  # an eigenvector has no sign of its own
    directions = vectors * signs[:, None]
    places = [(x - mean) @ directions.T for x in lesions]
    radius = _median_over_classes([np.linalg.norm(z, axis=1) for z in places])
    within_trace = float(np.mean([z.var(0, ddof=1).sum() for z in places]))
    stored = Coordinates(mean.astype(np.float32), directions.astype(np.float32), radius, within_trace)
    return Space(stored, plain.astype(np.float32), means.astype(np.float32))


@dataclass(frozen=True)
class Bank:
    """Samples of the reference bank: features float32 (n, 1280), and of each row its set, class and lesion."""

    features: npt.NDArray[np.float32]
    rows: list[dict[str, str]]


def bank(
    atlas: Features, others: Sequence[Features], drawn: Features, base_classes: Sequence[str], seed: int = 0
) -> Bank:
    """60 atlas lesions of each base class, 8 images of each class of the other sets, every drawn patient; or all there are."""
    random = np.random.default_rng(seed)
    features, rows = [], []
    for name in base_classes:
        found, ids = atlas.by_lesion(name), np.unique(atlas.lesion[atlas.label == name])
        chosen = np.sort(random.permutation(len(ids))[:BANK_SKIN])
        features.append(found[chosen])
        rows += [{"set": atlas.set, "class": name, "lesion": str(one)} for one in ids[chosen]]
    for part, limit in [*((p, BANK_OTHER) for p in others), (drawn, len(drawn))]:
        for name in np.unique(part.label).tolist():
            images = np.flatnonzero(part.label == name)
            chosen = np.sort(random.permutation(images)[:limit])
            features.append(part.eight[chosen])
            rows += [{"set": part.set, "class": name, "lesion": str(one)} for one in part.lesion[chosen]]
    return Bank(np.concatenate(features), rows)


def write_statistics(out: Path, space: Space, samples: Bank, base_classes: Sequence[str], base_sha256: str) -> None:
    """`statistics.safetensors` and its names, `statistics.json`, in `out`.

    Tensors, float32: mean and plain_mean (1280,), directions (64, 1280), means (classes, 1280), bank (n, 1280).
    """
    arrays = {
        "mean": space.coordinates.mean,
        "plain_mean": space.plain_mean,
        "directions": space.coordinates.directions,
        "means": space.means,
        "bank": samples.features,
    }
    tensors = {k: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for k, v in arrays.items()}
    names = {
        "base_sha256": base_sha256,
        "radius": space.coordinates.radius,
        "within": space.coordinates.within,
        "means": list(base_classes),
        "bank": samples.rows,
    }
    write_atomic(out / "statistics.safetensors", safetensors.torch.save(tensors, {"base_sha256": base_sha256}))
    write_atomic(out / "statistics.json", json.dumps(names, indent=1).encode())
