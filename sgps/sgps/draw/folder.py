"""Drawn patients written as an ordinary image folder, so that they enter a site like any other data set."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sgps.draw.camera import Camera
from sgps.draw.canvas import generator
from sgps.draw.patient import draw_patient
from sgps.draw.profile import Profile

_FOLDER_STREAM = 7


def write_folder(
    path: str | os.PathLike[str],
    profiles: Sequence[Profile],
    patients_per_class: int,
    seed: int,
    camera: Camera | None = None,
    size: int = 160,
    views: int = 1,
) -> Path:
    """Write ``path/<class id>/<image id>.jpg`` and ``path/table.csv`` (image_id, patient, dx); returns ``path``.

    Patients of other ``seed`` values are other patients. The table comes last and by rename, so a folder that has one is
    whole. Raises ValueError when two profiles share an id or a number is out of range, FileExistsError when ``path`` already
    holds anything.
    """
    folder = Path(path)
    ids = [p.id for p in profiles]
    if not ids or len(set(ids)) != len(ids):
        raise ValueError("profiles: give at least one, each with an id of its own")
    if patients_per_class < 1 or seed < 0:
        raise ValueError(f"patients_per_class {patients_per_class}, seed {seed}: must be at least 1 and 0")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: the folder is not empty; give a new one")
    numbers = generator(_FOLDER_STREAM, seed).permutation(2**20)
    rows: list[tuple[str, str, str]] = []
    for c, profile in enumerate(profiles):
        (folder / profile.id).mkdir(parents=True, exist_ok=True)
        for p in range(patients_per_class):
            number = int(numbers[c * patients_per_class + p])
            for v, picture in enumerate(draw_patient(profile, number, views, camera, size)):
                name = f"D{number:07d}-{v}"
                Image.fromarray(picture).save(folder / profile.id / f"{name}.jpg", "JPEG", quality=95)
                rows.append((name, f"P{number:07d}", profile.id))
    part = folder / "table.csv.part"
    with part.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(("image_id", "patient", "dx"))
        writer.writerows(rows)
        out.flush()
        os.fsync(out.fileno())
    part.rename(folder / "table.csv")
    return folder
