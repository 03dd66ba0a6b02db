"""One exemplar against the reference bank: exemplar [f] and queries [n, f] -> scores [n]."""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from bench.peers.public import Array
from sgps.bank import Bank
from sgps.episodes import unit

Score = Callable[[Array, Array], Array]
SHRINK = 0.9  # of PLDA's within-class scatter


def plda(bank: Bank, centre: Array) -> Score:
    """Log-likelihood ratio of "same class" of two vectors (Ioffe 2006): flat scatter between classes, shrunk scatter within."""
    x = bank.features - centre
    means = np.stack([x[bank.label == i].mean(0) for i in range(len(bank.classes))])
    f, inside = x.shape[1], x - means[bank.label]
    within = inside.T @ inside / len(x)
    flat = np.trace(within) / f
    values, axes = np.linalg.eigh((1 - SHRINK) * within + SHRINK * flat * np.eye(f))
    between = float(means.var(0).sum() / f)
    total = between + values
    joint = total - between**2 / total  # variance of one coordinate, given the other vector's

    def rate(exemplar: Array, queries: Array) -> Array:
        e, q = (exemplar - centre) @ axes, (queries - centre) @ axes
        given = e * (between / total)
        return np.asarray(0.5 * (q**2 / total - (q - given) ** 2 / joint).sum(1))

    return rate


def logistic(bank: Bank, centre: Array, others: Sequence[int]) -> Score:
    """One positive against the bank's samples of the same kind of picture, classes balanced, C = 1, on centred unit vectors."""
    negatives = unit(bank.features[np.isin(bank.label, list(others))] - centre)
    truth = np.arange(len(negatives) + 1) == 0

    def rate(exemplar: Array, queries: Array) -> Array:
        made = LogisticRegression(class_weight="balanced", max_iter=300)
        made.fit(np.vstack([unit(exemplar - centre), negatives]), truth)
        return np.asarray(made.decision_function(unit(queries - centre)))

    return rate
