"""What the camera adds: pose, light, lens, hair, ruler, gel, blur, JPEG. A site is one distribution over all of it.

Nothing here knows the class, so nuisance tells nothing about it.
"""

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from sgps.draw.canvas import REACH, Array, generator
from sgps.errors import InputError

_CAMERA_STREAM: Final = 3
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Camera:
    """A distribution over nuisance: chances in [0, 1], lengths in picture sides, gains as factors.

    ``cast``: mean gain of R, G, B; ``cast_spread``, ``exposure_spread``: standard deviations of log gains between views;
    ``exposure``: mean log gain; ``contrast``: factor around mid grey; ``vignette``: loss of light in the corners;
    ``ring``: chance of a black lens ring of radius ``ring_radius``; ``hair``: mean number of hairs; ``ruler``, ``bubbles``:
    chances; ``blur``: largest blur; ``jpeg``: lowest and highest quality; ``zoom``: lowest and highest magnification.
    Raises InputError when a chance is outside [0, 1] or a range is upside down.
    """

    id: str = "camera-default"
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cast_spread: float = 0.03
    exposure: float = 0.0
    exposure_spread: float = 0.06
    contrast: float = 1.0
    vignette: float = 0.12
    ring: float = 0.08
    ring_radius: float = 0.56
    hair: float = 1.8
    ruler: float = 0.08
    bubbles: float = 0.10
    blur: float = 0.004
    jpeg: tuple[int, int] = (80, 95)
    zoom: tuple[float, float] = (0.88, 1.12)

    def __post_init__(self) -> None:
        for name in ("ring", "ruler", "bubbles", "vignette"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be in [0, 1]", where=self.id)
        if min(self.hair, self.blur, self.cast_spread, self.exposure_spread) < 0:
            raise InputError("hair, blur and spreads must be 0 or more", where=self.id)
        if not 1 <= self.jpeg[0] <= self.jpeg[1] <= 100 or not 0.5 <= self.zoom[0] <= self.zoom[1] <= 2:
            raise InputError("jpeg must be a range in 1..100, zoom a range in 0.5..2", where=self.id)


def draw_camera(seed: int) -> Camera:
    """The random site number ``seed`` (0 or more). Raises InputError for a negative seed."""
    if seed < 0:
        raise InputError("must be 0 or more", where=f"camera seed {seed}")
    rng = generator(_CAMERA_STREAM, seed)
    cast = np.exp(rng.normal(0, 0.07, 3))
    low = float(rng.uniform(0.8, 1.0))
    quality = int(rng.integers(60, 90))
    return Camera(
        id=f"camera-{seed:04d}",
        cast=(float(cast[0]), float(cast[1]), float(cast[2])),
        cast_spread=float(rng.uniform(0.01, 0.05)),
        exposure=float(rng.normal(0, 0.10)),
        exposure_spread=float(rng.uniform(0.03, 0.10)),
        contrast=float(rng.uniform(0.85, 1.15)),
        vignette=float(rng.uniform(0.0, 0.4)),
        ring=float(rng.choice([0.0, 0.1, 0.9])),
        ring_radius=float(rng.uniform(0.50, 0.60)),
        hair=float(rng.uniform(0, 7)),
        ruler=float(rng.choice([0.0, 0.1, 0.5])),
        bubbles=float(rng.choice([0.0, 0.1, 0.5])),
        blur=float(rng.uniform(0.0, 0.009)),
        jpeg=(quality, min(97, quality + 12)),
        zoom=(low, low + float(rng.uniform(0.1, 0.3))),
    )


def _cut(sheet: Pixels, camera: Camera, rng: np.random.Generator, size: int) -> Image.Image:
    """Turn, zoom, shift and mirror: the picture [size, size] that this view shows of the sheet [s, s, 3]."""
    side = sheet.shape[0]
    pad = side // 6
    wide = np.pad(sheet, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    angle = rng.uniform(0, 2 * np.pi)
    per_pixel = side / (2 * REACH) / size / rng.uniform(*camera.zoom)
    flip = 1.0 if rng.random() < 0.5 else -1.0
    shift = rng.uniform(-0.05, 0.05, 2) * size
    a, b = np.cos(angle) * per_pixel, -np.sin(angle) * per_pixel
    d, e = np.sin(angle) * per_pixel * flip, np.cos(angle) * per_pixel * flip
    middle = wide.shape[0] / 2
    x0, y0 = size / 2 + shift[0], size / 2 + shift[1]
    matrix = (a, b, middle - a * x0 - b * y0, d, e, middle - d * x0 - e * y0)
    return Image.fromarray(wide).transform(
        (size, size), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC
    )


def _hairs(image: Image.Image, camera: Camera, rng: np.random.Generator) -> None:
    size = image.width
    count, shade = int(rng.poisson(camera.hair)), rng.uniform(0.0, 1.0)
    if count == 0:
        return
    veil = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(veil)
    t = np.linspace(-1, 1, 13)
    for _ in range(count):
        x, y = rng.uniform(0, 2 * size, 2)
        angle, bend, half = rng.uniform(0, np.pi), rng.normal(0, 0.14), rng.uniform(0.4, 1.6) * size
        u, v = t * half, bend * half * t * t
        points = np.stack([x + np.cos(angle) * u - np.sin(angle) * v, y + np.sin(angle) * u + np.cos(angle) * v], 1)
        draw.line(points.ravel().tolist(), fill=235, width=max(1, round(2 * size * rng.uniform(0.004, 0.010))))
    image.paste((int(30 + 80 * shade), int(22 + 48 * shade), int(18 + 30 * shade)), mask=veil.reduce(2))


def _ruler(image: Image.Image, rng: np.random.Generator) -> None:
    size = image.width
    draw = ImageDraw.Draw(image)
    step, start = size * rng.uniform(0.045, 0.07), rng.uniform(0, 0.05) * size
    far, upright = rng.random(2) < 0.5
    for i, at in enumerate(np.arange(start, size, step).tolist()):
        long = size * (0.075 if i % 5 == 0 else 0.04)
        a, b = (size - 1 - long, size - 1) if far else (0.0, long)
        draw.line((a, at, b, at) if upright else (at, a, at, b), fill=(35, 35, 40), width=max(1, size // 110))


def _bubbles(image: Image.Image, rng: np.random.Generator) -> None:
    size = image.width
    draw = ImageDraw.Draw(image)
    for x, y, r in (rng.random((int(rng.integers(2, 7)), 3)) * size).tolist():
        r = size * 0.015 + r * 0.04
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(238, 232, 226), width=max(1, size // 120))
        draw.ellipse((x - r * 0.5, y - r * 0.6, x - r * 0.2, y - r * 0.3), fill=(252, 250, 248))


def _light(image: Image.Image, camera: Camera, rng: np.random.Generator) -> Array:
    size = image.width
    picture = np.asarray(image, dtype=np.float32)
    gain = np.asarray(camera.cast) * np.exp(
        rng.normal(0, camera.cast_spread, 3) + camera.exposure + rng.normal(0, camera.exposure_spread)
    )
    picture = (picture - np.float32(128)) * np.float32(camera.contrast) + np.float32(128)
    picture *= gain.astype(np.float32)
    line = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size - np.float32(0.5)
    off = rng.normal(0, 0.04, 2).astype(np.float32)
    far = (line[None, :] - off[0]) ** 2 + (line[:, None] - off[1]) ** 2
    shadow = 1 - np.float32(2 * camera.vignette * rng.uniform(0.6, 1.4)) * far
    if rng.random() < camera.ring:
        # Soft over about two pixels; the ring sits in the lens, so it does not turn with the lesion.
        radius = camera.ring_radius * rng.uniform(0.97, 1.03)
        shadow *= np.clip((radius - np.sqrt(far)) * (size / 2), 0.04, 1.0).astype(np.float32)
    picture *= shadow[:, :, None]
    return picture


def take(sheet: Pixels, camera: Camera, rng: np.random.Generator, size: int) -> Pixels:
    """One view [size, size, 3] uint8 of a painted sheet [s, s, 3] uint8."""
    image = _cut(sheet, camera, rng, size)
    if camera.hair > 0:
        _hairs(image, camera, rng)
    if rng.random() < camera.ruler:
        _ruler(image, rng)
    if rng.random() < camera.bubbles:
        _bubbles(image, rng)
    blur = float(rng.uniform(0, camera.blur)) * size
    if blur > 0.15:
        image = image.filter(ImageFilter.BoxBlur(blur))
    lit = np.clip(_light(image, camera, rng), 0, 255).astype(np.uint8)
    held = io.BytesIO()
    quality = int(rng.integers(camera.jpeg[0], camera.jpeg[1] + 1))
    Image.fromarray(lit).save(held, "JPEG", quality=quality)
    return np.array(Image.open(held), dtype=np.uint8)
