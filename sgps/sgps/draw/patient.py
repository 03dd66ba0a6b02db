"""A patient: one lesion of a class, seen in one to three views."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from sgps.draw.camera import Camera, Pixels, take
from sgps.draw.canvas import REACH, generator
from sgps.draw.lesion import MIRRORS, Lesion, centre, network, outline, pigment, skin, structureless
from sgps.draw.profile import Profile, sampled_attributes
from sgps.draw.strokes import carcinoma_signs, globules, keratin, lacunae, streaks
from sgps.draw.vessels import vessels
from sgps.errors import InputError

_LESION_STREAM: Final = 4
_VIEW_STREAM: Final = 5
_OUTLINE_STREAM: Final = 8
_LAYER_STREAM: Final = 9
_LAYERS: Final = (
    pigment,
    structureless,
    network,
    globules,
    streaks,
    centre,
    lacunae,
    carcinoma_signs,
    vessels,
    keratin,
)


@dataclass(frozen=True)
class Patient:
    """One patient of a class; the same seed is the same lesion in every view."""

    profile: Profile
    seed: int

    @property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """What this patient's lesion really shows: group -> values."""
        return sampled_attributes(self.profile, self.seed)

    def sheet(self, size: int) -> Pixels:
        """The lesion on skin, [s, s, 3] uint8, before any camera; s covers more than a picture of ``size`` pixels."""
        truth = self.attributes
        rng = generator(_LESION_STREAM, self.profile.key, self.seed)
        side = round(size * 2 * REACH)
        radius = float(np.clip(rng.normal(self.profile.size, self.profile.size_spread), 0.17, 0.39))
        drift = rng.normal(0, 0.02, 3)
        colours = {
            name: np.clip(np.array(mean) + drift + rng.normal(0, 0.025, 3), 0.02, 1).astype(np.float32)
            for name, mean in self.profile.palette.items()
        }
        ground = skin(rng, side)
        # Skin-coloured is relative: mostly this patient's own skin.
        colours["skin"] = 0.3 * colours["skin"] + 0.7 * ground.mean((1, 2))
        edge = generator(_OUTLINE_STREAM, self.profile.key, self.seed)
        depth, mask = outline(edge, side, radius, truth["symmetry"][0], truth["border"][0])
        lesion = Lesion(rng, truth, colours, radius, MIRRORS[truth["symmetry"][0]], ground, depth, mask)
        for i, layer in enumerate(_LAYERS):
            # A stream for each layer: exchanging one attribute leaves every other structure where it was.
            layer(replace(lesion, rng=generator(_LAYER_STREAM, self.profile.key, self.seed, i)))
        return np.ascontiguousarray((np.clip(ground, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))

    def views(self, count: int = 1, camera: Camera | None = None, size: int = 160) -> list[Pixels]:
        """``count`` (1 to 3) pictures [size, size, 3] uint8 of the one lesion, each with its own pose and light.

        Raises InputError for a count outside 1..3, a size outside 32..1024, or a negative seed.
        """
        if not 1 <= count <= 3:
            raise InputError("a patient has 1 to 3 views", where=f"views {count}")
        if not 32 <= size <= 1024:
            raise InputError("must be 32 to 1024 pixels", where=f"size {size}")
        if self.seed < 0:
            raise InputError("must be 0 or more", where=f"patient seed {self.seed}")
        sheet = self.sheet(size)
        seen = camera if camera is not None else Camera()
        return [take(sheet, seen, generator(_VIEW_STREAM, self.profile.key, self.seed, i), size) for i in range(count)]


def draw_patient(
    profile: Profile, seed: int, views: int = 1, camera: Camera | None = None, size: int = 160
) -> list[Pixels]:
    """Patient ``seed`` of a class: ``views`` pictures [size, size, 3] uint8. Errors as in ``Patient.views``."""
    return Patient(profile, seed).views(views, camera, size)
