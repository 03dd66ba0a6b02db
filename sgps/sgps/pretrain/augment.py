"""Augmentation of a whole batch by one affine warp, mixing, and the evaluation view. Images are float, -1..1, (n, 3, h, w)."""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sgps.device import CPU


def to_float(pixels: npt.NDArray[np.uint8], device: torch.device = CPU) -> Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) with mean = std = 0.5, that is -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def centre_view(pixels: npt.NDArray[np.uint8], size: int) -> Tensor:
    """The evaluation view of uint8 (n, h, w, 3): the middle square, resized; float32 (n, 3, size, size) in -1..1."""
    x = to_float(pixels)
    h, w = x.shape[2:]
    s = min(h, w)
    top, left = (h - s) // 2, (w - s) // 2
    x = x[:, :, top : top + s, left : left + s]
    return F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def augment(
    x: Tensor, size: int, generator: torch.Generator, *, turn: bool, colour: float, area: tuple[float, float]
) -> Tensor:
    """Random square crop, turn and flip in one warp; then contrast, brightness, saturation and cast, (1 + colour) x as wide.

    area: least and most share of the middle square's area; turn: any angle, else at most 0.3 rad. generator: of the processor, so that
    another device makes the same picture.
    """
    n, _, height, width = x.shape

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return (torch.rand(*shape, generator=generator) * (high - low) + low).to(x.device)

    side = min(height, width) * draw(*area, n).sqrt()
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0).to(x.device)
    side_x = side * flip * draw(0.88, 1.14, n)
    shift_x = draw(-0.5, 0.5, n) * (width - side).clamp(min=0)
    shift_y = draw(-0.5, 0.5, n) * (height - side).clamp(min=0)
    angle = draw(-math.pi, math.pi, n) if turn else draw(-0.3, 0.3, n)
    cos, sin = angle.cos(), angle.sin()
    first = torch.stack([side_x * cos / width, -side * sin / width, 2 * shift_x / width], 1)
    second = torch.stack([side_x * sin / height, side * cos / height, 2 * shift_y / height], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), [n, 3, size, size], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    k = 1 + colour
    bright, contrast = draw(-0.15 * k, 0.15 * k, n, 1, 1, 1), 1 + draw(-0.2 * k, 0.2 * k, n, 1, 1, 1)
    saturation, cast = 1 + draw(-0.25 * k, 0.25 * k, n, 1, 1, 1), 1 + draw(-0.05 * k, 0.05 * k, n, 3, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * contrast + mean + bright
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * saturation
    return ((x + 1) * cast - 1).clamp(-1, 1)


def mix(x: Tensor, random: np.random.Generator) -> Tensor:
    """Paste a box of another image of the batch, or blend two. Teacher and student see the same picture."""
    other = x[torch.from_numpy(random.permutation(len(x)))]
    size = x.shape[-1]
    if random.random() < 0.5:
        side = int(size * random.uniform(0.3, 0.7))
        i, j = random.integers(0, size - side, 2)
        x = x.clone()
        x[:, :, i : i + side, j : j + side] = other[:, :, i : i + side, j : j + side]
        return x
    share = float(random.uniform(0.3, 0.7))
    return share * x + (1 - share) * other
