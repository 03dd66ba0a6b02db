"""What a simple probe reads from drawn pictures: every attribute above chance, the class from the camera's traces never."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from sgps.draw import (
    ATTRIBUTE_NAMES,
    ATTRIBUTES,
    Camera,
    Profile,
    draw_camera,
    draw_patient,
    draw_profile,
    sampled_attributes,
)

Floats = npt.NDArray[np.float64]


SIDE = 96
_LINE = (np.arange(SIDE) + 0.5) / SIDE - 0.5
_FAR = np.hypot(_LINE[:, None], _LINE[None, :])
_INNER = _FAR < 0.36
_RINGS = np.stack([np.digitize(_FAR, [0.08, 0.16, 0.24, 0.32, 0.40, 0.50]).ravel() == r for r in range(7)]).astype(
    float
)
_RINGS /= _RINGS.sum(1, keepdims=True)


def colour_shares(picture: npt.NDArray[np.uint8]) -> Floats:
    """Root shares of 6 x 6 x 6 colours in the middle of the picture."""
    inner = picture[_INNER] // 43
    counts = np.bincount(inner @ np.array([36, 6, 1]), minlength=216)
    return np.sqrt(counts / counts.sum())


def mirror_likeness(tones: Floats) -> Floats:
    """How alike a lesion is to its mirror image in the best axis, and to itself after half a turn, for each tone."""
    border = np.concatenate([tones[:, :6].reshape(3, -1), tones[:, -6:].reshape(3, -1)], axis=1)
    weight = np.maximum(np.abs(tones - np.median(border, 1)[:, None, None]).sum(0) - 0.12, 0) * (_FAR < 0.45)
    mass = weight.sum() + 1e-6
    middle = (weight.sum(1) @ np.arange(SIDE) / mass, weight.sum(0) @ np.arange(SIDE) / mass)
    turn = np.arange(48) * (2 * np.pi / 48)
    radius = np.linspace(0.06, 0.42, 10)[:, None] * SIDE
    places = [middle[0] + radius * np.sin(turn), middle[1] + radius * np.cos(turn)]
    out: list[float] = []
    for tone in tones:
        polar = ndimage.map_coordinates(ndimage.gaussian_filter(tone, 2), places, order=1, mode="nearest")
        polar = polar - polar.mean(1, keepdims=True)
        wave = np.fft.fft(polar, axis=1)
        power = (polar**2).sum() + 1e-6
        mirrored = np.fft.ifft(wave**2, axis=1).real.sum(0) / power
        turned = np.fft.ifft(wave * wave.conj(), axis=1).real.sum(0) / power
        out += [mirrored.max(), turned[24], mirrored.max() - turned[24], np.sqrt(power)]
    return np.array(out)


def features(picture: npt.NDArray[np.uint8]) -> Floats:
    """Colour, texture and symmetry that turning the picture does not change."""
    rgb = picture.astype(np.float32) / 255
    tones = np.stack([rgb.mean(2), rgb[:, :, 0] - rgb[:, :, 1], rgb[:, :, 2] - rgb[:, :, 1]])
    maps = list(tones)
    for tone, sigmas in zip(tones, ((0.6, 1.0, 1.7, 2.8, 4.5), (0.8, 1.7, 3.5), (0.8, 1.7, 3.5)), strict=True):
        for sigma in sigmas:
            blob = sigma**2 * ndimage.gaussian_laplace(tone, sigma)
            maps += [
                np.maximum(blob, 0),
                np.maximum(-blob, 0),
                sigma * ndimage.gaussian_gradient_magnitude(tone, sigma),
            ]
    stack = np.stack(maps)
    flat = stack.reshape(len(maps), -1)
    mean = flat @ _RINGS.T
    spread = np.log(np.sqrt(np.maximum((flat**2) @ _RINGS.T - mean**2, 0)) + 1e-3)
    ranks = np.sort(stack[:, _INNER], axis=1)
    ranks = ranks[:, (np.array([0.02, 0.1, 0.5, 0.9, 0.98]) * ranks.shape[1]).astype(int)]
    parts = (colour_shares(picture), mean, spread, ranks, mirror_likeness(tones))
    return np.concatenate([np.ravel(p) for p in parts])


def standardised(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    mean, spread = train.mean(0), train.std(0) + 1e-6
    return (train - mean) / spread, (test - mean) / spread


def ridge(train: Floats, targets: Floats, test: Floats, strength: float) -> Floats:
    """Scores [m, t] of ridge regression on centred targets, in the dual form."""
    gram = train @ train.T
    return test @ (train.T @ np.linalg.solve(gram + strength * np.eye(len(gram)), targets - targets.mean(0)))


def auroc(score: Floats, truth: npt.NDArray[np.bool_]) -> float:
    rank = score.argsort().argsort() + 1
    positive = int(truth.sum())
    return float((rank[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


def uniform_class() -> Profile:
    """A class in which all attributes are independent, so that a probe can read one only from its own traces."""
    several = {"colours": 0.25, "keratin": 0.15, "bcc signs": 0.15, "vascular": 0.1}
    none = {"network": 0.4, "globules": 0.5, "streaks": 0.5, "structureless": 0.5, "vessels": 0.3, "centre": 0.8}
    chances = {}
    for group, values in ATTRIBUTES.items():
        n = len(values)
        if group in several:
            chances[group] = (several[group],) * n
        elif group in none:
            chances[group] = (none[group], *[(1 - none[group]) / (n - 1)] * (n - 1))
        else:
            chances[group] = (1 / n,) * n
    return Profile("uniform", chances)


@pytest.mark.slow
def test_each_attribute_can_be_read_back() -> None:
    profile, count, cut = uniform_class(), 2400, 1600
    names = np.array(ATTRIBUTE_NAMES)
    x = np.stack([features(draw_patient(profile, seed, size=SIDE)[0]) for seed in range(count)])
    truths = [sampled_attributes(profile, seed) for seed in range(count)]
    y = np.array([[v in t[g] for g, values in ATTRIBUTES.items() for v in values] for t in truths])
    train, test = standardised(x[:cut], x[cut:])
    scores = ridge(train, y[:cut].astype(float), test, strength=1000.0)
    read = {n: auroc(scores[:, i], y[cut:, i]) for i, n in enumerate(names)}
    # With 800 test pictures and 40 positives the standard error of a useless probe is about 0.047; most attributes have 100 or more.
    weak = {str(n): round(a, 3) for n, a in read.items() if a < 0.57}
    assert not weak
    assert np.mean(list(read.values())) > 0.75


def camera_traces(picture: npt.NDArray[np.uint8]) -> Floats:
    """Corners only: cast, exposure, vignette, lens ring and blur show there, the lesion does not."""
    k = picture.shape[0] // 12
    corners = [picture[:k, :k], picture[:k, -k:], picture[-k:, :k], picture[-k:, -k:]]
    values = [np.concatenate([c.mean((0, 1)), c.std((0, 1))]) for c in corners]
    return np.concatenate([np.mean(values, 0), np.std(values, 0)])


def test_nuisance_tells_the_site_but_not_the_class() -> None:
    """Four classes at four sites: corners give the site away and the class not at all."""
    classes, sites, each = 4, 4, 30
    cameras = [draw_camera(s) for s in range(sites)]
    rows, labels = [], []
    for c in range(classes):
        for s in range(sites):
            for p in range(each):
                rows.append(camera_traces(draw_patient(draw_profile(c), 1000 * s + p, camera=cameras[s], size=64)[0]))
                labels.append((c, s))
    x, y = np.array(rows), np.array(labels)
    order = np.random.default_rng(0).permutation(len(x))
    half = len(x) // 2
    train, test = standardised(x[order[:half]], x[order[half:]])
    right = []
    for column in range(2):
        wanted = y[order, column]
        scores = ridge(train, np.eye(4)[wanted[:half]], test, strength=3.0)
        right.append(float((scores.argmax(1) == wanted[half:]).mean()))
    by_chance = 0.25 + 3 * np.sqrt(0.25 * 0.75 / half)
    assert right[0] < by_chance, "the class"
    assert right[1] > by_chance, "the site"


def test_cameras_of_a_site_are_one_distribution() -> None:
    assert draw_camera(5) == draw_camera(5)
    assert len({draw_camera(seed) for seed in range(50)}) == 50
    assert isinstance(draw_camera(0), Camera)


def test_colour_shares_alone_do_not_tell_classes_apart() -> None:
    """One exemplar each of three random classes, colour histograms only: far from solved."""
    profiles = [draw_profile(seed) for seed in range(30)]
    shares = np.array([[colour_shares(draw_patient(p, s, size=SIDE)[0]) for s in range(4)] for p in profiles])
    rng = np.random.default_rng(0)
    right = []
    for _ in range(1500):
        ways = rng.choice(len(profiles), 3, replace=False)
        a, b = rng.choice(4, 2, replace=False)
        right.append((shares[ways, a] @ shares[ways, b].T).argmax(1) == np.arange(3))
    assert 0.36 < np.mean(right) < 0.75
