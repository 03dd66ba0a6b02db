"""Where a site's camera lies: the mean of its patients' residuals from public class means, released before its `rows` (design D13).

A patient's residual is feature minus public mean of its class, in the u coordinates that records fill, averaged over its common
classes: those with a mean in the reference bank. It is shortened to the public radius R and stands beside its count, in the shares of
the class memory, `[sqrt(.8) r / R, sqrt(.2)]`, so that a record's norm is at most 1. A patient without a common class is the zero record, and so is an empty slot: of both nothing is left
after centring either. The noised sum divided by its own noised count is the site's mean; all of that is post-processing.

NumPy only: nothing here needs a network.
"""

import math
from collections.abc import Mapping

import numpy as np

from sgps.bank import Bank
from sgps.memory import LEAST, SHARE_COUNT, SHARE_ROW, Array, Coordinates
from sgps.release import Release

SUM, COUNT = "site.sum", "site.count"  # names of the arrays in a `site_mean` round
SHARE = 0.2  # of mu^2 of a mean and the rows after it, for the mean (dp-utility note, section 7)
_FIGURES = 1.1e-3  # multipliers are rounded up to 4 figures


def rows_sigma(sigma: float) -> float:
    """Noise multiplier of the `rows` round that follows a mean of this one, or up to 0.1 % more: both are rounded."""
    return sigma * math.sqrt(SHARE / (1 - SHARE)) * (1 + _FIGURES)


def common(release: Release) -> dict[int, Array]:
    """Class index -> public mean [f] of the classes that the reference bank holds. Raises SignatureError when it has no bank."""
    classes, bank = release.manifest.classes, Bank.of(release)
    return {classes.index(c.id): bank.means[i] for i, c in enumerate(bank.classes) if c.id in classes}


def residual(coordinates: Coordinates, means: Mapping[int, Array], features: Mapping[int, Array]) -> Array | None:
    """One patient's residual [u], feature units; None for a patient without a common class. features: class index -> mean feature."""
    shared = [c for c in features if c in means]
    if not shared:
        return None
    gaps = [np.asarray(features[c], np.float64) - np.asarray(means[c], np.float64) for c in shared]
    return np.asarray(np.mean(gaps, axis=0) @ coordinates.directions[: coordinates.used].T.astype(np.float64))


def record(
    coordinates: Coordinates, means: Mapping[int, Array], features: Mapping[int, Array]
) -> tuple[Array, Array] | None:
    """One patient: residual [u] and count [1], float64, together of norm at most 1; None is the zero record."""
    found = residual(coordinates, means, features)
    if found is None:
        return None
    x = found / coordinates.radius
    return np.sqrt(SHARE_ROW) * x / max(1.0, float(np.linalg.norm(x))), np.array([np.sqrt(SHARE_COUNT)])


def offset(total: Array, count: Array, sigma: float, coordinates: Coordinates) -> Array:
    """The site's mean [k], feature units, zero beyond the used coordinates, from its noised sum [u] and noised count [1].

    It is shrunk by the part of its squared length that chance explains (positive-part James-Stein): the known noise, and the public
    within-class variance over the noised count. A mean that is indistinguishable from chance centres nothing. A noised count below
    two patients is taken as two.
    """
    n = max(float(count[0]) / np.sqrt(SHARE_COUNT), LEAST)
    mean = np.asarray(total, np.float64) * coordinates.radius / np.sqrt(SHARE_ROW) / n
    chance = len(mean) * (sigma * coordinates.radius / n) ** 2 / SHARE_ROW + coordinates.within / n
    length = float(mean @ mean)
    found = np.zeros(len(coordinates.directions))
    found[: len(mean)] = mean * max(0.0, 1 - chance / length) if length > 0 else 0.0
    return found
