"""Pictures of a zip or a folder of class folders, with the lesion or patient behind each where a table names it."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from sgps.errors import InputError
from sgps.images import decode
from sgps.pretrain.images import Source
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
                raise InputError(
                    f"holds no picture of {one}", where=self.source.where, do="name classes that are there"
                )
        return np.flatnonzero(np.isin(self.label, list(classes)))

    def one_each(self, rows: Array, random: np.random.Generator) -> Array:
        """One of these rows for each lesion, at random, ascending."""
        return np.sort([random.choice(rows[self.lesion[rows] == one]) for one in np.unique(self.lesion[rows])])

    def others(self, test: Sequence[str], trained: bool) -> Array:
        """One picture a lesion of the classes that are not `test`, at most 250 a class.

        Of classes that the release's recipe trains on: lesions that it held out, or with `trained` those that it did not.
        """
        recipe, random, out = read_recipe(None), np.random.default_rng(1), [np.zeros(0, np.int64)]
        held = held_out(self.lesion, self.label, recipe)
        for one in sorted(set(self.label.tolist()) - set(test)):
            known = one in recipe.base_classes
            if trained and not known:
                continue
            rows = np.flatnonzero((self.label == one) & ((held != trained) if known else True))
            out.append(random.permutation(self.one_each(rows, random))[:MOST_NEGATIVES] if len(rows) else rows)
        return np.sort(np.concatenate(out))


def read_pictures(data: Path) -> Pictures:
    """Raises InputError when `data` is neither a zip nor a folder of class folders.

    A CSV inside with image_id or isic_id names the patient (patient_id or lesion_id) and the class (dx or diagnosis).
    """
    source = Source(data, ".") if data.is_dir() else Source(data.parent, data.stem)
    rows: dict[str, dict[str, str]] = {}
    for table in (n for n in source.names if n.lower().endswith(".csv")):
        for row in csv.DictReader(io.StringIO(source.read(table).decode("utf-8-sig"))):
            if key := row.get("image_id") or row.get("isic_id"):
                rows[key] = row
    found = []
    for name in source.images():
        path = PurePosixPath(name)
        row = rows.get(path.stem, {})
        label = row.get("dx") or row.get("diagnosis") or path.parent.name
        found.append((name, label, row.get("patient_id") or row.get("lesion_id") or name))
    if not found:
        raise InputError("holds no picture in a class folder", where=data, do="give a zip or folder of class folders")
    return Pictures(source, *(np.array(column, np.str_) for column in zip(*found, strict=True)))
