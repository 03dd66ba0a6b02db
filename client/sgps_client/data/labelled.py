"""Pictures with their unit (patient or lesion) and label, from class folders or from a table. Faults are grouped, not raised."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sgps.errors import InputError
from sgps.files import read_limited
from sgps.images import left_out
from sgps_client.data.pictures import picture_names
from sgps_client.data.sources import Source
from sgps_client.data.table import BYTES_LIMIT, Row, Table, composed, counted, grouped, read_table

_RENAME = "a picture has one class; rename it if it is another picture"
FILE_NAME = "file name"  # as unit column: each picture is taken for a patient of its own


@dataclass(frozen=True, order=True)
class Picture:
    """One picture of a source: the unit it belongs to (patient or lesion), its name in the source, its label, its table row."""

    unit: str
    name: str
    label: str
    row: int = 0


@dataclass(frozen=True)
class Labelled:
    """pictures: sorted, free of the faults in `problems`. notes: what was left out on purpose and what the unit means."""

    pictures: tuple[Picture, ...]
    unit_column: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def read_labelled(
    source: Source,
    table: str | None = None,
    *,
    folder: Path = Path(),
    unit_column: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Labelled:
    """Without a table: class folders, each picture its own unit. With one: a file below `folder`, else the very one of this path
    in the source, which a note then says.

    Without a unit column, class folders may hold different pictures of the same name; with `file name` written as the unit that is
    a problem, because it may be one patient in two records.

    A row finds its picture by path, by file name or by file name without suffix. Raises InputError when there is no such table,
    it lacks a column, or a unit column is asked for without a table.
    """
    names, left = picture_names(source), left_out(source.names)
    if table is None:
        if unit_column not in (None, FILE_NAME):
            raise InputError(f"has no column {unit_column!r}", where=source.path, do="give the table that has it")
        found, beside = _folders(names, strict=unit_column == FILE_NAME), tables(source)
        found = replace(found, notes=(*found.notes, *left))
        if not beside:
            return found
        if names and not found.pictures and not any(len(PurePosixPath(name).parts) > 1 for name in names):
            raise InputError(
                "has no class folders", where=source.path, do=f"name the table that lies in it: {beside[0]}"
            )
        return replace(
            found, notes=(*found.notes, f"{beside[0]} lies beside the pictures and is not used: no table is named")
        )
    inside = table in source.names and not (folder / table).exists()
    where = source.where(table) if inside else str(folder / table)
    data = source.read(table, BYTES_LIMIT) if inside else _on_disk(source, folder / table)
    content = read_table(data, where, unit_column=unit_column, image_column=image_column, label_column=label_column)
    found = _rows(names, content)
    found = replace(found, notes=(*found.notes, *left))
    return replace(found, notes=(f"the table is {where}", *found.notes)) if inside else found


def tables(source: Source) -> list[str]:
    """Names of the tables that lie in a source."""
    return [name for name in source.names if PurePosixPath(name).suffix.lower() in {".csv", ".tsv"}]


def _on_disk(source: Source, table: Path) -> bytes:
    if table.exists():
        return read_limited(table, BYTES_LIMIT)
    beside = tables(source)
    do = f"name it as {beside[0]} to use the one in {source.path}" if beside else "correct the path of the table"
    raise InputError("does not exist", where=table, do=do)


def _folders(names: Sequence[str], strict: bool) -> Labelled:
    paths = [PurePosixPath(name) for name in names]
    loose = sum(len(p.parts) < 2 for p in paths)  # without a name: an evaluation repeats the line
    problems = [f"{counted(loose, 'picture')} in no class folder - move into one"] if loose else []
    kept = [p for p in paths if len(p.parts) > 1]
    if strict:
        held = Counter(p.name for p in kept)
        kept = [p for p in kept if held[p.name] == 1]
        if twice := sorted(name for name, count in held.items() if count > 1):
            problems.append(f"{counted(len(twice), 'file name')} in two folders (first: {twice[0]}) - {_RENAME}")
    pictures = sorted(Picture(p.name if strict else p.as_posix(), p.as_posix(), composed(p.parent.name)) for p in kept)
    return Labelled(
        tuple(pictures), FILE_NAME, tuple(problems), ("no patient ids: each picture counts as one patient",)
    )


def _rows(names: Sequence[str], table: Table) -> Labelled:
    """Rows with a fault are left out and named; what is left has one unit and one label for each picture."""
    problems, unit = list(table.problems), table.unit_column
    problems += grouped(f"no {unit}", [r.number for r in table.rows if not r.unit], "fill it in or remove the rows")
    problems += grouped("no diagnosis", [r.number for r in table.rows if not r.label], "fill it in or remove the rows")
    rows = [r for r in table.rows if r.unit and r.label]

    by_name: dict[str, list[str]] = defaultdict(list)
    for name in names:
        path = PurePosixPath(composed(name))
        stem = path.name if path.suffix[1:].isdecimal() else path.stem  # 1.2.840.7 is not 1.2.840
        for key in {str(path), path.name, stem}:
            by_name[key].append(name)
    found = {r.number: by_name.get(r.image, []) for r in rows}
    problems += grouped(
        "picture not found", [n for n, hits in found.items() if not hits], "add the files or remove the rows"
    )
    several = [n for n, hits in found.items() if len(hits) > 1]
    problems += grouped("several pictures of that name", several, "write the path in the table")
    rows = [r for r in rows if len(found[r.number]) == 1]

    rows, more = _consistent(rows, {r.number: found[r.number][0] for r in rows}, unit)
    pictures = sorted(Picture(r.unit, found[r.number][0], r.label, r.number) for r in rows)
    notes, idle = list(table.notes), len(names) - len({hits[0] for hits in found.values() if len(hits) == 1})
    if idle:
        notes.append(f"{counted(idle, 'picture')} without a row in the table: not used")
    return Labelled(tuple(pictures), unit, tuple(problems + more), tuple(notes))


def _consistent(rows: Sequence[Row], name: dict[int, str], unit: str) -> tuple[list[Row], list[str]]:
    """Drop every row of a picture or lesion that contradicts itself, and repeated rows; say which."""
    of_picture: dict[str, list[Row]] = defaultdict(list)
    of_lesion: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of_picture[name[row.number]].append(row)
        if row.lesion:
            of_lesion[row.lesion].append(row)
    diagnoses = {r.number for same in of_picture.values() if len({r.label for r in same}) > 1 for r in same}
    units = {r.number for same in of_picture.values() if len({r.unit for r in same}) > 1 for r in same}
    patients = {
        r.number for same in of_lesion.values() if len({r.patient for r in same if r.patient}) > 1 for r in same
    }
    contradicting = diagnoses | units | patients
    repeated = {r.number for same in of_picture.values() for r in same[1:]} - contradicting
    problems = [
        *grouped("two diagnoses for one picture", diagnoses, "keep the right one"),
        *grouped(f"two values of {unit} for one picture", units - patients, "keep the right one"),
        *grouped("two patients for one lesion", patients, "a lesion belongs to one patient; correct the ids"),
        *grouped("the same picture again", repeated, "remove the repeated rows"),
    ]
    return [r for r in rows if r.number not in contradicting | repeated], problems
