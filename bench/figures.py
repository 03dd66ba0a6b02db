"""How answers are scored and methods compared: probabilities, intervals, paired differences under Holm's correction."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from sgps.episodes import Interval, auroc, interval

Array = NDArray[Any]
BINS = 15


def softmax(scores: Array, temperature: float) -> Array:
    z = scores / temperature
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def macro_auroc(probability: Array, truth: Array) -> float:
    """Mean over the classes of one against the rest."""
    return float(np.mean([auroc(probability[:, c], truth == c) for c in range(probability.shape[1])]))


def brier(probability: Array, truth: Array) -> float:
    """Mean squared distance to the one-hot truth, summed over classes (Brier 1950): 0 to 2."""
    return float(((probability - np.eye(probability.shape[1])[truth]) ** 2).sum(1).mean())


def ece(confidence: Array, right: Array) -> float:
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017, equation 3)."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    total = np.zeros(BINS)
    np.add.at(total, place, confidence - right)
    return float(np.abs(total).sum() / len(confidence))


def balanced(values: Sequence[Array]) -> Interval:
    """Mean over groups that weigh the same, with the interval of independent groups."""
    parts = [interval(np.asarray(v, float)) for v in values]
    half = float(np.sqrt(sum(p.half**2 for p in parts)) / len(parts))
    return Interval(float(np.mean([p.mean for p in parts])), half)


def p_value(difference: Interval) -> float:
    """Two-sided, normal; 1 where nothing differs."""
    if difference.half == 0:
        return 1.0 if difference.mean == 0 else 0.0
    return float(2 * norm.sf(abs(difference.mean) / (difference.half / 1.96)))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values (Holm 1979)."""
    order, highest, out = sorted(p, key=lambda k: p[k]), 0.0, {}
    for place, key in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p[key]))
        out[key] = highest
    return out


def compared(differences: Mapping[str, Interval]) -> dict[str, dict[str, Any]]:
    """ours minus each peer, corrected over all of them: better, worse or tie at 5 %."""
    adjusted = holm({k: p_value(d) for k, d in differences.items()})
    out = {}
    for key, d in differences.items():
        verdict = "tie" if adjusted[key] >= 0.05 else "better" if d.mean > 0 else "worse"
        out[key] = {"mean": d.mean, "half": d.half, "p": p_value(d), "holm": adjusted[key], "ours": verdict}
    return out


def percent(x: Mapping[str, float] | Interval, signed: bool = False) -> str:
    mean, half = (x.mean, x.half) if isinstance(x, Interval) else (x["mean"], x["half"])
    return f"{100 * mean:{'+' if signed else ''}.1f} ± {100 * half:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
