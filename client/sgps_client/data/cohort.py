"""A cohort of site.yaml as records: patients, and for each the pictures with their catalogue classes."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from sgps.catalogue import Catalogue
from sgps.errors import ConfigError, InputError
from sgps.images import left_out
from sgps_client.config import Cohort
from sgps_client.data.labelled import FILE_NAME, Picture, read_labelled
from sgps_client.data.pictures import read_picture
from sgps_client.data.sources import Source, open_source
from sgps_client.data.table import counted

LEFT_OUT = "none"  # in place of a catalogue id: pictures with this label are not used


@dataclass(frozen=True)
class Records:
    """Patients of one cohort. Nothing is decoded before a picture is asked for.

    patients: sorted. problems: one line each for what does not fit and is left out; a person should mend it before the cohort is
    used. notes: what was left out on purpose, and what the unit means. unit_column: which column names the patient. labels: the site's
    own, as they stand in the data.
    """

    patients: list[str]
    problems: list[str]
    notes: list[str]
    unit_column: str
    labels: frozenset[str]
    _source: Source
    _pictures: Mapping[str, Sequence[tuple[str, str]]]

    def images(self, patient: str) -> list[tuple[str, Callable[[], Image.Image]]]:
        """(catalogue id, reader) of each picture of a patient, sorted by name. A reader raises InputError on a bad picture."""
        return [(label, partial(read_picture, self._source, name)) for name, label in self._pictures[patient]]

    def where(self, patient: str) -> str:
        """How an error names the first picture of a patient."""
        return self._source.where(self._pictures[patient][0][0])

    def classes(self) -> dict[str, int]:
        """Catalogue id -> number of patients who have it."""
        ids = [label for pictures in self._pictures.values() for label in {label for _, label in pictures}]
        return {label: ids.count(label) for label in sorted(set(ids))}


def open_cohort(cohort: Cohort, folder: Path, classes: Mapping[str, str], catalogue_ids: Sequence[str]) -> Records:
    """folder: of site.yaml. classes: the site's labels -> catalogue ids, or LEFT_OUT; a label that equals an id needs no entry.

    Raises InputError when pictures or table cannot be read at all, ConfigError when class folders are given without
    `unit_column: file name`.
    """
    source = open_source(folder / cohort.images)
    if cohort.table is None and cohort.unit_column != FILE_NAME:
        raise ConfigError(
            "class folders have no patient ids",
            where=f"cohort {cohort.name}",
            do=f"give a table, or write `unit_column: {FILE_NAME}`, which makes each picture a patient and says so",
        )
    labelled = read_labelled(
        source,
        cohort.table,
        folder=folder,
        unit_column=cohort.unit_column,
        image_column=cohort.image_column,
        label_column=cohort.label_column,
    )
    if not labelled.pictures and not labelled.problems:
        raise InputError(
            "; ".join(["holds no picture", *left_out(source.names)]), where=source.path, do="check the path"
        )
    known = {i.casefold(): i for i in catalogue_ids}
    pictures: dict[str, list[tuple[str, str]]] = {}
    unknown: dict[str, list[Picture]] = {}
    left: Counter[str] = Counter()
    for picture in labelled.pictures:
        label = classes.get(picture.label, known.get(picture.label.casefold(), ""))
        if label == LEFT_OUT:
            left[picture.label] += 1
        elif label in known.values():
            pictures.setdefault(picture.unit, []).append((picture.name, label))
        else:
            unknown.setdefault(picture.label, []).append(picture)
    lines = [_unknown(label, unknown[label], classes.get(label), catalogue_ids) for label in sorted(unknown)]
    notes = [f"left out, as `classes:` says: {counted(left[x], 'picture')} of {x!r}" for x in sorted(left)]
    problems = [*labelled.problems, *lines]
    labels = frozenset(picture.label for picture in labelled.pictures)
    return Records(
        sorted(pictures), problems, [*labelled.notes, *notes], labelled.unit_column, labels, source, pictures
    )


def _unknown(label: str, pictures: Sequence[Picture], given: str | None, ids: Sequence[str]) -> str:
    """given: what `classes:` says of the label."""
    rows = sorted(p.row for p in pictures)
    first = f"first row {rows[0]}" if rows[0] else f"first {pictures[0].name}"
    entry = Catalogue.load().find(label)
    name = f"'{label}'" if re.search(r"[^\w .()/+-]", label) else label
    do = f"write `{name}: {entry.id if entry and entry.id in ids else 'ID'}` under `classes:` (`sgps-client classes` lists ids), or `{name}: {LEFT_OUT}` to leave it out"
    what = f"unknown class {label!r}" if given is None else f"{label!r} is no class: {given!r} is no id of the release"
    return f"{what}: {counted(len(pictures), 'picture')} ({first}) - {do}"
