"""Pictures of a zip or a folder of class folders, with the lesion or patient behind each where a table names it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from sgps.errors import InputError
from sgps.images import decode
from sgps.pretrain.images import Source
from sgps.pretrain.pictures import listing
from sgps.pretrain.pool import held_out
from sgps.pretrain.recipe import read_recipe

Array = NDArray[Any]
MOST_NEGATIVES = 250  # lesions of a class that is no test class


@dataclass(frozen=True)
class Pictures:
    """name, label, lesion: text [n], sorted by name. A picture without a table is a lesion of its own."""

    source: Source
    name: Array
    label: Array
    lesion: Array

    def read(self, row: int) -> bytes:
        return self.source.read(str(self.name[row]))

    def image(self, row: int) -> Image:
        return decode(self.read(row), f"{self.source.where} {self.name[row]}")

    def sha256(self, row: int) -> bytes:
        return hashlib.sha256(self.read(row)).digest()

    @cached_property
    def digest(self) -> str:
        """Of the zip's bytes, or of a folder's names and bytes."""
        return self.source.sha256()

    def of(self, classes: Sequence[str]) -> Array:
        """Rows of these classes. Raises InputError when one has no picture."""
        for one in classes:
            if not (self.label == one).any():
                there = ", ".join(sorted(set(self.label.tolist()))[:20])
                raise InputError(
                    f"holds no picture of {one}",
                    where=self.source.where,
                    do=f"name classes that are there, such as {there}",
                )
        return np.flatnonzero(np.isin(self.label, list(classes)))

    def few(self, classes: Sequence[str], lesions: int) -> Array:
        """Rows of these classes, at most so many lesions of each: all pictures of a seeded choice of lesions."""
        rows, random = self.of(classes), np.random.default_rng(2)
        keep = []
        for one in classes:
            own = rows[self.label[rows] == one]
            names = np.unique(self.lesion[own])
            keep.append(own[np.isin(self.lesion[own], random.permutation(names)[:lesions])])
        return np.sort(np.concatenate(keep))

    def one_each(self, rows: Array, random: np.random.Generator) -> Array:
        """One of these rows for each lesion, at random, ascending."""
        return np.sort([random.choice(rows[self.lesion[rows] == one]) for one in np.unique(self.lesion[rows])])

    def others(self, test: Sequence[str], trained: bool, unknown: bool | None = None) -> Array:
        """One picture a lesion of the classes that are not `test`, at most 250 a class.

        Of classes that the release's recipe trains on: lesions that it held out, or with `trained` those that it did not. unknown:
        whether classes that the recipe does not know are there too; none for `not trained`.
        """
        recipe, random, out = read_recipe(None), np.random.default_rng(1), [np.zeros(0, np.int64)]
        held = held_out(self.lesion, self.label, recipe)
        for one in sorted(set(self.label.tolist()) - set(test)):
            known = one in recipe.base_classes
            if not known and not (not trained if unknown is None else unknown):
                continue
            rows = np.flatnonzero((self.label == one) & ((held != trained) if known else True))
            out.append(random.permutation(self.one_each(rows, random))[:MOST_NEGATIVES] if len(rows) else rows)
        return np.sort(np.concatenate(out))


def read_pictures(data: Path, classes: Sequence[str] = ()) -> Pictures:
    """Listed by `sgps.pretrain.pictures`, which says what may be given."""
    found = listing(data, classes)
    return Pictures(found.source, found.name, found.label, found.lesion)
