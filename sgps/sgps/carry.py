"""Rows carried to a new base network: one linear map between the directions that records have in two spaces.

Fitted on public images alone, which both bases read; whatever is computed from noised sums with it is post-processing. A map takes a
record's row (of norm sqrt(.8), `sgps.memory.record`) of the old base to that of the new one, so it takes sums of records to sums, row by
row, and leaves counts as they are. Noise that was the same in every coordinate is correlated afterwards; of its covariance the diagonal
is kept, which is what a blend by coordinate asks for. What the map cannot know of a class that it never saw is its *error*: measured with
each public class left out in turn, and added to the doubt of every row that came through it, whatever its number of patients. Of kinds of pictures that it never saw a map knows
nothing (docs/results/carry.md): rows of such classes stay behind.

    matrix  [k', k]  old row -> new row; unused coordinates are zero
    error   [k']     mean squared distance, by coordinate, between the carried and the own mean record of a class left out

NumPy only: the coordinator carries without torch.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from sgps.catalogue import Catalogue
from sgps.errors import InputError, SignatureError
from sgps.files import read_limited, write_atomic
from sgps.memory import SHARE_ROW, Array, Contribution, Coordinates, flat
from sgps.plan import Hex
from sgps.release import MEMORY, Carry, Release
from sgps.settings import Settings, problems

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, in mean eigenvalues; leave-class-out picks
FEWEST_CLASSES, FEWEST_PATIENTS = 3, 10
_LIMIT = 16 << 20  # bytes of a map
_KEY = "map"  # of the metadata
_TINY = 1e-9


class About(Settings):
    """What a map says of itself. before, after: hashes of base network and coordinates. domains: kinds of pictures that it has seen, as the
    catalogue names them; of others it knows nothing. figures: how much it loses."""

    before: Hex
    after: Hex
    domains: tuple[str, ...] = ()
    figures: dict[str, Any]


@dataclass(frozen=True)
class Map:
    """matrix, error: as in the module's text, float64."""

    matrix: Array
    error: Array
    about: About

    def carry(self, part: Contribution) -> Contribution:
        """A site's noised sums, or those of an earlier map, in the new space. Raises ValueError when the shapes do not fit."""
        k = self.matrix.shape[1]
        if part.rows.shape[1:] != (k,):
            raise ValueError(f"the map is for rows of {k} numbers, these have {part.rows.shape[-1]}")
        noise, error = flat(k) if part.noise is None else part.noise, np.zeros(k) if part.error is None else part.error
        square = self.matrix**2
        return Contribution(
            np.asarray(part.rows, np.float64) @ self.matrix.T,
            part.counts,
            part.sigma,
            noise=square @ noise,
            error=square @ error + self.error,
        )

    def to_bytes(self) -> bytes:
        """The same map gives the same bytes."""
        text = json.dumps(self.about.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return bytes(save({"matrix": self.matrix, "error": self.error}, {_KEY: text}))

    def write(self, path: Path) -> str:
        """SHA-256 of the file. Raises InputError when it exists."""
        if path.exists():
            raise InputError("exists already", where=path, do="choose another --out")
        data = self.to_bytes()
        write_atomic(path, data)
        return hashlib.sha256(data).hexdigest()


def read_map(path: Path) -> tuple[Map, str]:
    """A map file and its SHA-256. Raises InputError when it is none."""
    data = read_limited(path, _LIMIT)
    try:
        arrays = load(data)
        with safe_open(path, framework="np") as file:
            about = About.model_validate_json((file.metadata() or {})[_KEY])
        found = _checked(arrays["matrix"], arrays["error"], about)
    except ValidationError as error:
        raise InputError("; ".join(problems(error)), where=path, do="make it with `sgps memory map`") from error
    except KeyError as error:
        raise InputError(
            f"is no map: {error} is missing in it", where=path, do="make it with `sgps memory map`"
        ) from error
    except (SafetensorError, ValueError) as error:
        raise InputError(f"is no map: {error}", where=path, do="make it with `sgps memory map`") from error
    return found, hashlib.sha256(data).hexdigest()


def _checked(matrix: Array, error: Array, about: About) -> Map:
    """Raises ValueError."""
    fits = (
        matrix.ndim == 2 and error.shape == matrix.shape[:1] and np.isfinite(matrix).all() and np.isfinite(error).all()
    )
    if not fits or (error < 0).any():
        raise ValueError("matrix and error do not fit each other")
    return Map(np.asarray(matrix, np.float64), np.asarray(error, np.float64), about)


# --- in a release ----------------------------------------------------------------------------------------------------
def arrays(maps: Sequence[Map]) -> dict[str, Array]:
    """Beside the class memory, so that a site can take out what it sent before."""
    return {f"carry.{i}.{n}": getattr(m, n) for i, m in enumerate(maps) for n in ("matrix", "error")}


def maps(release: Release) -> tuple[Map, ...]:
    """The maps that rows of a release came through, oldest first. Raises SignatureError when they do not lead to its base."""
    carried, found = release.manifest.carried or (), release.tensors(MEMORY, "carry.")
    where, again = release.folder / MEMORY, "get the release again"
    if not carried:
        return ()
    try:
        known = tuple(
            _checked(
                found[f"{i}.matrix"], found[f"{i}.error"], About(before=c.before, after=c.after, figures=c.figures)
            )
            for i, c in enumerate(carried)
        )
    except (KeyError, ValueError) as error:
        raise SignatureError(f"holds no map {error}", where=where, do=again) from error
    k = len(release.memory().coordinates.directions)
    hashes = [*(c.before for c in carried[1:]), release.manifest.encoder_sha256]
    widths = [*(m.matrix.shape[1] for m in known[1:]), k]
    if hashes != [c.after for c in carried] or widths != [len(m.matrix) for m in known]:
        raise SignatureError(
            "rows of another base network are not used: the maps do not lead here", where=where, do=again
        )
    return known


def brought(
    steps: Sequence[Carry], known: Sequence[Map], round: int, part: Contribution, classes: Sequence[str]
) -> Contribution:
    """What a site sent in a round, in the space of the release: through every map that came after it. steps: of its manifest; known: of
    `maps`. Rows of classes that a step left behind are empty.

    Raises ValueError when the shapes do not fit.
    """
    for carried, one in zip(steps, known, strict=True):
        if round <= carried.last:
            part, stays = one.carry(part), ~np.isin(classes, carried.left)
            part = replace(part, rows=part.rows * stays[:, None], counts=part.counts * stays)
    return part


def unseen(catalogue: Catalogue, classes: Sequence[str], domains: Sequence[str]) -> tuple[str, ...]:
    """Classes of kinds of pictures that a map has not seen: their rows stay behind."""
    known = {e.id for e in catalogue.entries if e.domain in domains}
    return tuple(c for c in classes if c not in known)


# --- from public features --------------------------------------------------------------------------------------------
def directions(coordinates: Coordinates, features: Array) -> Array:
    """features [n, f] of n patients -> the directions [n, k] that their records have."""
    x = coordinates.place(np.asarray(features, np.float64))
    x[:, coordinates.used :] = 0
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _TINY))


def ridge(old: Array, new: Array, label: Array, strength: float) -> Array:
    """[k', k]: least squares from old [n, k] to new [n, k'], classes weighing the same, with a ridge of `strength` mean eigenvalues."""
    _, place, count = np.unique(label, return_inverse=True, return_counts=True)
    weighted = old / count[place][:, None]
    gram, k = weighted.T @ old, old.shape[1]
    used = max(1, int((np.abs(old).max(0) > 0).sum()))
    return np.asarray(np.linalg.solve(gram + strength * np.trace(gram) / used * np.eye(k), weighted.T @ new).T)


@dataclass(frozen=True)
class Fit:
    """matrix, error: of the map. cosine: class -> between its carried and its own mean direction, the class left out of the fit.
    without: class -> the map that never saw it."""

    matrix: Array
    error: Array
    strength: float
    cosine: Mapping[str, float]
    without: Mapping[str, Array]


def fit(old: Array, new: Array, label: Array) -> Fit:
    """old [n, k], new [n, k']: directions of the same public patients under both bases; label [n]: their classes.

    The strength of the ridge is the one with the least error on classes left out. Raises ValueError for fewer than three classes, or a class of fewer than ten patients.
    """
    classes, counts = np.unique(label, return_counts=True)
    if len(classes) < FEWEST_CLASSES or counts.min() < FEWEST_PATIENTS:
        raise ValueError(
            f"{len(classes)} classes, the smallest of {counts.min() if len(counts) else 0} patients: needs "
            f"{FEWEST_CLASSES} classes of {FEWEST_PATIENTS} patients"
        )
    before, after = (np.stack([x[label == c].mean(0) for c in classes]) for x in (old, new))
    tried = []
    for strength in STRENGTHS:
        left = {str(c): ridge(old[label != c], new[label != c], label[label != c], strength) for c in classes}
        gap = np.stack([m @ b for m, b in zip(left.values(), before, strict=True)]) - after
        tried.append((float((gap**2).sum(1).mean()), strength, left, gap))
    _, strength, left, gap = min(tried, key=lambda t: t[:2])
    cosine = {c: float(_cosine(m @ b, a)) for (c, m), b, a in zip(left.items(), before, after, strict=True)}
    return Fit(ridge(old, new, label, strength), SHARE_ROW * (gap**2).mean(0), strength, cosine, left)


def _cosine(a: Array, b: Array) -> Array:
    return np.asarray(a @ b / max(_TINY, float(np.linalg.norm(a) * np.linalg.norm(b))))
