"""The generator's class memory: what other hospitals know of a disease, as one row per catalogue id.

A patient's mean feature is written in the leading public coordinates, brought to the public radius R and divided by it, and stands in
the row of its class beside its count: `[sqrt(.8) x / |x|, sqrt(.2)]`, divided by the root of the number of the patient's classes, so
that a record's norm is 1 (design D13). Scores are cosines: a patient's direction is all that a row needs, and a longer vector has
less noise. Sites send noised sums of such records; `pool` weighs them by their noised counts
and keeps sufficient statistics, so that a site can take its own noised part out again. All of it is post-processing.

NumPy only: the coordinator pools without torch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# Chosen on lesions of the common classes that the base never saw (docs/results/federated.md): shares of a record's squared norm, leading
# coordinates that a record fills, and how often a row of noise alone stays below the threshold.
SHARE_ROW, SHARE_COUNT = 0.8, 0.2
USED = 32
_NOISE_QUANTILE = 0.99
ROWS, COUNTS = "memory.rows", "memory.counts"  # names of the arrays in a `rows` round
LEAST = 2.0  # a noised count below two patients is taken as two (dp-utility note, section 5)
_NOISE_DRAWS = 20_000
_ROUNDING = 1e-6  # of a row's doubt: arrays travel in float32
_TINY = 1e-9  # a patient at the centre itself has no direction


@dataclass(frozen=True)
class Coordinates:
    """Public coordinates of the base network's features: centred principal directions.

    mean: [f] float32, subtracted from features. directions: [k, f] float32, orthonormal rows. radius: R, length to which a
    patient is brought, in feature units. within: public within-class variance, summed over the k coordinates.
    """

    mean: Array
    directions: Array
    radius: float
    within: float

    @property
    def used(self) -> int:
        """Leading coordinates that records fill and synthesis reads; the others are zero before noise."""
        return min(USED, len(self.directions))

    def place(self, features: Array) -> Array:
        """features [..., f] -> coordinates [..., k]."""
        return np.asarray((features - self.mean) @ self.directions.T)

    def lift(self, places: Array) -> Array:
        """coordinates [..., k] -> features [..., f]."""
        return np.asarray(self.mean + places @ self.directions)

    def inside(self, features: Array, label: Array) -> Array:
        """Within-class variance of each coordinate [k], from public samples: features [n, f], label [n]; classes by their degrees of
        freedom. The flat `within` / k where no class has two samples."""
        places, total, freedom = self.place(np.asarray(features, np.float64)), np.zeros(len(self.directions)), 0
        for one in np.unique(label):
            mine = places[label == one]
            total += len(mine) * mine.var(0)
            freedom += len(mine) - 1
        return total / freedom if freedom > 0 else np.full(len(total), self.within / len(total))

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for part in (self.mean, self.directions, np.array([self.radius, self.within])):
            digest.update(np.ascontiguousarray(part, dtype="<f4").tobytes())
        return digest.hexdigest()


def record(
    coordinates: Coordinates, features: Mapping[int, Array], classes: int, offset: Array | None = None
) -> tuple[Array, Array]:
    """One patient: class index -> mean feature [f] of the patient's images of that class. offset: [k], a released number that
    centres the site (`sgps.site_mean`); it is taken off before the record gets its length, so that the norm stays bounded.

    Returns rows [classes, k] and counts [classes], float64, together of norm 1 (less for a patient at the centre itself).
    Raises ValueError for a class index out of range or a patient without a class.
    """
    if not features or not all(0 <= c < classes for c in features):
        raise ValueError("a patient needs at least one class of the catalogue")
    rows, counts = np.zeros((classes, len(coordinates.directions))), np.zeros(classes)
    part = 1 / np.sqrt(len(features))
    for c, feature in features.items():
        x = coordinates.place(np.asarray(feature, dtype=np.float64)) - (0 if offset is None else offset)
        x[coordinates.used :] = 0
        rows[c] = part * np.sqrt(SHARE_ROW) * x / max(_TINY, float(np.linalg.norm(x)))
        counts[c] = part * np.sqrt(SHARE_COUNT)
    return rows, counts


@dataclass(frozen=True)
class Contribution:
    """One site's noised sums of one round. rows [C, k], counts [C] as sent; sigma: noise multiplier (clip 1, one step).

    noise [k]: variance of each coordinate of `rows`, in units of sigma^2; none: one in the used ones. error [k]: of a patient's row, variance
    of each coordinate that no number of patients takes away; none: zero. Both are there where rows came through a map from an older
    base network (`sgps.carry`).
    """

    rows: Array
    counts: Array
    sigma: float
    noise: Array | None = None
    error: Array | None = None

    def natural(self, radius: float) -> tuple[Array, Array]:
        """Sums of coordinates [C, k] in feature units and numbers of patients [C], both noised."""
        rows, counts = np.asarray(self.rows, dtype=np.float64), np.asarray(self.counts, dtype=np.float64)
        return rows * radius / np.sqrt(SHARE_ROW), counts / np.sqrt(SHARE_COUNT)

    def variance(self, coordinates: Coordinates) -> Array:
        """Noise variance of a row in each coordinate [k], feature units squared."""
        noise = flat(len(coordinates.directions)) if self.noise is None else np.asarray(self.noise, np.float64)
        return noise * (self.sigma * coordinates.radius) ** 2 / SHARE_ROW

    def drift(self, coordinates: Coordinates) -> Array:
        """Standard error of a patient's mean in each coordinate [k], feature units."""
        error = np.zeros(len(coordinates.directions)) if self.error is None else np.asarray(self.error, np.float64)
        return np.sqrt(error / SHARE_ROW) * coordinates.radius


def flat(k: int) -> Array:
    """Variance of the coordinates of a noised record's row [k], in units of sigma^2: one in the used ones."""
    return np.where(np.arange(k) < USED, 1.0, 0.0)


@dataclass(frozen=True)
class Carried:
    """Doubt of rows that came through a map from an older base network, by coordinate. noise [C, k]: its parts of `Memory.noise`. drift
    [C, k]: sum of w n times the map's standard error, one and the same error for all patients of a row."""

    noise: Array
    drift: Array

    def without(
        self, weight: Array, counts: Array, own: Contribution, coordinates: Coordinates, kept: Array
    ) -> "Carried":
        """weight, counts [C]: of the part that goes; kept [C]: rows that hold anything else."""
        noise = self.noise - weight[:, None] ** 2 * own.variance(coordinates)
        drift = self.drift - (weight * counts)[:, None] * own.drift(coordinates)
        return Carried(*(np.where(kept[:, None], np.maximum(part, 0), 0) for part in (noise, drift)))


@dataclass(frozen=True)
class Memory:
    """Rows of all catalogue classes, as sufficient statistics of the pooled contributions.

    ids: C catalogue ids. total: [C, k] weighted sums of coordinates. count: [C] weighted noised counts. spread: [C] sum of
    w^2 max(n, 0). noise: [C] sum of w^2 times the noise variance of a row, over its used coordinates. scale: [C] the largest noised
    count, which divides a count into a weight. threshold: worth below which a row is indistinguishable from noise alone. carried: where
    rows came through a map; without it noise is the same in every used coordinate.
    """

    coordinates: Coordinates
    ids: tuple[str, ...]
    total: Array
    count: Array
    spread: Array
    noise: Array
    scale: Array
    threshold: float
    carried: Carried | None = None

    @classmethod
    def empty(cls, coordinates: Coordinates, ids: Sequence[str]) -> "Memory":
        c, zero = len(ids), np.zeros(len(ids))
        return cls(coordinates, tuple(ids), np.zeros((c, len(coordinates.directions))), zero, zero, zero, zero, 0.0)

    def row(self, c: int) -> Array:
        """Coordinates [k] of class c's mean, zero beyond the used ones."""
        row = np.asarray(self.total[c] / max(float(self.count[c]), LEAST))
        row[self.coordinates.used :] = 0
        return row

    def worth(self, c: int) -> float:
        """As how many ordinary patients row c counts beside exemplars; 0 where it may be noise alone.

        1/worth = spread/n^2 + noise/(n^2 within), n the noised count, at least 2 (dp-utility note, section 5). What a map may have
        moved a row by counts like noise.
        """
        noise = self.noise[c] if self.carried is None else self._doubt(c).sum()
        worth = _worth(self.count[c], self.spread[c], noise, self.coordinates.within)
        return float(worth) if worth > self.threshold else 0.0

    def _doubt(self, c: int) -> Array:
        """Variance of row c's sum by known noise, and by the map that it came through, in each used coordinate."""
        used = self.coordinates.used
        if self.carried is None:
            return np.full(used, self.noise[c] / used)
        return np.asarray(self.carried.noise[c, :used] + self.carried.drift[c, :used] ** 2)

    def blend(self, seen: Array, shots: int, c: int, inside: Array) -> Array:
        """Mean feature [..., f] of `shots` exemplars and row c, each coordinate weighted by what both know of it.

        A row has the same noise in every coordinate (but for one that came through a map), an exemplar the spread of its class, `inside`
        [k] (`Coordinates.inside`): so in coordinate j the row counts as 1 / (spread/n^2 + noise_j/(n^2 inside_j)) exemplars, with
        noise_j the coordinate's part of the row's noise. Inverse-variance weights of two measurements of one mean. A row that may be noise alone changes nothing, nor does any
        row what lies outside the used coordinates.
        """
        if not self.worth(c):
            return np.asarray(seen)
        used, n = self.coordinates.used, max(float(self.count[c]), LEAST)
        worth = 1 / np.maximum((self.spread[c] + self._doubt(c) / np.maximum(inside[:used], 1e-12)) / n**2, 1e-12)
        place = self.coordinates.place(seen)[..., :used]
        moved = worth * (self.row(c)[:used] - place) / (shots + worth)
        return np.asarray(seen + moved @ self.coordinates.directions[:used])

    def without(self, own: Contribution) -> "Memory":
        """The memory with one site's noised part taken out: for that site, which adds its patients exactly instead.

        A row that held nothing else is empty afterwards: what rounding leaves of its doubt would make it worth any number of patients.
        """
        sums, counts = own.natural(self.coordinates.radius)
        weight = _weights(counts, self.scale)
        spread = self.spread - weight**2 * np.maximum(counts, 0)
        variance = own.variance(self.coordinates)
        noise = self.noise - weight**2 * variance.sum()
        kept = (spread > _ROUNDING * self.spread) | (noise > _ROUNDING * self.noise)
        return replace(
            self,
            total=np.where(kept[:, None], self.total - weight[:, None] * sums, 0),
            count=np.where(kept, self.count - weight * counts, 0),
            spread=np.where(kept, np.maximum(spread, 0), 0),
            noise=np.where(kept, np.maximum(noise, 0), 0),
            carried=None if self.carried is None else self.carried.without(weight, counts, own, self.coordinates, kept),
        )

    def arrays(self) -> dict[str, Array]:
        """Everything but the ids, for one safetensors file."""
        c = self.coordinates
        return {
            "coordinates.mean": np.asarray(c.mean, dtype=np.float32),
            "coordinates.directions": np.asarray(c.directions, dtype=np.float32),
            "coordinates.radius": np.array([c.radius]),
            "coordinates.within": np.array([c.within]),
            **{f"memory.{n}": np.asarray(getattr(self, n), dtype=np.float64) for n in _STATISTICS},
            "memory.threshold": np.array([self.threshold]),
            **({} if self.carried is None else {n: getattr(self.carried, a) for n, a in _CARRIED.items()}),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], ids: Sequence[str]) -> "Memory":
        """The inverse of `arrays`. Raises ValueError when a name is missing or a shape does not fit the ids."""
        try:
            place = Coordinates(
                arrays["coordinates.mean"],
                arrays["coordinates.directions"],
                float(arrays["coordinates.radius"][0]),
                float(arrays["coordinates.within"][0]),
            )
            parts = {n: arrays[f"memory.{n}"] for n in _STATISTICS}
            threshold = float(arrays["memory.threshold"][0])
            by = {a: arrays[n] for n, a in _CARRIED.items()} if _CARRIED.keys() & arrays.keys() else {}
        except (KeyError, IndexError) as error:
            raise ValueError(f"class memory lacks {error}") from error
        k = len(place.directions)
        wide = [parts["total"], *by.values()]
        if any(p.shape != (len(ids), k) for p in wide) or any(parts[n].shape != (len(ids),) for n in _STATISTICS[1:]):
            raise ValueError("class memory does not fit the catalogue")
        if not all(np.isfinite(p).all() for p in (*parts.values(), *by.values(), place.mean, place.directions)):
            raise ValueError("class memory holds numbers that are not finite")
        return cls(place, tuple(ids), threshold=threshold, carried=Carried(**by) if by else None, **parts)


_STATISTICS = ("total", "count", "spread", "noise", "scale")
_CARRIED = {"memory.carried_noise": "noise", "memory.carried_drift": "drift"}


def _weights(counts: Array, scale: Array) -> Array:
    return np.asarray(np.maximum(counts, 0) / np.maximum(scale, 1e-9))


def _worth(count: Array, spread: Array, noise: Array, within: float) -> Array:
    """A row that no site gave a weight (every noised count below zero) is worth nothing."""
    n = np.maximum(count, LEAST)
    doubt = np.asarray(spread / n**2 + noise / (n**2 * within))
    return np.asarray(np.divide(1.0, doubt, out=np.zeros_like(doubt), where=doubt > 0))


def pool(coordinates: Coordinates, ids: Sequence[str], contributions: Sequence[Contribution]) -> Memory:
    """Noised sums of all sites and rounds -> class memory, each weighted by its own noised count.

    The weights are public numbers or noised ones (design D8). The order of contributions changes nothing but rounding.
    Raises ValueError when a contribution does not have the shape of the catalogue.
    """
    if not contributions:
        return Memory.empty(coordinates, ids)
    shape = (len(ids), len(coordinates.directions))
    if any(c.rows.shape != shape or c.counts.shape != shape[:1] for c in contributions):
        raise ValueError("a contribution does not fit the catalogue")
    natural = [c.natural(coordinates.radius) for c in contributions]
    sums, counts = np.stack([s for s, _ in natural]), np.stack([n for _, n in natural])
    scale = np.maximum(counts, 0).max(0)
    weight = _weights(counts, scale)
    variance = np.stack([c.variance(coordinates) for c in contributions])
    carried = None
    if any(c.noise is not None or c.error is not None for c in contributions):
        drift = np.stack([c.drift(coordinates) for c in contributions])
        carried = Carried(
            noise=np.einsum("sc,sk->ck", weight**2, variance), drift=np.einsum("sc,sk->ck", weight * counts, drift)
        )
    return Memory(
        coordinates,
        tuple(ids),
        total=np.einsum("sc,sck->ck", weight, sums),
        count=(weight * counts).sum(0),
        spread=(weight**2 * np.maximum(counts, 0)).sum(0),
        noise=(weight**2 * variance.sum(1)[:, None]).sum(0),
        scale=scale,
        threshold=noise_threshold([c.sigma for c in contributions], coordinates, variance.sum(1)),
        carried=carried,
    )


def noise_threshold(sigmas: Sequence[float], coordinates: Coordinates, variance: Array | None = None) -> float:
    """The worth that a row of noise alone passes once in a hundred times, by simulation with a fixed seed. 0 without noise.

    variance: of each contribution's row, summed over coordinates, feature units squared; none: as it was noised.
    """
    deviation = np.array(sigmas) / np.sqrt(SHARE_COUNT)
    if not deviation.any():
        return 0.0
    counts = np.random.default_rng(0).normal(size=(_NOISE_DRAWS, len(deviation))) * deviation
    weight = _weights(counts, np.maximum(counts, 0).max(1, keepdims=True))
    if variance is None:
        variance = coordinates.used * (np.array(sigmas) * coordinates.radius) ** 2 / SHARE_ROW
    worth = _worth(
        (weight * counts).sum(1),
        (weight**2 * np.maximum(counts, 0)).sum(1),
        (weight**2 * variance).sum(1),
        coordinates.within,
    )
    return float(np.quantile(worth, _NOISE_QUANTILE))


def blend(exemplars: Array, row: Array, worth: float, shots: int) -> Array:
    """Mean feature [f] of `shots` exemplars and a lifted row [f], weighted by what each is worth (design D13)."""
    return np.asarray((shots * exemplars + worth * row) / (shots + worth))
