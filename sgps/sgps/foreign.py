"""Whether a picture is of another kind than a classifier is for, an x-ray before a classifier of skin lesions. NumPy only.

A second head on the same features: classes of the bank that are of other kinds. With their logits made as those of the outputs are,

    another kind          max of the other kinds' logits - max of the outputs' logits > limit

The largest output alone does not tell: the length of a feature grows as its picture becomes stranger, so that an x-ray reaches the logits
of a lesion (at a threshold that 5 % of lesions miss, 2 % of x-rays missed it at one exemplar; by this rule all do at 1 %:
`python -m bench.judge --data DIR`).
"""

from collections.abc import Collection, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sgps.bank import Bank
from sgps.calibration import Share
from sgps.rivals import unit
from sgps.settings import Settings

Array = NDArray[Any]
RULE = "largest of `others` minus largest of `logits` above `limit`: another kind of picture"
LEVEL = 0.01  # at most this share of the pictures of an output's class that may be taken for another kind
_DRAWN = "drawn"  # no kind of picture that anybody takes


class Foreign(Settings):
    """ids: of the public classes. weight [C, f], bias [C]: their logits. limit: see above. measured: on public pictures that were kept apart, how many
    are taken for another kind, of the classifier's own kind first and then of each other."""

    ids: Annotated[tuple[str, ...], Field(min_length=1)]
    weight: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    limit: float
    measured: tuple[Share, ...]

    @model_validator(mode="after")
    def _fits(self) -> "Foreign":
        if not len(self.ids) == len(self.weight) == len(self.bias) or len({len(row) for row in self.weight}) != 1:
            raise ValueError("ids, weight and bias do not fit each other")
        return self

    @property
    def width(self) -> int:
        """f."""
        return len(self.weight[0])

    def found(self, features: Array, logits: Array) -> Array:
        """bool [n]. features [n, f] and logits [n, N] are averaged over views. A row's answer does not depend on the other rows."""
        others = np.asarray(features, np.float64) @ np.array(self.weight).T + np.array(self.bias)
        return np.asarray(others.max(1) - logits.max(1) > self.limit)


def classes(bank: Bank, kinds: Collection[str]) -> list[int]:
    """Places of the bank's classes of other kinds than these; drawn ones are none."""
    return [i for i, c in enumerate(bank.classes) if c.domain not in {*kinds, _DRAWN}]


def head(bank: Bank, places: Sequence[int], centre: Array, scale: float) -> tuple[Array, Array]:
    """Weight [C, f] and bias [C] of the classes' means, as those of a classifier's outputs."""
    weight = np.asarray(unit(bank.means[list(places)] - centre) * scale, np.float64)
    return weight, -weight @ np.asarray(centre, np.float64)


def made(
    bank: Bank,
    places: Sequence[int],
    domain: str,
    weight: Array,
    bias: Array,
    limit: float,
    outputs: tuple[Array, Array],
) -> Foreign:
    """places: of the classes whose head is `weight` and `bias`. outputs: weight [N, f] and bias [N] of the classifier."""
    unmeasured = Foreign(
        ids=tuple(bank.classes[i].id for i in places),
        weight=tuple(tuple(float(f"{w:.5g}") for w in row) for row in weight),
        bias=tuple(float(f"{b:.7g}") for b in bias),
        limit=float(f"{limit:.6g}"),
        measured=(),
    )
    measured = []
    for kind in dict.fromkeys((domain, *(bank.classes[i].domain for i in places))):
        members = bank.of_domain(kind) if kind == domain else [i for i in places if bank.classes[i].domain == kind]
        features = bank.features[bank.samples(members, apart=True)]
        hits = unmeasured.found(features, np.asarray(features @ outputs[0].T + outputs[1], np.float64))
        measured.append(Share.of(kind, int(hits.sum()), len(hits)))
    return unmeasured.model_copy(update={"measured": tuple(measured)})
