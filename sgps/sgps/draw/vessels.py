"""Vessels: arborizing, dotted, glomerular, hairpin, linear irregular, comma."""

import numpy as np

from sgps.draw.canvas import Array, Stencil, paint
from sgps.draw.lesion import Lesion


def _walk(rng: np.random.Generator, start: Array, heading: float, steps: int, step: float, wander: float) -> Array:
    turns = heading + np.cumsum(rng.normal(0, wander, steps))
    moves = np.stack([np.cos(turns), np.sin(turns)], 1) * step
    return np.concatenate([start[None], start + np.cumsum(moves, 0)]).astype(np.float32)


def _arborizing(lesion: Lesion, stencil: Stencil) -> None:
    rng = lesion.rng
    for angle in rng.uniform(0, 2 * np.pi) + np.arange(int(rng.integers(2, 4))) * rng.uniform(1.6, 2.4):
        start = np.array([np.cos(angle), np.sin(angle)], np.float32) * np.float32(lesion.radius * 0.95)
        trunk = _walk(rng, start, angle + np.pi + rng.normal(0, 0.3), 11, lesion.radius * 0.13, 0.22)
        stencil.line(trunk, 0.017)
        for node in trunk[2:10:2]:
            side = float(rng.choice([-1.0, 1.0])) * rng.uniform(0.5, 1.0)
            branch = _walk(rng, node, angle + np.pi + side, 6, lesion.radius * 0.09, 0.28)
            stencil.line(branch, 0.011)
            twig = _walk(rng, branch[3], angle + np.pi + side * 2, 4, lesion.radius * 0.08, 0.3)
            stencil.line(twig, 0.007)


def _coils(lesion: Lesion, stencil: Stencil) -> None:
    rng = lesion.rng
    turn = np.linspace(0.4, 4.2 * np.pi, 30)
    for x, y in lesion.points(int(rng.integers(8, 13)), 0.03):
        phase, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.036, 0.047)
        r = size * turn / turn[-1]
        stencil.line(np.stack([x + r * np.cos(turn + phase), y + r * np.sin(turn + phase) * 0.85], 1), 0.007)


def _hairpins(lesion: Lesion, stencil: Stencil, halo: Stencil) -> None:
    rng = lesion.rng
    bend = np.linspace(0, np.pi, 8)
    for x, y in lesion.points(int(rng.integers(10, 16)), 0.03):
        tilt, long = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.075)
        u = np.concatenate([[-long], np.sin(bend) * 0.016, [-long]])
        v = np.concatenate([[0.016], np.cos(bend) * 0.016, [-0.016]])
        c, s = np.cos(tilt), np.sin(tilt)
        loop = np.stack([x + c * u - s * v, y + s * u + c * v], 1)
        halo.line(loop[[0, 5, -1]], 0.040)
        stencil.line(loop, 0.010)


def _commas(lesion: Lesion, stencil: Stencil) -> None:
    rng = lesion.rng
    arc = np.linspace(0, 1.9, 8)
    for x, y in lesion.points(int(rng.integers(11, 18)), 0.03):
        phase, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.026, 0.040)
        points = np.stack([x + size * np.cos(arc + phase), y + size * np.sin(arc + phase)], 1)
        stencil.line(points[:5], 0.018)
        stencil.line(points[3:], 0.010)


def vessels(lesion: Lesion) -> None:
    """Paint the vessels of this patient, if there are any."""
    kind = lesion.one("vessels")
    if kind == "none":
        return
    rng = lesion.rng
    stencil = Stencil(lesion.side)
    if kind == "arborizing":
        _arborizing(lesion, stencil)
    elif kind == "dotted":
        places = lesion.points(int(rng.integers(45, 75)), 0.02)
        stencil.discs(places[:, 0], places[:, 1], 0.0095)
    elif kind == "glomerular":
        _coils(lesion, stencil)
    elif kind == "hairpin":
        halo = Stencil(lesion.side)
        _hairpins(lesion, stencil, halo)
        paint(lesion.sheet, np.float32(0.55) * halo.mask(0.008), lesion.colours["pink"] * np.float32(1.03))
    elif kind == "linear irregular":
        for start in lesion.points(int(rng.integers(9, 14)), 0.03):
            path = _walk(rng, start, rng.uniform(0, 2 * np.pi), 6, 0.026, 0.75)
            stencil.line(path, float(rng.uniform(0.007, 0.014)))
    else:
        _commas(lesion, stencil)
    # Vessels stay legible on dark ground because they are drawn bright there and dark on pale ground.
    ground = float(lesion.sheet[:, ::6, ::6][:, lesion.depth[::6, ::6] > 0].mean()) if lesion.radius > 0 else 0.5
    red = np.array([0.78, 0.10, 0.14]) if ground > 0.42 else np.array([0.90, 0.24, 0.26])
    paint(lesion.sheet, np.float32(0.92) * stencil.mask(), red + rng.normal(0, 0.025, 3))
