"""From the N logits of a stock network to a decision: score, conformal p value, probability, "none of these". NumPy only.

Outputs come in a fixed order: first the `named` ones (the diseases that were asked for), then their rivals. With the logits
averaged over the views,

    score of a named c     s_c = l_c - 0.6 max over the rivals of l_j; l_c where there are no rivals
    conformal p            p = (1 + number of public negatives whose score is at least s) / (n + 1)
    accepted               p <= the stated false-alarm level
    none of these          every logit is below `least`, the picture is of another kind (`sgps.foreign`), or the one disease is ahead of its rivals
                           and yet not accepted

A logit is s |f - m| cos(f - m, v - m), so the score of one disease is a centred cosine against the best rival, times the public scale s and the length of
the query's own feature: exactly computable from the exported network, without this package. (Divided by that length, which N logits
do not give, it ranks no better: leave-one-class-out AUROC .745 against .739 on held-out lesions of four classes, .753 against .765
on drawn ones. The weight 0.6 is the best of 0, 0.3, 0.6 and 1 on both sets together. Between several named diseases nothing is subtracted: to tell
their patients from others the largest logit alone is better by 1 to 6 points at one and five exemplars on real lesions.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import beta

from sgps.settings import Settings

Array = NDArray[Any]
RIVAL_WEIGHT = 0.6
FORMULA = "s = l - 0.6 max(l of the rivals), or l without rivals; logits l averaged over the views"
NONE = "none of these"
_RIDGE = 1e-3  # of the logistic fit


class Share(Settings):
    """A measured rate: hits among n, with a Clopper-Pearson interval of 95 %."""

    name: str
    hits: int
    n: int
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, name: str, hits: int, n: int) -> "Share":
        low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
        high = float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
        return cls(name=name, hits=hits, n=n, rate=hits / n, low=low, high=high)


class Calibration(Settings):
    """All numbers of the decision.

    named: outputs that were asked for. false_alarms: the stated level. negatives: sorted scores of public negatives. least: a query
    whose logits are all below it is like none of the outputs. slope, offset: of the probability of one disease at even odds.
    temperature: of the softmax over several diseases. measured: false alarms on negatives that were kept apart, all and by class.
    """

    named: Annotated[int, Field(ge=1)]
    false_alarms: Annotated[float, Field(gt=0, lt=1)]
    negatives: tuple[float, ...]
    least: float
    slope: Annotated[float, Field(ge=0)]
    offset: float
    temperature: Annotated[float, Field(gt=0)]
    measured: tuple[Share, ...]
    formula: str = FORMULA

    @property
    def threshold(self) -> float:
        """The score above which a claim is accepted."""
        n = len(self.negatives)
        allowed = int(np.floor(self.false_alarms * (n + 1) + 1e-9)) - 1
        return self.negatives[n - 1 - allowed] if allowed >= 0 else np.inf

    def decide(self, logits: Array, foreign: Array | None = None) -> "Decision":
        """Logits [n, N], averaged over views. foreign [n]: whether the picture is of another kind; none is. A row's decision does not depend on
        the other rows."""
        unlike = logits.max(1) < self.least
        if foreign is not None:
            unlike = unlike | foreign
        best = score(logits, self.named).max(1)
        p = p_values(best, np.asarray(self.negatives))
        accepted = (p <= self.false_alarms) & ~unlike
        top = logits.argmax(1)
        if self.named == 1:
            probability = 1 / (1 + np.exp(-(self.slope * best + self.offset)))
            output = np.where(accepted, 0, top)
            none = (top == 0) & ~accepted
        else:
            scaled = logits / self.temperature
            exp = np.exp(scaled - scaled.max(1, keepdims=True))
            probability, output, none = (exp / exp.sum(1, keepdims=True)).max(1), top, np.zeros(len(logits), bool)
        return Decision(output, none | unlike, accepted, probability, best, p)


@dataclass(frozen=True)
class Decision:
    """For n queries: output (place), none of these, accepted, probability, score of the best named output, conformal p."""

    output: Array
    none: Array
    accepted: Array
    probability: Array
    score: Array
    p: Array


def score(logits: Array, named: int) -> Array:
    """[n, N] -> [n, named]: each named logit minus 0.6 times the largest of the rivals' (nothing where there are none)."""
    if logits.shape[1] == named:
        return np.asarray(logits)
    return np.asarray(logits[:, :named] - RIVAL_WEIGHT * logits[:, named:].max(1, keepdims=True))


def p_values(scores: Array, negatives: Array) -> Array:
    """Split-conformal p values (Vovk, Gammerman and Shafer 2005, section 4.2): (1 + #{negatives >= s}) / (n + 1)."""
    above = len(negatives) - np.searchsorted(np.sort(negatives), scores, side="left")
    return np.asarray((1 + above) / (len(negatives) + 1))


def fit_logistic(scores: Array, positive: Array, weight: Array) -> tuple[float, float]:
    """Slope (at least 0) and offset of P(positive | score), weighted maximum likelihood with a small ridge (Platt 1999)."""
    x = np.stack([scores, np.ones_like(scores)], 1)
    w = np.zeros(2)
    for _ in range(50):
        q = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (weight * (q - positive)) + _RIDGE * w
        hessian = (x * (weight * q * (1 - q))[:, None]).T @ x + _RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    return (
        (float(w[0]), float(w[1]))
        if w[0] > 0
        else (0.0, float(np.log(weight[positive].sum() / weight[~positive].sum())))
    )


def fit_temperature(logits: Sequence[Array], labels: Sequence[Array]) -> float:
    """Temperature of a softmax that gives the labels their largest likelihood, of a fixed grid (Guo et al. 2017)."""

    def loss(temperature: float) -> float:
        total = 0.0
        for z, y in zip(logits, labels, strict=True):
            scaled = z / temperature
            scaled = scaled - scaled.max(1, keepdims=True)
            total += float((np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(y)), y]).mean())
        return total

    return float(min(np.geomspace(0.1, 30, 60), key=loss)) if logits else 1.0
