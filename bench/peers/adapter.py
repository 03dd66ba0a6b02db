"""Tip-Adapter and a text-only classifier, with sentence embeddings where the papers have CLIP.

No aligned image and text encoder installs offline, so the text's classifier is a ridge map from the sentence embedding of a class to its
centred mean feature, fitted on the classes of the reference bank. With some thirty classes it can know little; the result measures that too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.peers.closed import SCALE
from bench.peers.public import Array, Public, best
from sgps.episodes import unit

SHARPNESS, TEXT_WEIGHTS, RIDGE = (1.0, 5.5), (0.1, 0.3, 1.0), 0.1
Told = Callable[[Array, Array, Array], Array]  # embeddings [N, 384], support [N, K, f], queries [M, f] -> scores [M, N]


@dataclass(frozen=True)
class TextMap:
    """text [C, 384] and means [C, f] (centred, length 1) of the public classes."""

    text: Array
    means: Array

    def __call__(self, embedding: Array, without: Array | None = None) -> Array:
        """Directions [N, f] of classes by their embeddings [N, 384]. without: places of public classes that must not be known."""
        keep = np.setdiff1d(np.arange(len(self.text)), [] if without is None else without)
        x, y = self.text[keep], self.means[keep]
        middle, mean = x.mean(0), y.mean(0)
        x = x - middle
        dual = np.linalg.solve(x @ x.T + RIDGE * np.eye(len(x)), y - mean)
        return unit(mean + (embedding - middle) @ x.T @ dual)


def cached(sharpness: float, weight: float) -> Callable[[Array, Array, Array], Array]:
    """Directions of the text, support, queries -> scores: Tip-Adapter without training (Zhang et al. 2022, equation 4), alpha = 1."""

    def scores(directions: Array, support: Array, queries: Array) -> Array:
        ways, shots, f = support.shape
        q = unit(queries)
        near = np.exp(-sharpness * (1 - q @ unit(support).reshape(ways * shots, f).T))
        return np.asarray(near.reshape(len(q), ways, shots).mean(2) * SCALE + weight * SCALE * (q @ directions.T))

    return scores


def text_only(directions: Array, support: Array, queries: Array) -> Array:
    return np.asarray(SCALE * (unit(queries) @ directions.T))


def told(alone: bool, texts: TextMap, public: Public, ways: int, shots: int) -> tuple[Told, float]:
    """Strengths and temperature from public tasks, whose classes the map does not know. Labels of `public` are places in `texts`.

    alone: the text without the exemplars.
    """
    options = [text_only] if alone else [cached(s, w) for s in SHARPNESS for w in TEXT_WEIGHTS]
    tasks = public.tasks(ways, shots)
    place, temperature = 0, 1.0
    if tasks:
        directions = [texts(texts.text[t.classes], without=t.classes) for t in tasks]
        found = [
            [option(d, t.support, t.queries) for d, t in zip(directions, tasks, strict=True)] for option in options
        ]
        place, temperature = best(found, [t.truth for t in tasks])

    def head(embedding: Array, support: Array, queries: Array) -> Array:
        return options[place](texts(embedding), support, queries)

    return head, temperature
