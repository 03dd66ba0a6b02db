"""What lies between the lesion and a good picture: hairs, ink, a lens out of focus, JPEG. For the student's eyes, never the teacher's.

Drawn after the augmentation, from random sources of its own: with or without clutter, the pictures below it are the same bit for bit.
"""

import io
import itertools

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageDraw
from torch import Tensor

HAIR, INK, LENS, JPEG = 0.5, 0.25, 0.4, 0.25  # chances in a cluttered picture; hair where none fell
_FINE = 3  # strokes are drawn so many times larger, for soft edges
_INKS = ((0.25, 0.2, 0.6), (0.15, 0.3, 0.7), (0.2, 0.55, 0.35), (0.2, 0.2, 0.2), (0.6, 0.2, 0.25))  # light let through


def clutter_random(seed: int, stage: int, step: int) -> np.random.Generator:
    """The random source of one step's clutter; another than those of `pool.step_random`."""
    return np.random.default_rng([seed, stage, step, 1])


def clutter(x: Tensor, share: float, random: np.random.Generator) -> Tensor:
    """Images [n, 3, s, s] in -1..1, about `share` of them cluttered, the others as they are; `x` itself when share is 0."""
    if not share:
        return x
    out = x.clone()
    for place in np.flatnonzero(random.random(len(x)) < share):
        out[place] = _cluttered(x[place], random)
    return out


def _cluttered(x: Tensor, random: np.random.Generator) -> Tensor:
    hair, ink, lens, jpeg = random.random(4) < (HAIR, INK, LENS, JPEG)
    pixels = ((x.cpu() + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    if ink:
        image = _inked(image, random)
    if hair or not (ink or lens or jpeg):
        image = _haired(image, random)
    if lens:
        image = _defocused(image, random)
    if jpeg:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=int(random.integers(12, 51)), subsampling=int(random.integers(3)))
        image = Image.open(data)
    found = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1)
    return (found.float() / 127.5 - 1).to(x.device)


def _curve(
    middle: npt.NDArray[np.float64], angle: float, length: float, bend: float, points: int = 12
) -> npt.NDArray[np.float64]:
    """A quadratic Bezier curve [points, 2]: its middle control point lies `bend` lengths beside the chord."""
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    a, b, c = middle - along * length / 2, middle + across * bend * length, middle + along * length / 2
    t = np.linspace(0, 1, points)[:, None]
    return np.asarray((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c)


def _haired(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """2 to 30 hairs of one colour, fair to black, that lie alike and taper."""
    side = image.width * _FINE
    veil = Image.new("L", (side, side))
    pen = ImageDraw.Draw(veil)
    lie, spread, thick = random.uniform(0, np.pi), random.uniform(0.1, 1.2), random.uniform(0.005, 0.018)
    opacity = int(random.uniform(140, 250))
    for _ in range(round(float(np.exp(random.uniform(np.log(2), np.log(30)))))):
        curve = _curve(
            random.uniform(0, side, 2),
            random.normal(lie, spread),
            random.uniform(0.2, 1.4) * side,
            random.normal(0, 0.15),
        )
        width = thick * random.uniform(0.6, 1.4) * side
        for i, (a, b) in enumerate(itertools.pairwise(curve)):
            pen.line([*a, *b], opacity, max(1, round(width * (1 - 0.05 * i))))
    tone = random.uniform(10, 190) * np.array([1.0, random.uniform(0.7, 0.95), random.uniform(0.5, 0.9)])
    out = image.copy()
    out.paste((int(tone[0]), int(tone[1]), int(tone[2])), mask=veil.reduce(_FINE))
    return out


def _inked(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """One to four strokes of a pen through which the skin is seen, or as many dotted lines."""
    side = image.width * _FINE
    sheet = Image.new("RGB", (side, side), (255, 255, 255))
    pen, light = ImageDraw.Draw(sheet), np.array(_INKS[random.integers(len(_INKS))]) * random.uniform(0.8, 1.4)
    colour = (int(255 * light[0]), int(255 * light[1]), int(255 * light[2]))
    width, dotted = random.uniform(0.012, 0.05) * side, random.random() < 0.3
    for _ in range(random.integers(1, 5)):
        curve = _curve(
            random.uniform(0, side, 2),
            random.uniform(0, np.pi),
            random.uniform(0.15, 0.9) * side,
            random.normal(0, 0.3),
        )
        if dotted:
            for x, y in curve[::2]:
                pen.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], colour)
        else:
            pen.line([(x, y) for x, y in curve], colour, round(width), joint="curve")
    return ImageChops.multiply(image, sheet.reduce(_FINE))


def _defocused(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """The light of a point spread evenly over an ellipse: a lens out of focus (a disc), and moved while it took the picture."""
    radius, squeeze, angle = (
        random.uniform(0.006, 0.035) * image.width,
        random.uniform(0.5, 1),
        random.uniform(0, np.pi),
    )
    reach = int(np.ceil(radius))
    line = np.arange(-reach, reach + 1)
    u = np.cos(angle) * line[None] + np.sin(angle) * line[:, None]
    v = np.cos(angle) * line[:, None] - np.sin(angle) * line[None]
    inside = np.clip(radius + 0.5 - np.hypot(u, v / squeeze), 0, 1)
    kernel = torch.from_numpy(inside / inside.sum()).float().expand(3, 1, -1, -1)
    x = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).float()
    found = F.conv2d(F.pad(x[None], [reach] * 4, mode="reflect"), kernel, groups=3)[0]
    return Image.fromarray(found.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
