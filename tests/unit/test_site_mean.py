"""Where a site's camera lies: bounded records, an estimate that noise cannot move, and centred rows of unchanged sensitivity."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench

from sgps import memory, site_mean
from sgps.files import sha256_file
from sgps.release import MANIFEST, Release

COORDINATES = site_bench.coordinates()
F = site_bench.FEATURES
SHIFT = np.array([0.6, -0.4, 0.2, 0.5])


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = site_bench.make_release(tmp_path_factory.mktemp("r") / "0000", None)
    return Release.open(folder, sha256=sha256_file(folder / MANIFEST))


def test_common_classes_are_those_with_a_public_mean(release: Release) -> None:
    means = site_mean.common(release)
    assert [site_bench.CLASSES[c] for c in means] == list(site_bench.COMMON)
    assert np.allclose(means[0], site_bench.bank().means[0], atol=2e-3)  # kept as float16


@given(scale=st.floats(0, 1e6), seed=st.integers(0, 99), classes=st.sets(st.integers(0, 2), min_size=1))
def test_a_records_norm_is_at_most_one_whatever_the_patient(scale: float, seed: int, classes: set[int]) -> None:
    rng = np.random.default_rng(seed)
    means = {0: rng.normal(size=F), 1: rng.normal(size=F)}
    found = site_mean.record(COORDINATES, means, {c: scale * rng.normal(size=F) for c in classes})
    if found is None:
        assert classes == {2}
    else:
        assert np.linalg.norm(np.concatenate(found)) <= 1 + 1e-12


@given(scale=st.floats(0, 1e6), offset=st.floats(-1e6, 1e6), seed=st.integers(0, 99))
def test_centring_leaves_the_norm_of_a_rows_record_at_most_one(scale: float, offset: float, seed: int) -> None:
    """Taking the offset off after the record was shortened would break this."""
    rng = np.random.default_rng(seed)
    features = {0: scale * rng.normal(size=F), 2: scale * rng.normal(size=F)}
    rows, counts = memory.record(COORDINATES, features, 3, np.full(site_bench.K, offset))
    assert np.linalg.norm(np.concatenate([rows.ravel(), counts])) <= 1 + 1e-12


def site(patients: int, sigma: float, shift: np.ndarray = SHIFT, seed: int = 0) -> np.ndarray:
    """The estimate that a site of so many patients gets under this noise. Patients scatter with the public within-class variance."""
    rng = np.random.default_rng(seed)
    means = {0: rng.normal(size=F), 1: rng.normal(size=F)}
    total, count = np.zeros(site_bench.K), np.zeros(1)
    for i in range(patients):
        scatter = rng.normal(size=site_bench.K) * math.sqrt(COORDINATES.within / site_bench.K)
        feature = means[i % 2] + (shift + scatter) @ COORDINATES.directions
        part = site_mean.record(COORDINATES, means, {i % 2: feature})
        assert part is not None
        total, count = total + part[0], count + part[1]
    total, count = total + sigma * rng.normal(size=total.shape), count + sigma * rng.normal(size=1)
    return site_mean.offset(total, count, sigma, COORDINATES)


def test_the_shift_of_a_camera_is_found_and_chance_is_not_taken_for_one() -> None:
    assert np.linalg.norm(site(400, 3.1) - SHIFT) < 0.35 * np.linalg.norm(SHIFT)
    empty = [np.linalg.norm(site(0, 3.1, seed=s)) for s in range(200)]
    same = [np.linalg.norm(site(200, 3.1, 0 * SHIFT, seed=s)) for s in range(50)]
    assert np.mean(np.array(empty) == 0) > 0.5 and np.median(same) == 0
    assert np.mean(same) < 0.1 * np.linalg.norm(SHIFT)


def test_centred_rows_of_another_camera_lie_where_the_public_ones_do() -> None:
    rng = np.random.default_rng(1)
    disease = rng.normal(size=F)
    seen = disease + SHIFT @ COORDINATES.directions
    plain, _ = memory.record(COORDINATES, {2: disease * 0.01}, 3)
    centred, _ = memory.record(COORDINATES, {2: disease * 0.01 + seen - disease}, 3, SHIFT)
    assert np.allclose(plain, centred, atol=1e-6)
