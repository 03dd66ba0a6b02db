"""Who holds which patients: three sites with two cohorts each, and held-out patients that no site has.

Two diseases lie in the sites, each in two of them; a third lies nowhere. The patients of the held diseases are cut in halves: one
half goes to the sites, the other half is tested. Of the third disease the same share is tested. Patients never cross a cut.
"""

import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sgps.draw import PRESETS, draw_camera, draw_patient
from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.images import decode

SITES = ("north", "south", "west")
COHORTS = ("first", "second")
DRAWN = ("drawn-coral-squamoma", "drawn-motley-polychroma", "drawn-sable-radiatoma")
# Of each disease, before the cut: 84 at the sites, where epsilon 3 keeps most of the gain (`sgps-client forecast`).
DRAWN_PATIENTS = (168, 168, 96)
SKIN = ("akiec", "vasc", "df")
HOLDERS = ((0, 1), (1, 2), ())  # sites that hold each disease: the first two of them, and nobody
_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png")


@dataclass(frozen=True)
class Picture:
    """One image of one patient. name: without suffix, as tables have it. read: its bytes."""

    name: str
    patient: str
    disease: str
    read: Callable[[], bytes]

    def image(self) -> Image.Image:
        return decode(self.read(), self.name)


@dataclass(frozen=True)
class World:
    """source: folder or zip with every picture, as site.yaml names it. tables: (site, cohort) -> CSV. The table of `held_out`
    lists the tested patients. diseases: catalogue ids; the last one lies nowhere."""

    source: Path
    title: str
    diseases: tuple[str, str, str]
    tables: dict[tuple[str, str], Path]
    patients: dict[tuple[str, str], dict[str, int]]
    at_sites: tuple[Picture, ...]
    held_out: tuple[Picture, ...]
    held_out_table: Path


def build(folder: Path, data: Path | None, diseases: tuple[str, str, str] | None, seed: int = 0) -> World:
    """Deal patients to sites and write the tables into `folder`. data: none for drawn lesions, else a zip or folder of class
    folders, with a table of patients where there is one. Raises InputError when a disease has too few patients.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if data is None:
        source, title, chosen = folder / "pictures", "drawn lesions", DRAWN
        pictures = _draw(source, seed)
    else:
        source, title, chosen = data.resolve(), data.name, diseases or SKIN
        pictures = [p for p in _read(source) if p.disease in chosen]
    rng, held_out = np.random.default_rng(seed), list[str]()
    shares: dict[tuple[str, str], set[str]] = {}
    for disease, holders in zip(chosen, HOLDERS, strict=True):
        patients = sorted({p.patient for p in pictures if p.disease == disease})
        if len(patients) < 16:
            raise InputError(
                f"{len(patients)} patients of {disease!r}, the demo needs 16",
                where=source,
                do="name others with --diseases",
            )
        order = rng.permutation(patients).tolist()
        held_out += order[len(order) // 2 :]
        cells = [(SITES[s], cohort) for cohort in COHORTS for s in holders]
        for place, patient in enumerate(order[: len(order) // 2] if cells else []):
            shares.setdefault(cells[place % len(cells)], set()).add(patient)
    tables = {key: _table(folder / f"{key[0]}-{key[1]}.csv", pictures, shares[key]) for key in sorted(shares)}
    given = set().union(*shares.values())
    return World(
        source,
        title,
        chosen,
        tables,
        {
            k: {d: len({p.patient for p in pictures if p.patient in v and p.disease == d}) for d in chosen}
            for k, v in shares.items()
        },
        tuple(p for p in pictures if p.patient in given),
        tuple(p for p in pictures if p.patient in set(held_out)),
        _table(folder / "held-out.csv", pictures, set(held_out)),
    )


def _table(path: Path, pictures: list[Picture], patients: set[str]) -> Path:
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(("image_id", "patient_id", "diagnosis"))
    table.writerows((p.name, p.patient, p.disease) for p in pictures if p.patient in patients)
    write_atomic(path, out.getvalue().encode())
    return path


def _draw(folder: Path, seed: int) -> list[Picture]:
    """Every site has a camera of its own in real life; which one took a patient's picture does not depend on the disease."""
    folder.mkdir(exist_ok=True)
    cameras, rng, out = [draw_camera(seed + c) for c in range(4)], np.random.default_rng([seed, 1]), []
    for disease, patients in zip(DRAWN, DRAWN_PATIENTS, strict=True):
        for number in range(patients):
            patient, camera = f"{disease}-{number:03d}", cameras[int(rng.integers(len(cameras)))]
            views = draw_patient(PRESETS[disease], 10_000 * seed + number, views=int(rng.integers(1, 3)), camera=camera)
            for view, pixels in enumerate(views):
                path, data = folder / f"{patient}-{view}.jpg", io.BytesIO()
                Image.fromarray(pixels).save(data, "JPEG", quality=92)
                path.write_bytes(data.getvalue())
                out.append(Picture(path.stem, patient, disease, path.read_bytes))
    return out


def _read(source: Path) -> Iterator[Picture]:
    """Class folders in a zip or folder; a CSV beside them with image_id and lesion_id or patient_id names the patients."""
    if not source.exists():
        raise InputError("does not exist", where=source, do="give a zip or a folder of class folders")
    if source.is_dir():
        files = {p.relative_to(source).as_posix(): p.read_bytes for p in sorted(source.rglob("*")) if p.is_file()}
        yield from _pictures(files, source)
        return
    try:
        archive = zipfile.ZipFile(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(
            "is neither a folder nor a zip", where=source, do="give a zip or a folder of class folders"
        ) from error
    yield from _pictures({n: _member(archive, n) for n in sorted(archive.namelist()) if not n.endswith("/")}, source)


def _member(archive: zipfile.ZipFile, name: str) -> Callable[[], bytes]:
    return lambda: archive.read(name)


def _pictures(files: dict[str, Callable[[], bytes]], source: Path) -> Iterator[Picture]:
    files = {n: read for n, read in files.items() if not any(p.startswith((".", "__MACOSX")) for p in n.split("/"))}
    rows: dict[str, dict[str, Any]] = {}
    for table in (n for n in files if n.lower().endswith(".csv")):
        for row in csv.DictReader(io.StringIO(files[table]().decode("utf-8-sig"))):
            if name := row.get("image_id") or row.get("isic_id"):
                rows[name] = row
    for name in (n for n in files if n.lower().endswith(_SUFFIXES)):
        path = Path(name)
        row = rows.get(path.stem, {})
        patient = row.get("patient_id") or row.get("lesion_id") or path.stem
        disease = row.get("dx") or row.get("diagnosis") or path.parent.name
        yield Picture(path.stem, patient, disease, files[name])
