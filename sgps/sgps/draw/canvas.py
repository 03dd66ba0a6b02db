"""The sheet that a lesion is painted on, its smooth random fields, and supersampled stencils for sharp structures.

Lengths are in picture sides: 1.0 is the side of the picture that is cut from the sheet; the sheet reaches ``REACH`` to each
side of its centre. All arrays are float32, images are planar [3, side, side] in [0, 1].
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Array = npt.NDArray[np.float32]
REACH: Final = 0.62
_OVERSAMPLE: Final = 2


def generator(*keys: int) -> np.random.Generator:
    """A PCG64 generator for a tuple of non-negative integers; equal keys give equal streams."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(keys)))


@lru_cache(maxsize=16)
def axes(side: int) -> tuple[Array, Array]:
    """x [1, side] and y [side, 1] of pixel centres, in picture sides from the centre of the sheet."""
    line = (((np.arange(side) + 0.5) / side * 2 - 1) * REACH).astype(np.float32)
    line.setflags(write=False)
    return line[None, :], line[:, None]


def enlarge(field: Array, side: int) -> Array:
    """A field [h, w] enlarged to [side, side] by cubic interpolation."""
    return np.asarray(Image.fromarray(field).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


def smooth_noise(rng: np.random.Generator, side: int, cells: int, mirrors: int = 0) -> Array:
    """Noise [side, side] of about unit variance with ``cells`` independent values across; mirrored in 0, 1 or 2 axes."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32) * np.float32(1.25)
    if mirrors >= 1:
        grid = (grid + grid[:, ::-1]) * np.float32(0.70710678)
    if mirrors >= 2:
        grid = (grid + grid[::-1]) * np.float32(0.70710678)
    return enlarge(np.ascontiguousarray(grid), side)


def ramp(field: Array, low: float, high: float) -> Array:
    """0 below ``low``, 1 above ``high``, a smooth cubic between; ``low > high`` reverses it."""
    t: Array = np.clip((field - np.float32(low)) * np.float32(1.0 / (high - low)), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def paint(sheet: Array, alpha: Array, colour: Sequence[float] | npt.NDArray[np.floating]) -> None:
    """Lay ``colour`` (RGB) over ``sheet`` [3, s, s] in place with opacity ``alpha`` [s, s]."""
    for channel, value in zip(sheet, colour, strict=True):
        channel += alpha * (np.float32(value) - channel)


class Stencil:
    """A mask drawn with twice the resolution of the sheet and then averaged."""

    def __init__(self, side: int) -> None:
        self.side = side
        self._scale = side * _OVERSAMPLE / (2 * REACH)
        self._image = Image.new("L", (side * _OVERSAMPLE, side * _OVERSAMPLE))
        self._draw = ImageDraw.Draw(self._image)

    def discs(self, x: npt.ArrayLike, y: npt.ArrayLike, radius: npt.ArrayLike, level: int = 255) -> None:
        """Filled circles at x, y [n] with radius [n] or one for all."""
        cx, cy = (np.atleast_1d(np.asarray(v, dtype=np.float64) + REACH) * self._scale for v in (x, y))
        r = np.broadcast_to(np.asarray(radius, dtype=np.float64) * self._scale, cx.shape)
        for box in np.stack([cx - r, cy - r, cx + r, cy + r], axis=1).tolist():
            self._draw.ellipse(box, fill=level)

    def polygon(self, points: npt.NDArray[np.floating], level: int = 255) -> None:
        """A filled polygon with corners [n, 2]."""
        self._draw.polygon(((points + REACH) * self._scale).ravel().tolist(), fill=level)

    def ovals(
        self,
        x: npt.NDArray[np.floating],
        y: npt.NDArray[np.floating],
        long: npt.NDArray[np.floating],
        short: npt.NDArray[np.floating],
        angle: npt.NDArray[np.floating],
        level: int = 255,
    ) -> None:
        """Filled, turned ellipses; every argument is [n], half axes ``long`` and ``short``, ``angle`` in radians."""
        turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        u, v = long[:, None] * np.cos(turn), short[:, None] * np.sin(turn)
        c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
        corners = np.stack([x[:, None] + c * u - s * v, y[:, None] + s * u + c * v], axis=2)
        for points in corners:
            self.polygon(points, level)

    def line(self, points: npt.NDArray[np.floating], width: float, level: int = 255) -> None:
        """An open line through points [n, 2]; ``width`` in picture sides, at least one supersampled pixel."""
        pixels = max(1, round(width * self._scale))
        self._draw.line(
            ((points + REACH) * self._scale).ravel().tolist(),
            fill=level,
            width=pixels,
            joint="curve" if pixels > 3 else None,
        )

    def mask(self, soften: float = 0.0) -> Array:
        """The mask [side, side] in [0, 1]; ``soften`` blurs it by that many picture sides."""
        image = self._image.reduce(_OVERSAMPLE)
        if soften > 0:
            image = image.filter(ImageFilter.BoxBlur(soften * self._scale / _OVERSAMPLE))
        return np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
