"""Skin, outline, pigment, network and structureless areas: everything of a lesion that is a field and not a stroke."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from sgps.draw.canvas import REACH, Array, axes, enlarge, paint, ramp, smooth_noise

MIRRORS: Final = {"symmetric": 2, "asymmetric in one axis": 1, "asymmetric in two axes": 0}
_SKIN_TONES: Final = np.array([[0.95, 0.80, 0.72], [0.90, 0.71, 0.60], [0.79, 0.57, 0.45], [0.58, 0.39, 0.30]])
_SKIN_AT: Final = np.array([0.0, 0.45, 0.8, 1.0])


@dataclass(frozen=True)
class Lesion:
    """One patient's lesion while it is being painted.

    ``sheet`` [3, s, s] is painted in place; ``depth`` [s, s] is the signed distance to the edge in picture sides, positive
    inside; ``mask`` [s, s] is the opacity of the lesion; ``colours`` maps each colour name to this patient's RGB.
    """

    rng: np.random.Generator
    truth: Mapping[str, tuple[str, ...]]
    colours: Mapping[str, Array]
    radius: float
    mirrors: int
    sheet: Array
    depth: Array
    mask: Array

    @property
    def side(self) -> int:
        """Pixels across the sheet."""
        return int(self.mask.shape[0])

    def one(self, group: str) -> str:
        """The value of a group in which exactly one holds."""
        return self.truth[group][0]

    def points(self, count: int, margin: float = 0.03, spread: float = 1.0) -> Array:
        """About ``count`` random places [n, 2] inside the lesion, at least ``margin`` from the edge."""
        reach = self.radius * 1.25 * spread
        tries = (self.rng.random((count * 3, 2), dtype=np.float32) * 2 - 1) * np.float32(reach)
        return tries[self.depth_at(tries) > margin][:count]

    def depth_at(self, places: Array) -> Array:
        """Signed distance to the edge at places [n, 2]."""
        index = np.clip(((places + REACH) * (self.side / (2 * REACH))).astype(np.intp), 0, self.side - 1)
        return np.asarray(self.depth[index[:, 1], index[:, 0]])

    def edge(self, angles: Array) -> Array:
        """Distance [n] from the centre to the outermost edge along each angle [n]."""
        steps = np.linspace(0.25, 1.9, 34, dtype=np.float32) * np.float32(self.radius)
        rays = np.stack([np.cos(angles)[:, None] * steps, np.sin(angles)[:, None] * steps], axis=2)
        inside = self.depth_at(rays.reshape(-1, 2)).reshape(len(angles), len(steps)) > 0
        last = np.where(inside.any(1), inside.shape[1] - 1 - inside[:, ::-1].argmax(1), 0)
        return np.asarray(steps[last])


def skin(rng: np.random.Generator, side: int) -> Array:
    """Bare skin [3, side, side]: tone, broad blotches, fine texture and furrows."""
    tone = float(rng.beta(1.2, 1.9))
    base = np.array([np.interp(tone, _SKIN_AT, _SKIN_TONES[:, c]) for c in range(3)]) + rng.normal(0, 0.015, 3)
    sheet = np.empty((3, side, side), np.float32)
    sheet[:] = base.astype(np.float32)[:, None, None]
    blotches = smooth_noise(rng, side, 5)
    sheet += np.array([0.008, 0.022, 0.020], np.float32)[:, None, None] * blotches
    furrows = np.abs(smooth_noise(rng, side, 26))
    grain = smooth_noise(rng, side, max(32, side // 3))
    sheet += np.float32(0.010) * grain - np.float32(0.030 * rng.uniform(0.3, 1.2)) * ramp(furrows, 0.35, 0.0)
    return sheet


def outline(rng: np.random.Generator, side: int, radius: float, symmetry: str, border: str) -> tuple[Array, Array]:
    """Depth and opacity [side, side] of a lesion: an ellipse with harmonics, mirrored as far as it is symmetric."""
    small = max(48, side // 2)
    x, y = axes(small)
    stretch = float(rng.uniform(0.84, 1.0))
    x, y = x * np.float32(stretch), y / np.float32(stretch)
    rho = np.sqrt(x * x + y * y)
    theta = np.arctan2(y, x)
    mirrors = MIRRORS[symmetry]
    orders = np.arange(2, 8)
    size = rng.normal(0, 1, len(orders)) * np.array([0.07, 0.06, 0.045, 0.03, 0.025, 0.02])
    phase = rng.uniform(0, 2 * np.pi, len(orders))
    if mirrors >= 1:
        phase[:] = 0.0
    if mirrors == 2:
        size[orders % 2 == 1] = 0.0
    size *= (1.5, 1.1, 0.8)[mirrors]
    if mirrors < 2:
        # A clear lobe, so that asymmetry shows in the shape and not in the pigment alone.
        size[:2] += (0.10, 0.15)[mirrors] * rng.uniform([0.0, 0.45], [1.0, 1.15]) * np.sign(size[:2])
    if border == "irregular":
        orders = np.concatenate([orders, np.arange(8, 17)])
        size = np.concatenate([size, rng.normal(0, 0.042, 9)])
        phase = np.concatenate([phase, rng.uniform(0, 2 * np.pi, 9)])
    wave = np.zeros_like(theta)
    for k, a, f in zip(orders, size, phase, strict=True):
        wave += np.float32(a) * np.cos(np.float32(k) * theta + np.float32(f))
    depth = np.float32(radius) * (1 + wave) - rho
    if border == "moth-eaten":
        bites = int(rng.integers(6, 11))
        where = (np.arange(bites) + rng.uniform(-0.45, 0.45, bites)) * (2 * np.pi / bites)
        for angle in where:
            far = radius * rng.uniform(0.98, 1.08)
            r = radius * rng.uniform(0.14, 0.34)
            gap = np.hypot(x - np.float32(far * np.cos(angle)), y - np.float32(far * np.sin(angle))) - np.float32(r)
            np.minimum(depth, gap, out=depth)
    depth = enlarge(depth.astype(np.float32), side)
    width = {"sharp": 0.012, "blurred": rng.uniform(0.10, 0.15), "moth-eaten": 0.016, "irregular": 0.022}[border]
    return depth, ramp(depth, -0.5 * width, 0.6 * width)


def _patch(lesion: Lesion, share: float, cells: int, soft: float, mirrors: int | None = None) -> Array:
    """A random patch that covers about ``share`` of the lesion; ``soft`` is the width of its rim in standard deviations."""
    noise = smooth_noise(lesion.rng, lesion.side, cells, lesion.mirrors if mirrors is None else mirrors)
    inside = noise[::4, ::4][lesion.depth[::4, ::4] > 0]
    cut = float(np.quantile(inside, 1 - share)) if inside.size else 0.0
    return ramp(noise, cut - soft / 2, cut + soft / 2)


def pigment(lesion: Lesion) -> None:
    """Ground colour over the whole lesion, one patch for each further colour, fine variation of tone."""
    names = [n for n in lesion.truth["colours"] if n != "skin"]
    rng = lesion.rng
    ground = names[0] if names else "skin"
    body = np.float32(0.93) * lesion.mask
    if ground != "skin":
        paint(lesion.sheet, body, lesion.colours[ground])
    else:
        paint(lesion.sheet, body * np.float32(0.6), lesion.colours["skin"])
    clumps = smooth_noise(rng, lesion.side, 14) + np.float32(0.7) * smooth_noise(rng, lesion.side, 40)
    shade = smooth_noise(rng, lesion.side, 5, lesion.mirrors)
    tone = (np.float32(0.045) * clumps + np.float32(0.07) * shade) * lesion.mask
    # Pigment is a little denser towards the edge of some lesions and in the middle of others.
    tone += (
        np.float32(rng.uniform(-0.14, 0.14)) * (ramp(lesion.depth, 0.0, lesion.radius) - np.float32(0.5)) * lesion.mask
    )
    np.multiply(lesion.sheet, 1 + tone, out=lesion.sheet)
    for name in names[1:]:
        share = float(rng.uniform(0.22, 0.42)) * (1.0 if len(names) < 4 else 0.75)
        soft = float(rng.uniform(0.35, 0.9))
        paint(lesion.sheet, _patch(lesion, share, int(rng.integers(4, 7)), soft) * body, lesion.colours[name])
    if "skin" in lesion.truth["colours"] and names:
        paint(lesion.sheet, _patch(lesion, float(rng.uniform(0.28, 0.42)), 4, 0.5) * body, lesion.colours["skin"])


def _holes(lesion: Lesion, cell: float, warp: float) -> Array:
    """A warped honeycomb [s, s]: three plane waves 120 degrees apart; 1 at the middle of a hole, -0.5 on the lines."""
    x, y = axes(lesion.side)
    rng = lesion.rng
    dx, dy = (np.float32(warp * cell) * smooth_noise(rng, lesion.side, 9) for _ in range(2))
    xs, ys = x + dx, y + dy
    k = 2 * np.pi / (cell * 0.866)
    turn = float(rng.uniform(0, np.pi))
    total = np.zeros_like(xs)
    for i in range(3):
        angle = turn + i * 2 * np.pi / 3
        total += np.cos(xs * np.float32(k * np.cos(angle)) + ys * np.float32(k * np.sin(angle)))
    return total * np.float32(1 / 3)


def network(lesion: Lesion) -> None:
    """Pigment network: a honeycomb of brown lines, or of pale lines where it is negative."""
    kind = lesion.one("network")
    if kind == "none":
        return
    rng = lesion.rng
    brown = lesion.colours["dark brown"]
    inner = ramp(lesion.depth, 0.0, 0.05)
    if kind == "typical":
        lines = ramp(_holes(lesion, float(rng.uniform(0.070, 0.085)), 0.25), 0.10, -0.22)
        paint(lesion.sheet, np.float32(0.85) * lines * inner, brown * np.float32(0.75))
    elif kind == "atypical":
        holes = _holes(lesion, float(rng.uniform(0.085, 0.115)), 0.65)
        holes += np.float32(0.22) * smooth_noise(rng, lesion.side, 7)
        lines = ramp(holes, 0.20, -0.10) * _patch(lesion, 0.72, 5, 0.4, 0)
        paint(lesion.sheet, np.float32(0.92) * lines * inner, brown * np.float32(0.45))
    elif kind == "delicate at the edge":
        ring = ramp(lesion.depth, -0.05, 0.0) * ramp(lesion.depth, 0.46 * lesion.radius, 0.30 * lesion.radius)
        lines = ramp(_holes(lesion, float(rng.uniform(0.052, 0.062)), 0.2), 0.0, -0.22)
        paint(lesion.sheet, np.float32(0.75) * lines * ring, brown)
    else:
        lines = ramp(_holes(lesion, float(rng.uniform(0.085, 0.105)), 0.4), 0.0, -0.24)
        pale = lesion.colours["white"] * np.float32(0.6) + lesion.colours["light brown"] * np.float32(0.4)
        paint(lesion.sheet, np.float32(0.85) * lines * inner, pale)


def structureless(lesion: Lesion) -> None:
    """Homogeneous pigment, blue-white veil, and white or blue (peppered) regression."""
    kind = lesion.one("structureless")
    rng = lesion.rng
    if kind == "homogeneous":
        names = [n for n in lesion.truth["colours"] if n != "skin"]
        ground = lesion.colours[names[0] if names else "skin"]
        paint(lesion.sheet, np.float32(0.8) * lesion.mask * ramp(lesion.depth, 0.0, 0.04), ground)
    elif kind == "blue-white veil":
        patch = _patch(lesion, float(rng.uniform(0.32, 0.5)), 4, 0.9, 0) * ramp(lesion.depth, 0.02, 0.08)
        mixed = lesion.colours["blue-grey"] * np.float32(0.72) + np.array([0.20, 0.24, 0.30], np.float32)
        paint(lesion.sheet, np.float32(0.86) * patch, mixed)
    elif kind in ("white regression", "blue regression"):
        patch = _patch(lesion, float(rng.uniform(0.26, 0.42)), 4, 0.5, 0) * ramp(lesion.depth, 0.01, 0.06)
        if kind == "white regression":
            paint(lesion.sheet, np.float32(0.88) * patch, lesion.colours["white"])
        else:
            paint(lesion.sheet, np.float32(0.6) * patch, lesion.colours["blue-grey"] + np.float32(0.14))
            pepper = ramp(smooth_noise(rng, lesion.side, 44), 0.75, 1.25)
            paint(lesion.sheet, np.float32(0.9) * patch * pepper, lesion.colours["blue-grey"] * np.float32(0.55))


def centre(lesion: Lesion) -> None:
    """A white, scar-like patch in the middle, its rim drawn out in strands."""
    if lesion.one("centre") == "none":
        return
    x, y = axes(lesion.side)
    far = np.sqrt(x * x + y * y) + np.float32(0.05 * lesion.radius / 0.3) * smooth_noise(lesion.rng, lesion.side, 10)
    size = lesion.radius * float(lesion.rng.uniform(0.36, 0.52))
    alpha = ramp(far, size * 1.2, size * 0.75) * ramp(lesion.depth, 0.0, 0.03)
    paint(lesion.sheet, np.float32(0.88) * alpha, lesion.colours["white"])
