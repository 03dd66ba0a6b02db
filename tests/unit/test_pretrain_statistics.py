"""Coordinates of the class memory and samples of the reference bank."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from sgps.errors import InputError
from sgps.pretrain.features import Features, pack_features
from sgps.pretrain.statistics import bank, public_space, write_statistics

WIDTH = 1280
BASE = ("nv", "mel")


def made(name: str, labels: dict[str, int], seed: int, views: int = 2) -> Features:
    """`views` images a lesion; classes differ in their mean, lesions spread over 80 directions."""
    random = np.random.default_rng(seed)
    label = np.concatenate([np.repeat(c, n * views) for c, n in labels.items()])
    lesion = np.concatenate([np.repeat([f"{c}-{i}" for i in range(n)], views) for c, n in labels.items()])
    spread = np.zeros((len(label) // views, WIDTH))
    spread[:, :80] = random.normal(size=(len(spread), 80)) * np.linspace(3, 0.3, 80)
    middle = np.concatenate([np.repeat(random.normal(size=(1, WIDTH)), n, 0) for n in labels.values()])
    eight = (np.repeat(spread + middle, views, 0) + 0.01 * random.normal(size=(len(label), WIDTH))).astype(np.float32)
    names = np.array([f"{c}/{i}" for i, c in enumerate(label)])
    return Features(name, eight + 0.5, eight, names, label, lesion)


ATLAS = made("ham", {"nv": 200, "mel": 90}, 0)
OTHERS = [made("cxr", {"normal": 40, "virus": 40}, 1, 1), made("drawn", {"d0": 20, "d1": 20}, 2, 1)]


def test_coordinates_are_orthonormal_and_centred_on_the_mean_of_class_means() -> None:
    space = public_space(ATLAS, OTHERS, BASE)
    found = space.coordinates
    assert found.directions.shape == (64, WIDTH)
    assert np.allclose(found.directions @ found.directions.T, np.eye(64), atol=1e-5)
    wanted = np.mean([ATLAS.by_lesion(c).mean(0) for c in BASE], 0)
    assert np.allclose(found.mean, wanted, atol=1e-5)
    assert np.allclose(space.plain_mean, wanted + 0.5, atol=1e-3)


def test_radius_is_the_median_norm_and_within_the_trace_in_the_coordinates() -> None:
    found = public_space(ATLAS, OTHERS, BASE).coordinates
    places = [found.place(ATLAS.by_lesion(c)) for c in BASE]
    norms = [np.linalg.norm(z, axis=1) for z in places]
    below = np.mean([(n <= found.radius).mean() for n in norms])  # classes weigh the same
    assert below == pytest.approx(0.5, abs=0.02)
    assert found.within == pytest.approx(np.mean([np.trace(np.cov(z.T)) for z in places]), rel=1e-4)


def test_copies_of_a_class_or_a_lesion_change_nothing() -> None:
    rows = np.concatenate([np.arange(len(ATLAS)), np.flatnonzero(ATLAS.lesion == "nv-0")])
    more = Features("ham", *(getattr(ATLAS, c)[rows] for c in ("one", "eight", "name", "label", "lesion")))
    first, second = (public_space(a, OTHERS, BASE).coordinates for a in (ATLAS, more))
    assert np.allclose(first.mean, second.mean, atol=1e-6)
    assert first.radius == pytest.approx(second.radius, rel=1e-5)


def test_the_strongest_direction_of_every_part_is_inside() -> None:
    loud = made("loud", {"x": 30, "y": 30}, 3, 1)
    loud.eight[:, 1000] += 50 * np.random.default_rng(0).normal(size=len(loud)).astype(np.float32)
    found = public_space(ATLAS, [*OTHERS, loud], BASE).coordinates
    assert np.linalg.norm(found.directions[:, 1000]) > 0.99
    assert np.linalg.norm(found.directions[:, 0]) > 0.99


def test_a_class_without_two_lesions_is_refused() -> None:
    with pytest.raises(InputError, match="at least two lesions"):
        public_space(made("ham", {"nv": 5, "mel": 1}, 0), OTHERS, BASE)
    with pytest.raises(InputError, match="holds no image of bcc"):
        public_space(ATLAS, OTHERS, ("nv", "bcc"))


def test_the_bank_has_sixty_lesions_eight_images_and_all_drawn_patients(tmp_path: Path) -> None:
    drawn = made("bank", {"d7": 10, "d8": 10}, 4, 1)
    samples = bank(ATLAS, OTHERS[:1], drawn, BASE)
    count = {c: sum(r["class"] == c for r in samples.rows) for c in ("nv", "mel", "normal", "virus", "d7", "d8")}
    assert count == {"nv": 60, "mel": 60, "normal": 8, "virus": 8, "d7": 10, "d8": 10}
    assert samples.features.shape == (156, WIDTH)
    assert len({(r["set"], r["lesion"]) for r in samples.rows}) == 156
    row = next(i for i, r in enumerate(samples.rows) if r["class"] == "mel")
    lesion = samples.rows[row]["lesion"]
    assert np.allclose(samples.features[row], ATLAS.eight[ATLAS.lesion == lesion].mean(0), atol=1e-4)

    write_statistics(tmp_path, public_space(ATLAS, OTHERS, BASE), samples, BASE, "ab")
    stored = safetensors.numpy.load_file(tmp_path / "statistics.safetensors")
    names = json.loads((tmp_path / "statistics.json").read_text())
    assert {k: v.shape for k, v in stored.items()} == {
        "mean": (WIDTH,),
        "plain_mean": (WIDTH,),
        "directions": (64, WIDTH),
        "means": (2, WIDTH),
        "bank": (156, WIDTH),
    }
    assert len(names["bank"]) == 156
    assert names["base_sha256"] == "ab"


def test_packed_features_keep_their_names() -> None:
    data, names = pack_features(OTHERS)
    stored = safetensors.numpy.load(data)["eight"]
    assert stored.dtype == np.float16
    assert len(stored) == len(names) == 120
    assert names[0] == {"set": "cxr", "image": "normal/0", "class": "normal", "lesion": "normal-0"}
