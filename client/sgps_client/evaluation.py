"""How good a classifier is on labelled patients, with 95 % intervals over patients.

Two questions. Detection: one disease against everything else, by a score, a probability and a threshold. Choice: which of N classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from sgps.errors import InputError
from sgps_client.data.table import counted

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
DRAWS, SEED, BINS = 1000, 0, 10
LEVEL = 0.95
_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
NONE = "none of these"
EVEN = "calibration error, Brier score and reliability are at even odds, as the stated probability is"
FEW = 20  # patients of a class below which an interval says little
GRID = np.linspace(0, 1, 101)  # false-alarm rates at which the ROC curve is drawn


@dataclass(frozen=True)
class Figure:
    """A share with its interval over patients."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Curve:
    """A ROC curve over `GRID`: true-positive rate with its pointwise interval."""

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Bin:
    """One bar of the reliability diagram. expected: mean probability; observed: share that it was."""

    expected: float
    observed: float
    count: int


@dataclass(frozen=True)
class Result:
    """figures: by name, all as shares. reliability: over `BINS` equal bins. roc: of a detection only."""

    figures: Mapping[str, Figure]
    reliability: tuple[Bin, ...]
    roc: Curve | None = None
    notes: tuple[str, ...] = ()
    table: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Detection:
    """n pictures. positive: shows the disease. score: higher is more like it. probability: calibrated. accepted: above threshold."""

    positive: Bools
    score: Floats
    probability: Floats
    accepted: Bools
    unit: NDArray[np.str_]


@dataclass(frozen=True)
class Choice:
    """n pictures. truth: place in `labels`. probability [n, N] sums to 1. refused: answered "none of these"."""

    labels: Sequence[str]
    truth: NDArray[np.int64]
    probability: Floats
    refused: Bools
    unit: NDArray[np.str_]


def detection(data: Detection) -> Result:
    """AUROC; false-alarm rate, sensitivity, balanced accuracy at the threshold; ECE and Brier score of the probability.

    The last two and the reliability diagram weigh the disease and the others alike: the probability is stated at even odds.
    Raises InputError without positives or without negatives.
    """
    y, accepted, p = data.positive, data.accepted, data.probability
    if y.all() or not y.any():
        raise InputError("needs pictures of the disease and others", where="labels", do="add the missing ones")
    weights = _resampled(data.unit, y.astype(np.int64))
    false, true = roc(y, data.score, weights)
    even = weights * np.where(y, 0.5 / (weights @ y)[:, None], 0.5 / (weights @ ~y)[:, None])
    sensitivity, false_alarms = _mean(accepted, weights, y), _mean(accepted, weights, ~y)
    figures = {
        "auroc": _figure(area(false, true)),
        "false_alarm_rate": _never_or_always(_figure(false_alarms), len(set(data.unit[~y]))),
        "sensitivity": _never_or_always(_figure(sensitivity), len(set(data.unit[y]))),
        "accuracy": _never_or_always(_figure(_mean(accepted == y, weights)), len(set(data.unit))),
        "balanced_accuracy": _figure((sensitivity + 1 - false_alarms) / 2),
        "ece": _figure(calibration_error(p, y, even)),
        "brier": _figure(_mean((p - y) ** 2, even)),
    }
    curves = np.array([np.interp(GRID, f, t) for f, t in zip(false, true, strict=True)])
    low, high = np.quantile(curves[1:], _TAILS, axis=0)
    names = {"the disease": data.unit[y], "others": data.unit[~y]}
    return Result(figures, reliability(p, y, even[0]), Curve(curves[0], low, high), (EVEN, *_few(names)))


def choice(data: Choice) -> Result:
    """Accuracy (a refusal is wrong), balanced accuracy, one-against-rest AUROC, ECE of the chosen class, Brier score.

    Classes without pictures do not enter balanced accuracy and AUROC. Raises InputError when fewer than two have some.
    """
    truth, p = data.truth, data.probability
    present = sorted(set(truth.tolist()))
    if len(present) < 2:
        raise InputError("needs pictures of two classes of the model", where="labels", do="add the missing ones")
    chosen, best = p.argmax(1), p.max(1)
    right = (chosen == truth) & ~data.refused
    weights = _resampled(data.unit, truth)
    areas, patients = [area(*roc(truth == c, p[:, c], weights)) for c in present], len(set(data.unit))
    figures = {
        "accuracy": _never_or_always(_figure(_mean(right, weights)), patients),
        "balanced_accuracy": _figure(np.mean([_mean(right, weights, truth == c) for c in present], axis=0)),
        "auroc": _figure(np.mean(areas, axis=0)),
        "none_of_these": _never_or_always(_figure(_mean(data.refused, weights)), patients),
        "ece": _figure(calibration_error(best, chosen == truth, weights)),
        "brier": _figure(_mean(((p - np.eye(len(data.labels))[truth]) ** 2).sum(1), weights)),
    }
    answer = np.where(data.refused, len(data.labels), chosen)
    answers = [*data.labels, NONE]
    table = {
        data.labels[c]: {name: int(((answer == i) & (truth == c)).sum()) for i, name in enumerate(answers)}
        for c in present
    }
    names = {data.labels[c]: data.unit[truth == c] for c in present}
    return Result(figures, reliability(best, chosen == truth, weights[0]), None, _few(names), table)


def outside_accepted(accepted: Bools, unit: NDArray[np.str_]) -> Figure:
    """Share of pictures of classes that the model does not know that it accepts as one that it knows."""
    figure = _figure(_mean(accepted, _resampled(unit, np.zeros(len(unit), np.int64))))
    return _never_or_always(figure, len(set(unit)))


def roc(positive: Bools, score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """False- and true-positive rates [d, t + 1] at the t distinct scores, highest first, under d weightings [d, n]."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    rates = []
    for group in (~positive, positive):
        steps = np.add.reduceat((weights * group)[:, order], starts, axis=1).cumsum(1)
        rates.append(np.pad(steps / steps[:, -1:], ((0, 0), (1, 0))))
    return rates[0], rates[1]


def area(false: Floats, true: Floats) -> Floats:
    """Area under each ROC curve; ties count half."""
    return np.asarray((np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1]) / 2).sum(1), dtype=np.float64)


def calibration_error(probability: Floats, outcome: Bools, weights: Floats) -> Floats:
    """Expected calibration error over equal bins (Guo et al. 2017, eq. 3) under d weightings [d, n]."""
    in_bin = np.eye(BINS)[np.minimum((probability * BINS).astype(np.int64), BINS - 1)]
    gaps = weights @ (in_bin * (probability - outcome)[:, None])
    return np.asarray(np.abs(gaps).sum(1) / weights.sum(1), dtype=np.float64)


def reliability(probability: Floats, outcome: Bools, weights: Floats) -> tuple[Bin, ...]:
    """The bins of `calibration_error` that hold a picture; weights [n]."""
    place = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    held = [place == b for b in range(BINS)]
    return tuple(Bin(_at(probability, h, weights), _at(outcome, h, weights), int(h.sum())) for h in held if h.any())


def _at(values: NDArray[Any], group: Bools, weights: Floats) -> float:
    return float(np.average(values[group], weights=weights[group]))


def _mean(values: NDArray[Any], weights: Floats, group: Bools | None = None) -> Floats:
    """Weighted mean of values [n], within a group, under each weighting [d, n]."""
    within = np.ones(len(values)) if group is None else group.astype(np.float64)
    return np.asarray(weights @ (values * within) / (weights @ within), dtype=np.float64)


def _resampled(unit: NDArray[np.str_], stratum: NDArray[np.int64]) -> Floats:
    """[1 + DRAWS, n] weights of pictures: ones, then how often each one's patient was drawn with replacement.

    Patients are drawn within strata of equal sets of classes, so that every draw holds every class.
    """
    names, of_picture = np.unique(unit, return_inverse=True)
    sets = [""] * len(names)
    for place, c in sorted({*zip(of_picture.tolist(), stratum.tolist(), strict=True)}):
        sets[place] += f"{c} "
    random, counts = np.random.default_rng(SEED), np.ones((1 + DRAWS, len(names)))
    for one in sorted(set(sets)):
        members = np.flatnonzero(np.array(sets) == one)
        counts[1:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), DRAWS)
    return counts[:, of_picture]


def _figure(values: Floats) -> Figure:
    """The value under equal weights, and the percentile bootstrap of the others."""
    low, high = np.quantile(values[1:], _TAILS)
    return Figure(float(values[0]), float(low), float(high))


def _never_or_always(figure: Figure, patients: int) -> Figure:
    """What never happened in n patients may still happen: the exact (Clopper-Pearson) bound where resampling sees no spread."""
    if figure.value == 0:
        return Figure(0.0, 0.0, float(beta.ppf(_TAILS[1], 1, patients)))
    if figure.value == 1:
        return Figure(1.0, float(beta.ppf(_TAILS[0], patients, 1)), 1.0)
    return figure


def _few(units: Mapping[str, NDArray[np.str_]]) -> tuple[str, ...]:
    counts = {name: len(set(own)) for name, own in units.items()}
    return tuple(
        f"only {counted(n, 'patient')} of {name}: the interval says little" for name, n in counts.items() if n < FEW
    )


def as_mapping(result: Result) -> dict[str, Any]:
    """For JSON, without the notes. Shares, not percent."""
    return {
        "figures": {name: vars(figure) for name, figure in result.figures.items()},
        "interval": f"{LEVEL:.0%}, {DRAWS} bootstrap draws of patients",
        "reliability": [vars(b) for b in result.reliability],
        "confusion": {truth: dict(row) for truth, row in result.table.items()},
    }
