"""Pictures of a zip or a folder of class folders, with the lesion or patient behind each where a table names it."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from sgps.errors import InputError
from sgps.images import SUFFIXES, decode
from sgps.pretrain.images import Source

Texts = NDArray[np.str_]
IMAGE = ("image_id", "isic_id", "img_id", "image", "image_name", "filename", "file_name", "file", "name", "id")
LABEL = ("dx", "diagnosis", "diagnostic", "label", "class", "target")
UNIT = ("patient_id", "lesion_id", "patient", "lesion", "case_id", "case")  # what one episode shows once


@dataclass(frozen=True)
class Listing:
    """name, label, lesion: text [n], sorted by name. A picture without a table is a lesion of its own."""

    source: Source
    name: Texts
    label: Texts
    lesion: Texts

    def image(self, row: int) -> Image:
        return decode(self.source.read(str(self.name[row])), f"{self.source.where} {self.name[row]}")


def listing(data: Path, classes: Sequence[str] = ()) -> Listing:
    """Raises InputError when `data` is neither a zip nor a folder of class folders.

    A CSV inside that names pictures (image_id, isic_id, ...) names the patient or lesion (patient_id, lesion_id, ...) and, where
    the folders do not hold `classes` or there is one folder only, the class (dx, diagnosis, ...).
    """
    if not data.is_dir() and not data.with_suffix(".zip").is_file():
        raise InputError("is neither a zip nor a folder", where=data, do="give a zip or folder of class folders")
    source = Source(data, ".") if data.is_dir() else Source(data.parent, data.stem)
    paths = [p for n in source.names if _is_picture(p := PurePosixPath(n))]
    rows = _table(source)
    found = [rows.get(p.name) or rows.get(p.stem) or {} for p in paths]
    folder = [p.parent.name for p in paths]
    told = [_first(row, LABEL) for row in found]
    by_folder = len(set(folder)) > 1 and set(classes) <= set(folder)
    if not by_folder and any(told):
        kept = [(str(p), label, row) for p, label, row in zip(paths, told, found, strict=True) if label]
    else:
        kept = [(str(p), name, row) for p, name, row in zip(paths, folder, found, strict=True) if name]
    if not kept:
        raise InputError("holds no picture in a class folder", where=data, do="give a zip or folder of class folders")
    columns = [(name, label, _first(row, UNIT) or name) for name, label, row in kept]
    return Listing(source, *(np.array(column, np.str_) for column in zip(*columns, strict=True)))


def public(data: Path) -> Listing:
    """`listing`, for what is published. Raises InputError also for the folder of a site."""
    if (data / "site.yaml").exists():
        raise InputError("is the folder of a site, whose pictures are private", where=data, do="name public pictures")
    return listing(data)


def _is_picture(path: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _table(source: Source) -> dict[str, dict[str, str]]:
    """Rows of every CSV inside by the name of their picture, as it is written there."""
    rows: dict[str, dict[str, str]] = {}
    for table in (n for n in source.names if n.lower().endswith(".csv") and "__MACOSX" not in n):
        text = source.read(table).decode("utf-8-sig", errors="replace")
        delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
        try:
            found = [*csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)]
        except csv.Error as error:
            where = f"{source.where}/{table}"
            raise InputError(f"is not a CSV table: {error}", where=where, do="save it as CSV UTF-8 again") from error
        for raw in found:
            row = {str(k).strip().lower(): str(v).strip() for k, v in raw.items() if k and v}
            if key := _first(row, IMAGE):
                rows[PurePosixPath(key).name] = row
    return rows


def _first(row: Mapping[str, str], columns: Sequence[str]) -> str:
    return next((row[c] for c in columns if row.get(c)), "")
