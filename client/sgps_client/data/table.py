"""A CSV table of pictures with the columns of the ISIC archive, or columns named in the configuration."""

import csv
import io
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from sgps.errors import InputError

BYTES_LIMIT = 256 << 20
IMAGE_COLUMNS = ("isic_id", "image_id", "image", "image_name", "file", "file_name", "filename")
UNIT_COLUMNS = ("patient_id", "patient", "lesion_id")  # in this order: the patient protects more than the lesion
LABEL_COLUMNS = ("diagnosis", "dx", "label", "class")
PATIENT, LESION = "patient_id", "lesion_id"
_SHOWN = 3


@dataclass(frozen=True)
class Row:
    """One line of the table; `number` counts as a spreadsheet does, the header being row 1. Cells are stripped."""

    number: int
    image: str
    unit: str
    label: str
    lesion: str
    patient: str


@dataclass(frozen=True)
class Table:
    """Rows as they stand. problems: lines with a wrong number of cells, grouped."""

    rows: tuple[Row, ...]
    unit_column: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def composed(text: str) -> str:
    """One spelling of letters with marks (Unicode NFC): in names of files macOS writes ä as two characters."""
    return unicodedata.normalize("NFC", text)


def grouped(what: str, numbers: Iterable[int], do: str) -> list[str]:
    """One line for all rows with the same fault, with the first row numbers; none when there are none."""
    rows = sorted(numbers)
    if not rows:
        return []
    first = ", ".join(str(n) for n in rows[:_SHOWN]) + (", ..." if len(rows) > _SHOWN else "")
    return [f"{what}: {counted(len(rows), 'row')} ({first}) - {do}"]


def counted(n: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def read_table(
    data: bytes,
    where: object,
    *,
    unit_column: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Table:
    """UTF-8 CSV with commas, semicolons or tabs. A column that is not named is found among the archive's names.

    Raises InputError when it is not such a table or lacks a column; faults of single rows are `problems`.
    """
    try:
        text = composed(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", where=where, do="save it as CSV UTF-8") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [cell.strip() for cell in next(lines, [])]
        cells = [(number, [cell.strip() for cell in line]) for number, line in enumerate(lines, 2) if any(line)]
    except csv.Error as error:
        raise InputError(
            f"is not a CSV table: {error}", where=f"{where} line {lines.line_num}", do="save it as CSV UTF-8 again"
        ) from error
    if not any(header):
        raise InputError("is empty", where=where, do="give a table with one line for each picture")
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"has the column {twice!r} twice", where=where, do="rename or remove one")
    image = _column(header, image_column, IMAGE_COLUMNS, "image", where)
    unit = _column(header, unit_column, UNIT_COLUMNS, "unit", where)
    label = _column(header, label_column, LABEL_COLUMNS, "label", where)
    if not cells:
        raise InputError("has a header and no row", where=where, do="write one line for each picture below it")
    whole = [(number, dict(zip(header, line, strict=True))) for number, line in cells if len(line) == len(header)]
    rows = tuple(Row(n, c[image], c[unit], c[label], c.get(LESION, ""), c.get(PATIENT, "")) for n, c in whole)
    wrong = [number for number, line in cells if len(line) != len(header)]
    problems = grouped(f"not {len(header)} cells", wrong, "correct the rows")
    notes = []
    if unit == LESION and PATIENT in header:
        notes = [
            f"{LESION} is the unit although there is {PATIENT}: a patient with several lesions has several records"
        ]
    return Table(rows, unit, tuple(problems), tuple(notes))


def _column(header: list[str], wanted: str | None, known: tuple[str, ...], role: str, where: object) -> str:
    if wanted is not None:
        wanted = composed(wanted)
        if wanted not in header:
            raise InputError(
                f"has no column {wanted!r}", where=where, do=f"{role}_column: one of {', '.join(header)[:200]}"
            )
        return wanted
    found = next((name for name in known if name in header), None)
    if found is None:
        what = {"unit": "patient ids", "image": "image names", "label": "diagnoses"}[role]
        raise InputError(
            f"has no column with {what}", where=where, do=f"name it as {role}_column (looked for {', '.join(known)})"
        )
    return found
