"""What hospitals do to a picture: another camera, crop, compression, hair, pen marks, rotation. Applied to queries, never to support.

Strengths were fixed before anything was measured. The same picture and shift give the same pixels.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from bench.pictures import Pictures

Shift = Callable[[Image.Image, np.random.Generator], Image.Image]
_VERSION = b"1"


def _gain(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A colour cast: each channel by 0.8 to 1.25."""
    factor = np.exp(random.uniform(-0.22, 0.22, 3))
    return Image.fromarray((np.asarray(image, np.float32) * factor).clip(0, 255).astype(np.uint8))


def _gamma(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Exposure: gamma 0.6 or 1.6, and contrast by 0.8."""
    power = random.choice([0.6, 1.6])
    bent = (255 * (np.asarray(image, np.float32) / 255) ** power).astype(np.uint8)
    return ImageEnhance.Contrast(Image.fromarray(bent)).enhance(0.8)


def _blur(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Out of focus: Gaussian of 1.5 % of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(0.015 * min(image.size)))


def _crop(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Nearer and off the middle: a window of 65 % of the shorter side, moved by up to 10 % of it."""
    side = min(image.size)
    edge = 0.65 * side
    x, y = (d / 2 + random.uniform(-0.1, 0.1) * side - edge / 2 for d in image.size)
    return image.crop((round(x), round(y), round(x + edge), round(y + edge)))


def _jpeg(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Saved at quality 10."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=10)
    return Image.open(io.BytesIO(data.getvalue())).convert("RGB")


def _hair(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Twelve dark bent strokes across the picture."""
    out, side = image.copy(), min(image.size)
    pen = ImageDraw.Draw(out)
    for _ in range(12):
        start, angle = random.uniform(0, 1, 2) * image.size, random.uniform(0, 2 * np.pi)
        bend, points = random.uniform(-0.15, 0.15), [start]
        for _ in range(12):
            angle += bend
            points.append(points[-1] + 0.07 * side * np.array([np.cos(angle), np.sin(angle)]))
        colour = tuple(int(c) for c in random.integers(15, 60) * np.array([1.0, 0.8, 0.7]))
        pen.line([tuple(p) for p in points], colour, max(1, round(0.009 * side)), joint="curve")
    return out


def _pen(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A violet arc of a skin marker around the middle, and a stroke."""
    out, side = image.copy(), min(image.size)
    pen, x, y = ImageDraw.Draw(out), image.width / 2, image.height / 2
    reach, width, start = 0.4 * side, max(1, round(0.03 * side)), random.uniform(0, 360)
    colour = (90, 50, 140)
    pen.arc([x - reach, y - reach, x + reach, y + reach], start, start + 140, colour, width)
    angle = np.deg2rad(start + 200)
    ends = [(x + r * side * np.cos(angle), y + r * side * np.sin(angle)) for r in (0.33, 0.5)]
    pen.line(ends, colour, width)
    return out


def _turn(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Turned by 20 to 70 degrees; the corners mirror the picture."""
    pixels, reach = np.asarray(image), min(image.size) // 2
    wide = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), "reflect")
    turned = Image.fromarray(wide).rotate(random.uniform(20, 70), Image.Resampling.BICUBIC)
    return turned.crop((reach, reach, reach + image.width, reach + image.height))


SHIFTS: dict[str, Shift] = {
    "colour": _gain,
    "gamma": _gamma,
    "blur": _blur,
    "crop": _crop,
    "jpeg": _jpeg,
    "hair": _hair,
    "pen": _pen,
    "rotation": _turn,
}


@dataclass(frozen=True)
class Shifted(Pictures):
    """The same pictures under one shift."""

    shift: str

    @classmethod
    def under(cls, pictures: Pictures, shift: str) -> "Shifted":
        return cls(pictures.source, pictures.name, pictures.label, pictures.lesion, shift)

    def image(self, row: int) -> Image.Image:
        seed = int.from_bytes(self.sha256(row)[:8], "little")
        return SHIFTS[self.shift](super().image(row), np.random.default_rng(seed))

    def sha256(self, row: int) -> bytes:
        return hashlib.sha256(super().sha256(row) + self.shift.encode() + _VERSION).digest()
