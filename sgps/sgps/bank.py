"""The reference bank: public classes beside which a disease is judged.

bank.safetensors holds, for C classes and n samples of f features (means over eight views, under the base network):

    classes        uint8: JSON text, a list of C mappings id, name, domain, text
    embedding      [C, t] float16: sentence embeddings of the texts
    same           [1] float32: cosine above which two texts are of one disease; where it is missing, that of all-MiniLM-L6-v2
    means          [C, f] float16: class means
    inside         [C] uint8: 1 where the mean is that of the samples that calibrate, 0 where it is over far more lesions
    features       [n, f] float16: one lesion each
    label          [n] int16: place in `classes`
    apart          [n] uint8: 1 for the half of each class that is kept apart to measure false alarms; the rest calibrates
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from sgps.errors import SignatureError
from sgps.release import BANK, Release

Array = NDArray[Any]
SAME_TEXT = 0.94  # of all-MiniLM-L6-v2: of different diseases in the catalogue the cosine is 0.93 at most
_FEWEST = 4  # samples of a class: two calibrate, two are kept apart


@dataclass(frozen=True)
class BankClass:
    """One public class. domain: what kind of picture it is (dermoscopy, chest x-ray, drawn, ...)."""

    id: str
    name: str
    domain: str
    text: str


@dataclass(frozen=True)
class Bank:
    """Arrays as in the module's text, features and means as float32. Build with `build`, read with `Bank.of`."""

    classes: tuple[BankClass, ...]
    embedding: Array
    means: Array
    inside: Array
    features: Array
    label: Array
    apart: Array
    same: float = SAME_TEXT

    @classmethod
    def of(cls, release: Release) -> "Bank":
        """The bank of a verified release. Raises SignatureError when it is not one."""
        try:
            return cls.from_arrays(release.tensors(BANK))
        except ValueError as error:
            raise SignatureError(str(error), where=release.folder / BANK, do="get the release again") from error

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> "Bank":
        """The inverse of `arrays`. Raises ValueError when a name is missing or a shape does not fit."""
        try:
            classes = tuple(BankClass(**c) for c in json.loads(arrays["classes"].tobytes()))
            embedding, means, features = (np.asarray(arrays[n], np.float32) for n in ("embedding", "means", "features"))
            label, apart, inside = (
                arrays["label"].astype(np.int64),
                arrays["apart"].astype(bool),
                arrays["inside"].astype(bool),
            )
            same = float(np.float32(arrays.get("same", np.array([SAME_TEXT])).item()))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the bank cannot be read: {error}") from error
        n, c = len(features), len(classes)
        fits = (
            features.ndim == means.ndim == embedding.ndim == 2
            and label.shape == apart.shape == (n,)
            and len(means) == len(embedding) == len(inside) == c
            and means.shape[1] == features.shape[1]
            and (not n or (label.min() >= 0 and label.max() < c))
            and all(np.isfinite(a).all() for a in (embedding, means, features, same))
        )
        if not fits:
            raise ValueError("the arrays of the bank do not fit each other")
        return cls(classes, embedding, means, inside, features, label, apart, same)

    def arrays(self) -> dict[str, Array]:
        text = json.dumps([vars(c) for c in self.classes], ensure_ascii=False, sort_keys=True).encode()
        return {
            "classes": np.frombuffer(text, np.uint8),
            "embedding": self.embedding.astype(np.float16),
            "same": np.array([self.same], np.float32),
            "means": self.means.astype(np.float16),
            "inside": self.inside.astype(np.uint8),
            "features": self.features.astype(np.float16),
            "label": self.label.astype(np.int16),
            "apart": self.apart.astype(np.uint8),
        }

    def to_bytes(self) -> bytes:
        """bank.safetensors. The same bank gives the same bytes."""
        return bytes(save({n: np.ascontiguousarray(a) for n, a in sorted(self.arrays().items())}))

    @cached_property
    def domains(self) -> tuple[str, ...]:
        return tuple(sorted({c.domain for c in self.classes}))

    def of_domain(self, domain: str) -> list[int]:
        """Places of the classes of one domain."""
        return [i for i, c in enumerate(self.classes) if c.domain == domain]

    def samples(self, classes: Sequence[int], apart: bool) -> Array:
        """Rows of the samples of these classes, of the half that is kept apart or of the one that calibrates."""
        return np.flatnonzero(np.isin(self.label, list(classes)) & (self.apart == apart))


def build(
    classes: Sequence[BankClass],
    embedding: Array,
    features: Array,
    label: Array,
    means: Mapping[int, Array] | None = None,
    seed: int = 0,
    same: float = SAME_TEXT,
) -> Bank:
    """A bank from public statistics: every class is halved at random into calibration and kept apart.

    features [n, f], one lesion each; label [n]: place in classes; means: of the classes, by place, over many other lesions; else
    the half that calibrates gives them. Raises ValueError when a class has fewer
    than four samples or an id comes twice.
    """
    if len({c.id for c in classes}) != len(classes):
        raise ValueError("a class of the bank comes twice")
    random, apart = np.random.default_rng(seed), np.zeros(len(features), bool)
    for place, c in enumerate(classes):
        mine = np.flatnonzero(label == place)
        if len(mine) < _FEWEST:
            raise ValueError(f"class {c.id} of the bank has {len(mine)} samples, needs {_FEWEST}")
        apart[random.permutation(mine)[: len(mine) // 2]] = True
    known = means or {}
    rows = [known[i] if i in known else features[(label == i) & ~apart].mean(0) for i in range(len(classes))]
    inside = np.array([i not in known for i in range(len(classes))])
    return Bank(tuple(classes), embedding, np.stack(rows), inside, features, label, apart, same)


def same_text(rows: Array) -> float:
    """From unit embeddings [n, t] of n diseases' texts: the cosine above which two texts are taken for one disease.

    A seventh of the way from the nearest two of them to 1: with all-MiniLM-L6-v2 that is 0.94, by the shipped catalogue.
    """
    cosine = rows @ rows.T
    nearest = float(cosine[~np.eye(len(rows), dtype=bool)].max()) if len(rows) > 1 else SAME_TEXT
    return nearest + (1 - nearest) / 7
