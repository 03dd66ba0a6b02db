"""Structures drawn as strokes and spots: globules, streaks, keratin, signs of basal cell carcinoma, lacunae."""

import numpy as np

from sgps.draw.canvas import Array, Stencil, axes, paint, ramp, smooth_noise
from sgps.draw.lesion import Lesion


def _polar(angles: Array, radii: Array) -> Array:
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=-1).astype(np.float32)


def globules(lesion: Lesion) -> None:
    """Brown dots and globules: an spread lattice, an uneven scatter, or a ring inside the edge."""
    kind = lesion.one("globules")
    if kind == "none":
        return
    rng = lesion.rng
    stencil = Stencil(lesion.side)
    if kind == "regular":
        step = float(rng.uniform(0.068, 0.082))
        line = np.arange(-0.6, 0.6, step, dtype=np.float32)
        gx, gy = np.meshgrid(line, line * np.float32(0.866))
        gx[::2] += np.float32(step / 2)
        places = np.stack([gx.ravel(), gy.ravel()], 1)
        places += rng.normal(0, 0.10 * step, places.shape).astype(np.float32)
        places = places[lesion.depth_at(places) > 0.03]
        stencil.discs(places[:, 0], places[:, 1], rng.uniform(0.26, 0.32) * step)
        shade = 0.72
    elif kind == "irregular":
        focus = lesion.points(3, 0.04)
        count = int(rng.integers(22, 38))
        near = focus[rng.integers(0, max(1, len(focus)), count)] if len(focus) else lesion.points(count)
        places = near + rng.normal(0, 0.28 * lesion.radius, near.shape).astype(np.float32)
        places = places[lesion.depth_at(places) > 0.01]
        stencil.discs(places[:, 0], places[:, 1], rng.choice([0.009, 0.014, 0.021, 0.030], len(places)))
        shade = 0.5
    else:
        count = int(2 * np.pi * lesion.radius / 0.052)
        angles = (np.arange(count) * (2 * np.pi / count)).astype(np.float32)
        places = _polar(angles, lesion.edge(angles) - np.float32(0.028))
        stencil.discs(places[:, 0], places[:, 1], rng.uniform(0.017, 0.021))
        shade = 0.6
    paint(lesion.sheet, np.float32(0.92) * stencil.mask(0.003), lesion.colours["dark brown"] * np.float32(shade))


def streaks(lesion: Lesion) -> None:
    """Radial strokes at the edge: all around, or of uneven length in one or two sectors."""
    kind = lesion.one("streaks")
    if kind == "none":
        return
    rng = lesion.rng
    if kind == "regular":
        count = int(rng.integers(24, 34))
        spread = np.arange(count) * (2 * np.pi / count) + rng.normal(0, 0.02, count)
        length, width = np.full(count, rng.uniform(0.09, 0.12)), np.full(count, 0.015)
    else:
        count = int(rng.integers(11, 20))
        middles = rng.uniform(0, 2 * np.pi) + np.array([0.0, rng.uniform(1.5, 3.5)])
        spread = rng.choice(middles[: int(rng.integers(1, 3))], count) + rng.normal(0, 0.42, count)
        length, width = rng.uniform(0.05, 0.15, count), rng.uniform(0.009, 0.016, count)
    angles: Array = spread.astype(np.float32)
    edge = lesion.edge(angles)
    start = _polar(angles, edge - np.float32(0.05))
    stop = _polar((angles + rng.normal(0, 0.03, count)).astype(np.float32), (edge + length - 0.03).astype(np.float32))
    stencil = Stencil(lesion.side)
    across = np.stack([-np.sin(angles), np.cos(angles)], 1) * width[:, None]
    # Tapered strokes; the uneven ones end in bulbs (pseudopods).
    tip = 0.35 if kind == "regular" else 0.6
    for corners in np.stack([start - across, stop - across * tip, stop + across * tip, start + across], axis=1):
        stencil.polygon(corners)
    if kind == "irregular":
        stencil.discs(stop[:, 0], stop[:, 1], width * 1.15)
    paint(lesion.sheet, np.float32(0.9) * stencil.mask(0.002), lesion.colours["dark brown"] * np.float32(0.62))


def keratin(lesion: Lesion) -> None:
    """Milia-like cysts, comedo-like openings, ridges and fissures, surface scale."""
    rng = lesion.rng
    present = lesion.truth["keratin"]
    if "ridges and fissures" in present:
        field = smooth_noise(rng, lesion.side, 11)
        inner = ramp(lesion.depth, 0.0, 0.03)
        paint(lesion.sheet, np.float32(0.35) * ramp(np.abs(field), 0.30, 0.75) * inner, lesion.colours["yellow"])
        paint(
            lesion.sheet, np.float32(0.85) * ramp(np.abs(field), 0.20, 0.06) * inner, lesion.colours["dark brown"] * 0.7
        )
    if "comedo-like openings" in present:
        places = lesion.points(int(rng.integers(7, 13)), 0.03)
        n = len(places)
        long, angle = rng.uniform(0.018, 0.032, n), rng.uniform(0, np.pi, n)
        short = long * rng.uniform(0.65, 1.0, n)
        rim, hole = Stencil(lesion.side), Stencil(lesion.side)
        rim.ovals(places[:, 0], places[:, 1], long + 0.010, short + 0.010, angle)
        hole.ovals(places[:, 0], places[:, 1], long, short, angle)
        paint(lesion.sheet, np.float32(0.55) * rim.mask(0.004), lesion.colours["light brown"] * np.float32(1.12))
        paint(lesion.sheet, np.float32(0.95) * hole.mask(), np.array([0.16, 0.10, 0.06]))
    if "milia-like cysts" in present:
        places = lesion.points(int(rng.integers(9, 17)), 0.03)
        glow, core = Stencil(lesion.side), Stencil(lesion.side)
        size = rng.uniform(0.011, 0.020, len(places))
        glow.discs(places[:, 0], places[:, 1], size * 1.5)
        core.discs(places[:, 0], places[:, 1], size * 0.9)
        paint(lesion.sheet, np.float32(0.6) * glow.mask(0.006), np.array([0.97, 0.93, 0.80]))
        paint(lesion.sheet, np.float32(0.95) * core.mask(0.002), np.array([1.0, 0.98, 0.90]))
    if "surface scale" in present:
        places = lesion.points(int(rng.integers(16, 28)), 0.0)
        stencil = Stencil(lesion.side)
        turn = np.linspace(0, 2 * np.pi, 7, endpoint=False)
        for x, y in places:
            shape = rng.uniform(0.35, 1.0, 7) * rng.uniform(0.018, 0.042)
            squeeze, tilt = rng.uniform(0.35, 0.8), rng.uniform(0, np.pi)
            u, v = shape * np.cos(turn), shape * np.sin(turn) * squeeze
            c, s = np.cos(tilt), np.sin(tilt)
            stencil.polygon(np.stack([x + c * u - s * v, y + s * u + c * v], 1))
        paint(lesion.sheet, np.float32(0.82) * stencil.mask(), np.array([0.98, 0.96, 0.92]))


def carcinoma_signs(lesion: Lesion) -> None:
    """Blue-grey ovoid nests, leaf-like areas, spoke-wheel areas, ulceration."""
    rng = lesion.rng
    present = lesion.truth["bcc signs"]
    slate = lesion.colours["blue-grey"] * np.float32(0.62)
    if "blue-grey ovoid nests" in present:
        places = lesion.points(int(rng.integers(4, 8)), 0.05)
        n = len(places)
        long = rng.uniform(0.035, 0.06, n)
        stencil = Stencil(lesion.side)
        stencil.ovals(places[:, 0], places[:, 1], long, long * rng.uniform(0.5, 0.75, n), rng.uniform(0, np.pi, n))
        paint(lesion.sheet, np.float32(0.9) * stencil.mask(0.005), slate)
    if "leaf-like areas" in present:
        stencil = Stencil(lesion.side)
        for angle in rng.uniform(0, 2 * np.pi) + np.arange(3) * 2.1 + rng.normal(0, 0.3, 3):
            foot = _polar(np.array([angle], np.float32), lesion.edge(np.array([angle], np.float32)) - 0.10)[0]
            fan = angle + np.linspace(-0.9, 0.9, 5) + rng.normal(0, 0.08, 5)
            reach = rng.uniform(0.045, 0.07, 5)
            stencil.ovals(
                foot[0] + np.cos(fan) * reach, foot[1] + np.sin(fan) * reach, reach * 0.95, np.full(5, 0.014), fan
            )
        paint(lesion.sheet, np.float32(0.88) * stencil.mask(0.003), slate * 0.6 + lesion.colours["dark brown"] * 0.4)
    if "spoke-wheel areas" in present:
        places = lesion.points(int(rng.integers(3, 6)), 0.06)
        tan, stencil = Stencil(lesion.side), Stencil(lesion.side)
        tan.discs(places[:, 0], places[:, 1], 0.082)
        for x, y in places:
            spokes = rng.uniform(0, 1) + np.arange(9) * (2 * np.pi / 9)
            for tip in np.stack([x + 0.078 * np.cos(spokes), y + 0.078 * np.sin(spokes)], 1):
                stencil.line(np.stack([[x, y], tip]), 0.013)
        stencil.discs(places[:, 0], places[:, 1], 0.026)
        paint(lesion.sheet, np.float32(0.7) * tan.mask(0.012), lesion.colours["light brown"] * np.float32(1.15))
        paint(lesion.sheet, np.float32(0.95) * stencil.mask(0.002), lesion.colours["dark brown"] * np.float32(0.6))
    if "ulceration" in present:
        place = lesion.points(1, 0.08)
        x0, y0 = place[0] if len(place) else (0.0, 0.0)
        x, y = axes(lesion.side)
        far = np.hypot(x - np.float32(x0), y - np.float32(y0)) + np.float32(0.016) * smooth_noise(rng, lesion.side, 16)
        size = float(rng.uniform(0.075, 0.115))
        paint(lesion.sheet, np.float32(0.92) * ramp(far, size + 0.012, size - 0.008), np.array([0.55, 0.16, 0.10]))
        paint(lesion.sheet, np.float32(0.85) * ramp(far, size * 0.72, size * 0.45), np.array([0.86, 0.42, 0.24]))


def lacunae(lesion: Lesion) -> None:
    """Well-demarcated red, purple or black lacunae, parted by pale septa."""
    present = lesion.truth["vascular"]
    if not present:
        return
    rng = lesion.rng
    fills = {
        "red lacunae": (0.72, 0.10, 0.12),
        "purple lacunae": (0.40, 0.12, 0.36),
        "black lacunae": (0.13, 0.06, 0.09),
    }
    step = float(rng.uniform(0.105, 0.135))
    line = np.arange(-0.55, 0.55, step, dtype=np.float32)
    gx, gy = np.meshgrid(line, line)
    gx[::2] += np.float32(step / 2)
    places = np.stack([gx.ravel(), gy.ravel()], 1) + rng.normal(0, 0.14 * step, (gx.size, 2)).astype(np.float32)
    places = places[lesion.depth_at(places) > 0.035]
    places = places[rng.random(len(places)) < 0.82]
    n = len(places)
    long = rng.uniform(0.40, 0.54, n) * step
    short, angle = long * rng.uniform(0.72, 1.0, n), rng.uniform(0, np.pi, n)
    which = rng.integers(0, len(present), n)
    septa = Stencil(lesion.side)
    septa.ovals(places[:, 0], places[:, 1], long + 0.016, short + 0.016, angle)
    paint(lesion.sheet, np.float32(0.6) * septa.mask(0.004), lesion.colours["white"] * np.float32(0.95))
    for i, name in enumerate(present):
        mine = which == i
        stencil = Stencil(lesion.side)
        stencil.ovals(places[mine, 0], places[mine, 1], long[mine], short[mine], angle[mine])
        paint(lesion.sheet, np.float32(0.93) * stencil.mask(0.002), np.array(fills[name]) + rng.normal(0, 0.02, 3))
