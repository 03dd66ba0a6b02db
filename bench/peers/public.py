"""Public samples on which every choice about a method is made: its strength, its temperature, the weights it learns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgps.calibration import fit_temperature

Array = NDArray[Any]
Head = Callable[[Array, Array], Array]  # support [N, K, f], queries [M, f] -> scores [M, N]
TASKS, QUERIES = 40, 15


@dataclass(frozen=True)
class Task:
    """classes [N] of the pool, support [N, K, f], queries [M, f], truth [M]: place in classes."""

    classes: Array
    support: Array
    queries: Array
    truth: Array


@dataclass(frozen=True)
class Public:
    """features [n, f], label [n]. Classes that are too small for a task are not drawn."""

    features: Array
    label: Array

    def tasks(self, ways: int, shots: int, count: int = TASKS, seed: int = 0) -> list[Task]:
        """Seeded tasks; none when there are too few classes."""
        random, out = np.random.default_rng([seed, ways, shots]), []
        rows = {c: np.flatnonzero(self.label == c) for c in np.unique(self.label)}
        names = [c for c, own in rows.items() if len(own) >= shots + 2]
        for _ in range(count if len(names) >= ways else 0):
            chosen, support, queries, truth = [], [], [], []
            for place, i in enumerate(random.choice(len(names), ways, replace=False)):
                own = random.permutation(rows[names[i]])[: shots + QUERIES]
                chosen.append(names[i])
                support.append(self.features[own[:shots]])
                queries.append(self.features[own[shots:]])
                truth += [place] * (len(own) - shots)
            out.append(Task(np.array(chosen), np.stack(support), np.concatenate(queries), np.array(truth)))
        return out

    def halves(self) -> tuple["Public", "Public"]:
        """Every other sample of each class: one half to learn from, the other to choose by."""
        random, first = np.random.default_rng(0), np.zeros(len(self.label), bool)
        for c in np.unique(self.label):
            own = random.permutation(np.flatnonzero(self.label == c))
            first[own[: (len(own) + 1) // 2]] = True
        return Public(self.features[first], self.label[first]), Public(self.features[~first], self.label[~first])


def best(found: Sequence[Sequence[Array]], truth: Sequence[Array]) -> tuple[int, float]:
    """Of several sets of scores, one array a task: place of the set that is right most often, and its best temperature."""
    right = [np.mean([(z.argmax(1) == t).mean() for z, t in zip(one, truth, strict=True)]) for one in found]
    place = int(np.argmax(right))
    return place, fit_temperature(found[place], truth)


def tuned(heads: Sequence[Head], public: Public, ways: int, shots: int) -> tuple[Head, float]:
    """The head that is right most often on public tasks, and its temperature there. The first, and 1, without tasks."""
    tasks = public.tasks(ways, shots)
    if not tasks:
        return heads[0], 1.0
    found = [[head(t.support, t.queries) for t in tasks] for head in heads]
    place, temperature = best(found, [t.truth for t in tasks])
    return heads[place], temperature
