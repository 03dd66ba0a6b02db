"""Drawn lesions as a public image set: one class for each profile, one picture for each patient."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sgps.draw import draw_patient, draw_profile
from sgps.pretrain.recipe import Draw

Row = tuple[str, str, str, str]  # name, label, lesion, body site


def draw_images(settings: Draw, size: int) -> tuple[list[Row], Callable[[int], npt.NDArray[np.uint8]]]:
    """Rows of the set, and a function that draws the picture of a row: uint8 (size, size, 3).

    Patient p of profile s has the seed 1,000,000 + 1,000 s + p.
    """
    seeds = range(settings.first, settings.first + settings.profiles)
    profiles = {seed: draw_profile(seed) for seed in seeds}
    plan = [(seed, patient) for seed in seeds for patient in range(settings.patients)]

    def picture(place: int) -> npt.NDArray[np.uint8]:
        seed, patient = plan[place]
        drawn: npt.NDArray[np.uint8] = draw_patient(
            profiles[seed], 1_000_000 + 1_000 * seed + patient, views=1, size=size
        )[0]
        return drawn

    return [(f"drawn-{s:04d}/{p}", f"drawn-{s:04d}", f"{s}-{p}", "") for s, p in plan], picture
