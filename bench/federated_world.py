"""Who is where in `bench.federated`: the public atlas, six hospitals, the tested rest. One lesion stands for one patient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.features import base_features
from bench.pictures import Pictures
from sgps.pretrain.pool import held_out
from sgps.pretrain.recipe import Recipe
from sgps.release import Release

Array = NDArray[Any]
SIZES = (60, 100, 150, 200, 300, 400)  # patients of common classes at each site
COMMON_MIX, SPREAD = 1.0, 0.5  # Dirichlet: classes of a site; sites of a disease
MOST, PICTURES = 400, 2  # lesions of a common class, pictures of a lesion
TESTED = 0.2  # share of a common class's lesions that no site holds


def patients_of(pictures: Pictures, recipe: Recipe) -> list[Array]:
    """Pictures of each patient of the world, in its order: lesions that the recipe's atlas leaves out, at most two pictures of each."""
    random, unseen = np.random.default_rng(2), held_out(pictures.lesion, pictures.label, recipe)
    rows: list[Array] = []
    for kind in (*recipe.base_classes, *recipe.meta_test):
        free = (pictures.label == kind) & (unseen if kind in recipe.base_classes else True)
        lesions = random.permutation(np.unique(pictures.lesion[free]))
        lesions = lesions[:MOST] if kind in recipe.base_classes else lesions
        for one in lesions.tolist():
            mine = np.flatnonzero(free & (pictures.lesion == one))
            rows.append(random.permutation(mine)[:PICTURES])
    return rows


@dataclass(frozen=True)
class World:
    """Patients that no training has seen. label, lesion, row [p] (row: of the first picture); one [p, f]: its features, of an exemplar
    or a query; mean [p, f]: of at most two pictures, of a patient at a site. common: classes of the atlas; test: those that it lacks.
    """

    pictures: Pictures
    label: Array
    lesion: Array
    row: Array
    one: Array
    mean: Array
    common: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of(cls, release: Release, pictures: Pictures, recipe: Recipe, out: Path) -> "World":
        """The recipe's atlas is left out. Features are kept under `out`."""
        rows = patients_of(pictures, recipe)
        flat = np.concatenate(rows)
        features = base_features(release, pictures, flat, out)
        start = np.cumsum([0, *map(len, rows)])[:-1]
        mean = np.add.reduceat(features.astype(np.float64), start) / np.array([len(r) for r in rows])[:, None]
        first = flat[start]
        return cls(
            pictures,
            pictures.label[first],
            pictures.lesion[first],
            first,
            features[start].astype(np.float64),
            mean,
            recipe.base_classes,
            recipe.meta_test,
        )

    def of_class(self, kind: str) -> Array:
        return np.flatnonzero(self.label == kind)

    def split(self, seed: int) -> "Split":
        """Half of each test class and most of each common class go to the sites, the rest is tested."""
        random = np.random.default_rng([seed, 5])
        sites: list[list[int]] = [[] for _ in SIZES]
        tested: dict[str, Array] = {}
        left: dict[str, list[int]] = {}
        for kind in (*self.common, *self.test):
            order = random.permutation(self.of_class(kind))
            count = len(order) // 2 if kind in self.test else int(TESTED * len(order))
            tested[kind], private = order[:count], order[count:]
            if kind in self.common:
                left[kind] = private.tolist()
                continue
            place = random.choice(len(SIZES), len(private), p=random.dirichlet(np.full(len(SIZES), SPREAD)))
            for s, patient in zip(place.tolist(), private.tolist(), strict=True):
                sites[s].append(patient)
        for s, size in enumerate(SIZES):
            mix = random.dirichlet(np.full(len(self.common), COMMON_MIX))
            for _ in range(size):
                chance = np.array([m if left[c] else 0.0 for m, c in zip(mix, self.common, strict=True)])
                if not chance.any():
                    break
                sites[s].append(left[self.common[random.choice(len(mix), p=chance / chance.sum())]].pop())
        return Split(seed, tuple(np.array(s) for s in sites), tested)


@dataclass(frozen=True)
class Split:
    """sites: patients of each. tested: patients of each class that no site holds."""

    seed: int
    sites: tuple[Array, ...]
    tested: Mapping[str, Array]

    def without(self, world: World, kinds: Sequence[str]) -> "Split":
        """The same sites without their patients of these classes."""
        kept = tuple(s[~np.isin(world.label[s], list(kinds))] for s in self.sites)
        return Split(self.seed, kept, self.tested)
