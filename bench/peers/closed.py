"""Closed forms and convex probes: support [N, K, f] and queries [M, f] -> scores [M, N]. Nothing is learned across tasks."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from bench.peers.public import Array, Head
from sgps.episodes import cosine, unit

SCALE = 10.0  # of a cosine, before the softmax
NEIGHBOURS = 3
STRENGTHS = (0.1, 1.0, 10.0, 100.0)


def prototype(support: Array, queries: Array) -> Array:
    """Cosine to the mean of a class's unit vectors (Snell et al. 2017; cosine as in SimpleShot, Wang et al. 2019)."""
    return SCALE * cosine(support, queries)


def neighbours(support: Array, queries: Array) -> Array:
    """The nearest three exemplars vote with exp(10 cosine)."""
    ways, shots, _ = support.shape
    close = unit(queries) @ unit(support).reshape(ways * shots, -1).T
    near = np.argsort(-close, 1)[:, : min(NEIGHBOURS, ways * shots)]
    votes = np.full((len(queries), ways), 1e-6)
    for column in near.T:
        rows = np.arange(len(queries))
        votes[rows, column // shots] += np.exp(SCALE * close[rows, column])
    return np.asarray(np.log(votes))


def ridge(strength: float) -> Head:
    """Ridge regression of one-hot targets on unit vectors, closed form in the dual."""

    def head(support: Array, queries: Array) -> Array:
        ways, shots, f = support.shape
        x, target = unit(support).reshape(-1, f), np.repeat(np.eye(ways) - 1 / ways, shots, 0)
        dual = np.linalg.solve(x @ x.T + strength * np.eye(len(x)), target)
        return np.asarray(SCALE * unit(queries) @ x.T @ dual)

    return head


def logistic(strength: float) -> Head:
    """Multinomial logistic regression on unit vectors; strength: scikit-learn's C."""

    def head(support: Array, queries: Array) -> Array:
        ways, shots, f = support.shape
        made = LogisticRegression(C=strength, max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # separable support: the limit is a fine stop
            made.fit(unit(support).reshape(-1, f), np.repeat(np.arange(ways), shots))
        z = made.decision_function(unit(queries))
        return np.stack([-z / 2, z / 2], 1) if ways == 2 else np.asarray(z)

    return head


HEADS: dict[str, tuple[Head, ...]] = {
    "prototype": (prototype,),
    "knn": (neighbours,),
    "ridge": tuple(ridge(s) for s in STRENGTHS),
    "logistic": tuple(logistic(s) for s in STRENGTHS),
}
