"""Drawn patients written as an ordinary image folder, so that they enter a site like any other data set."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from sgps.draw.camera import Camera
from sgps.draw.canvas import generator
from sgps.draw.patient import draw_patient
from sgps.draw.profile import Profile
from sgps.errors import InputError
from sgps.files import new_folder

_FOLDER_STREAM: Final = 7
_NUMBERS: Final = 1 << 20


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

    Other ``seed`` values give other patients of the same classes. The folder appears whole or not at all. Raises InputError
    when two profiles share an id, a number is out of range, or ``path`` exists.
    """
    folder = Path(path)
    ids = [p.id for p in profiles]
    if not ids or len(set(ids)) != len(ids):
        raise InputError("give at least one profile, each with an id of its own", where="profiles")
    if patients_per_class < 1 or seed < 0 or len(ids) * patients_per_class > _NUMBERS:
        raise InputError(
            f"patients_per_class must be at least 1, seed 0 or more, patients in all at most {_NUMBERS:,}",
            where=f"patients_per_class {patients_per_class}, seed {seed}",
        )
    # Drawn without replacement over all classes: a patient number names one person, as in a hospital.
    numbers = generator(_FOLDER_STREAM, seed).permutation(_NUMBERS).tolist()
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(("image_id", "patient", "dx"))
    with new_folder(folder) as work:
        for profile in profiles:
            (work / profile.id).mkdir()
            for _ in range(patients_per_class):
                number = numbers.pop()
                for v, picture in enumerate(draw_patient(profile, number, views, camera, size)):
                    name = f"D{number:07d}-{v}"
                    Image.fromarray(picture).save(work / profile.id / f"{name}.jpg", "JPEG", quality=95)
                    writer.writerow((name, f"P{number:07d}", profile.id))
        (work / "table.csv").write_text(table.getvalue(), encoding="utf-8", newline="")
    return folder
