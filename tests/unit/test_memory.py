"""Class memory: a record has norm at most 1, pooling is exact without noise, noise alone is worth nothing, own parts come out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgps.memory import Contribution, Coordinates, Memory, blend, noise_threshold, pool, record

F, K, C = 40, 8, 5
RNG = np.random.default_rng(3)
PLACE = Coordinates(
    RNG.normal(size=F).astype(np.float32), np.linalg.qr(RNG.normal(size=(F, K)))[0].T.astype(np.float32), 3.0, 4.0
)
IDS = tuple(f"class-{c}" for c in range(C))


def at_radius(features: list[np.ndarray]) -> np.ndarray:
    places = PLACE.place(np.array(features))
    return PLACE.radius * places / np.linalg.norm(places, axis=1, keepdims=True)


def contribution(patients: dict[int, list[np.ndarray]], sigma: float = 0.0, seed: int = 0) -> Contribution:
    rows, counts = np.zeros((C, K)), np.zeros(C)
    for c, features in patients.items():
        for feature in features:
            r, n = record(PLACE, {c: feature}, C)
            rows, counts = rows + r, counts + n
    rng = np.random.default_rng(seed)
    return Contribution(rows + sigma * rng.normal(size=rows.shape), counts + sigma * rng.normal(size=C), sigma)


@given(seed=st.integers(0, 2**32), classes=st.sets(st.integers(0, C - 1), min_size=1), size=st.floats(0, 1e6))
def test_a_record_never_has_more_than_unit_norm(seed: int, classes: set[int], size: float) -> None:
    rng = np.random.default_rng(seed)
    rows, counts = record(PLACE, {c: size * rng.normal(size=F) for c in classes}, C)
    assert np.sqrt((rows**2).sum() + (counts**2).sum()) <= 1 + 1e-9
    assert set(np.flatnonzero(counts)) == classes


def test_a_record_of_no_or_an_unknown_class_is_an_error() -> None:
    for features in ({}, {C: np.zeros(F)}, {-1: np.zeros(F)}):
        with pytest.raises(ValueError, match="class of the catalogue"):
            record(PLACE, features, C)


def test_without_noise_rows_are_the_means_of_patients_brought_to_the_radius() -> None:
    near = [PLACE.lift(x) for x in RNG.normal(size=(6, K)) * 0.3]
    one, two = contribution({1: near[:3]}), contribution({1: near[3:]})
    memory = pool(PLACE, IDS, [one, two])
    assert np.allclose(memory.row(1), at_radius(near).mean(0), atol=1e-6)
    assert memory.worth(1) == pytest.approx(6)
    assert memory.worth(0) == 0


def test_order_of_sites_does_not_matter() -> None:
    parts = [contribution({c: [RNG.normal(size=F)] * (c + 1)}, 1.0, seed=c) for c in range(3)]
    one, two = pool(PLACE, IDS, parts), pool(PLACE, IDS, parts[::-1])
    assert np.allclose(one.total, two.total) and np.allclose(one.noise, two.noise) and one.threshold == two.threshold


def test_noise_alone_is_worth_nothing_in_99_of_100_rows() -> None:
    worths = [
        pool(PLACE, IDS, [contribution({}, 1.4, seed=10 * s + j) for j in range(4)]).worth(c)
        for s in range(60)
        for c in range(C)
    ]
    assert 0 < np.mean(np.array(worths) > 0) < 0.035


def test_planted_fault_without_the_threshold_noise_would_be_used() -> None:
    memory = pool(PLACE, IDS, [contribution({}, 1.4, seed=j) for j in range(4)])
    careless = Memory(**{**vars(memory), "threshold": 0.0})
    assert any(careless.worth(c) > 0 for c in range(C))


def test_worth_grows_with_patients_and_falls_with_noise() -> None:
    patients = {0: [PLACE.lift(RNG.normal(size=K)) for _ in range(60)]}
    worth = [pool(PLACE, IDS, [contribution(patients, s)]).worth(0) for s in (0.0, 0.6, 1.4, 4.0)]
    assert worth == sorted(worth, reverse=True) and worth[0] == pytest.approx(60)
    assert pool(PLACE, IDS, [contribution({0: patients[0][:20]}, 1.4)]).worth(0) < worth[2]


def test_a_site_takes_its_own_part_out() -> None:
    own = contribution({2: [PLACE.lift(RNG.normal(size=K)) for _ in range(30)]}, 0.5, seed=1)
    other = contribution({2: [PLACE.lift(RNG.normal(size=K)) for _ in range(40)]}, 0.5, seed=2)
    left = pool(PLACE, IDS, [own, other]).without(own)
    alone = pool(PLACE, IDS, [other])
    assert np.allclose(left.row(2), alone.row(2), atol=1e-6)
    assert left.spread[2] / left.count[2] ** 2 == pytest.approx(alone.spread[2] / alone.count[2] ** 2)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 3.731])
def test_nothing_is_left_of_a_row_that_one_site_alone_filled(sigma: float) -> None:
    """What rounding left of its doubt once made an empty row worth 1e15 patients, which outweighed forty real ones."""
    own = contribution({2: [PLACE.lift(RNG.normal(size=K)) for _ in range(40)]}, sigma, seed=1)
    sent = Contribution(own.rows.astype(np.float32), own.counts.astype(np.float32), own.sigma)
    stored = Memory.from_arrays(pool(PLACE, IDS, [sent]).arrays(), IDS)
    left = stored.without(sent)
    seen = PLACE.lift(RNG.normal(size=K))
    assert left.worth(2) == 0
    assert np.array_equal(left.blend(seen, 1, 2, np.ones(K)), seen)


def test_arrays_round_trip_and_misfits_are_refused() -> None:
    memory = pool(PLACE, IDS, [contribution({0: [RNG.normal(size=F)]}, 1.0)])
    again = Memory.from_arrays(memory.arrays(), IDS)
    assert np.array_equal(again.total, memory.total) and again.worth(0) == memory.worth(0)
    with pytest.raises(ValueError, match="fit the catalogue"):
        Memory.from_arrays(memory.arrays(), IDS[:-1])
    with pytest.raises(ValueError, match="lacks"):
        Memory.from_arrays({k: v for k, v in memory.arrays().items() if k != "memory.noise"}, IDS)
    with pytest.raises(ValueError, match="not finite"):
        Memory.from_arrays({**memory.arrays(), "memory.total": np.full((C, K), np.nan)}, IDS)


def test_pool_refuses_another_catalogue() -> None:
    with pytest.raises(ValueError, match="fit the catalogue"):
        pool(PLACE, IDS, [Contribution(np.zeros((C + 1, K)), np.zeros(C + 1), 1.0)])


def test_a_row_counts_for_more_where_the_exemplar_is_uncertain() -> None:
    row, seen, inside = PLACE.lift(RNG.normal(size=K)), RNG.normal(size=F), np.geomspace(10, 0.01, K)
    memory = pool(PLACE, IDS, [contribution({0: [row] * 60}, 0.6)])
    n, noise = memory.count[0], memory.noise[0] / K
    worth = 1 / (memory.spread[0] / n**2 + noise / (n**2 * inside))
    assert worth[0] > 5 * worth[-1]
    place = PLACE.place(seen)
    found = memory.blend(seen, 2, 0, inside)
    assert np.allclose(PLACE.place(found), (2 * place + worth * memory.row(0)) / (2 + worth), atol=1e-4)
    outside = np.eye(F) - PLACE.directions.T @ PLACE.directions
    assert np.allclose(outside @ found, outside @ seen, atol=1e-4)
    assert np.allclose(memory.blend(np.stack([seen, seen]), 2, 0, inside), found)


def test_a_row_of_nobody_leaves_the_exemplar_bit_for_bit() -> None:
    seen = RNG.normal(size=F).astype(np.float32)
    assert np.array_equal(Memory.empty(PLACE, IDS).blend(seen, 1, 0, np.ones(K)), seen)


def test_without_noise_a_row_counts_as_its_patients_in_every_coordinate() -> None:
    rows = [PLACE.lift(x) for x in RNG.normal(size=(7, K)) * 0.3]
    memory, seen = pool(PLACE, IDS, [contribution({3: rows})]), PLACE.lift(RNG.normal(size=K))
    found = memory.blend(seen, 1, 3, np.ones(K))
    assert np.allclose(PLACE.place(found), (PLACE.place(seen) + at_radius(rows).sum(0)) / 8, atol=1e-5)


def test_only_the_leading_coordinates_are_filled_and_read() -> None:
    wide = Coordinates(np.zeros(99), np.eye(99)[:80], 1.0, 1.0)
    rows, counts = record(wide, {0: np.ones(99)}, 1)
    assert np.all(rows[0, : wide.used] > 0) and not rows[0, wide.used :].any()
    assert np.isclose((rows**2).sum() + (counts**2).sum(), 1)
    noisy = Contribution(rows + np.ones_like(rows), counts, 0.0)
    assert not pool(wide, ("a",), [noisy]).row(0)[wide.used :].any()


def test_the_spread_of_public_samples_is_unbiased_and_flat_where_there_is_none() -> None:
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(500), 3)
    places = random.normal(size=(1500, K)) * np.sqrt(np.arange(1, K + 1)) + 9 * random.normal(size=(500, K))[label]
    found = PLACE.inside(np.array([PLACE.lift(p) for p in places]), label)
    assert np.allclose(found, np.arange(1, K + 1), rtol=0.15)
    assert np.allclose(PLACE.inside(np.zeros((2, F)), np.array([0, 1])), PLACE.within / K)


def test_blend_and_threshold_edges() -> None:
    assert np.allclose(blend(np.ones(3), np.zeros(3), 3.0, 1), 0.25)
    assert np.allclose(blend(np.ones(3), np.zeros(3), 0.0, 1), 1.0)
    assert noise_threshold([0.0, 0.0], PLACE) == 0.0
    assert noise_threshold([1.0], PLACE) == noise_threshold([1.0], PLACE) > 0
