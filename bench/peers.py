"""Few-shot methods beside ours: support [N, K, f] and queries [M, f] -> scores [M, N]. Inductive, nothing is learned across tasks.

A method that has a strength gets the one that is best on public tasks, and every method the temperature that fits them best.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from sgps.calibration import fit_temperature
from sgps.episodes import cosine, unit

Array = NDArray[Any]
Head = Callable[[Array, Array], Array]
SCALE = 10.0  # of a cosine, before the softmax
NEIGHBOURS = 3
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
_TASKS, _QUERIES = 40, 15


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


@dataclass(frozen=True)
class Public:
    """Public samples for choices: features [n, f], label [n]. Classes that are too small for a task are not drawn."""

    features: Array
    label: Array

    def tasks(self, ways: int, shots: int) -> list[tuple[Array, Array, Array]]:
        """40 seeded tasks: support, queries, truth; none when there are too few classes."""
        random, out = np.random.default_rng([0, ways, shots]), []
        names = [c for c in np.unique(self.label) if (self.label == c).sum() >= shots + 2]
        for _ in range(_TASKS if len(names) >= ways else 0):
            support, queries, truth = [], [], []
            for place, i in enumerate(random.choice(len(names), ways, replace=False)):
                rows = random.permutation(np.flatnonzero(self.label == names[i]))[: shots + _QUERIES]
                support.append(self.features[rows[:shots]])
                queries.append(self.features[rows[shots:]])
                truth += [place] * (len(rows) - shots)
            out.append((np.stack(support), np.concatenate(queries), np.array(truth)))
        return out


def tuned(heads: Sequence[Head], public: Public, ways: int, shots: int) -> tuple[Head, float]:
    """The head that is right most often on public tasks, and its temperature there. The first, and 1, without tasks."""
    tasks = public.tasks(ways, shots)
    if not tasks:
        return heads[0], 1.0
    truth = [t for _, _, t in tasks]
    scores = [[head(s, q) for s, q, _ in tasks] for head in heads]
    right = [np.mean([(z.argmax(1) == t).mean() for z, t in zip(found, truth, strict=True)]) for found in scores]
    best = int(np.argmax(right))
    return heads[best], fit_temperature(scores[best], truth)
