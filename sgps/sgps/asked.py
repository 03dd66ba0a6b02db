"""What a classifier is asked for: each disease, completed from catalogue and class memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from sgps.catalogue import Catalogue, Embeds, Entry
from sgps.errors import InputError
from sgps.memory import Memory
from sgps.record import Disease

Array = NDArray[Any]
_NEAREST = 3  # catalogue entries that are offered for an unknown name


@dataclass(frozen=True)
class Asked:
    """One disease."""

    key: str
    entry: Entry | None
    text: str
    images: Sequence[Image]
    own: Array
    place: int | None  # in the class memory
    row: Array  # coordinates divided by the radius
    worth: float

    @property
    def names(self) -> tuple[str, ...]:
        return (self.key, *(self.entry.names if self.entry else ()))

    @property
    def shots(self) -> int:
        return len(self.images) + len(self.own)


def complete(
    exemplars: Mapping[str, Sequence[Image]],
    texts: Mapping[str, str],
    own: Mapping[str, Array],
    catalogue: Catalogue,
    memory: Memory,
    width: int,
) -> list[Asked]:
    """The diseases in an order of their own, so that the caller's order cannot change a number. width: of features.

    Raises InputError for missing pictures or texts, a text or own patients of no disease, or one disease under two names.
    """
    if not exemplars:
        raise InputError("no disease was asked for", where="exemplars", do="give a disease and its picture")
    for name, given in (("texts", texts), ("own patients", own)):
        if stray := sorted(set(given) - set(exemplars)):
            raise InputError(f"{stray[0]} has no exemplar", where=name, do="use the names of the exemplars")
    out: list[Asked] = []
    seen: dict[str, str] = {}
    for key, images in exemplars.items():
        entry = catalogue.find(key)
        if not key.strip() or not images:
            raise InputError("needs a name and at least one picture", where=key or "exemplars", do="give an exemplar")
        if entry is not None and (twin := seen.setdefault(entry.id, key)) != key:
            raise InputError(f"is the same disease as {twin}", where=key, do="give their pictures under one name")
        text = (texts.get(key) or (entry.text if entry else "")).strip()
        if not text:
            near = ", ".join(f"{e.name} ({e.id})" for e in catalogue.nearest(key, _NEAREST))
            do = f"describe it in a sentence; nearest entries: {near}"
            raise InputError("is not in the catalogue and has no clinical text", where=key, do=do)
        patients = np.asarray(own.get(key, np.zeros((0, width))))
        if patients.ndim != 2 or patients.shape[1] != width or not np.isfinite(patients).all():
            do = "encode them with the network of this release"
            raise InputError("are not features of this release's base network", where=f"own patients of {key}", do=do)
        place = memory.ids.index(entry.id) if entry and entry.id in memory.ids else None
        worth = 0.0 if place is None else memory.worth(place)
        row = np.zeros(len(memory.coordinates.directions)) if place is None else memory.row(place)
        out.append(Asked(key, entry, text, images, patients, place, row / memory.coordinates.radius, worth))
    return sorted(out, key=lambda d: d.key)


def remarks(d: Asked, catalogue: Catalogue, reader: Embeds) -> list[str]:
    """What a person should know of how it was found. reader: of texts."""
    if d.entry is None:
        by_name = catalogue.nearest(d.key, 1)
        by_text = catalogue.nearest(f"{d.key}. {d.text}", _NEAREST, reader)
        near = ", ".join(f"{e.name} ({e.id})" for e in {e.id: e for e in (*by_name, *by_text)}.values())
        return [f"{d.key} is not in the catalogue: no row of the class memory was used; nearest entries: {near}"]
    if d.worth == 0:
        return [f"the class memory holds nothing certain about {d.key}: {_alone(d)}"]
    return [f"the class memory knows {d.key}: its row counts as {d.worth:.1f} patients beside {d.shots}"]


def _alone(d: Asked) -> str:
    if len(d.own):
        return f"{subject(len(d.images))} and own patients stand alone"
    return f"{subject(len(d.images), 'stand')} alone"


def subject(exemplars: int, verb: str = "") -> str:
    """`the exemplar looks` or `the exemplars look`; without a verb the noun alone."""
    noun, verb = ("the exemplar", verb and f"{verb}s") if exemplars == 1 else ("the exemplars", verb)
    return f"{noun} {verb}".rstrip()


def disease(d: Asked) -> Disease:
    """As the classifier's record names it."""
    known = d.entry.id if d.entry else None
    return Disease(label=d.key, id=known, text=d.text, exemplars=len(d.images), own=len(d.own), worth=d.worth)
