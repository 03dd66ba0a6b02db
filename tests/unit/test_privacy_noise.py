"""The sampler against its law, the grid against its promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chisquare, kstest, norm

from sgps_privacy import noise
from sgps_privacy.errors import PrivacyError
from sgps_privacy.noise import Grid, SecureBits, discrete_gaussian, grid_room, sampler_distance


@pytest.mark.parametrize("bits", [0, 1, 2, 3])
def test_small_scales_follow_the_discrete_gaussian(bits: int) -> None:
    sigma, count = 2**bits, 200_000
    k = np.arange(-60 * sigma, 60 * sigma + 1)
    law = np.exp(-(k.astype(float) ** 2) / (2 * sigma**2))
    law /= law.sum()
    seen = np.bincount(discrete_gaussian(count, bits) + 60 * sigma, minlength=k.size)
    many = law * count > 20
    found = [*seen[many], seen[~many].sum()]
    assert chisquare(found, [*(law[many] * count), law[~many].sum() * count]).pvalue > 1e-6


def test_the_scale_in_use_has_variance_and_shape_of_a_gaussian() -> None:
    draws = discrete_gaussian(500_000) / 2.0**24
    assert abs(draws.std() - 1) < 5 / math.sqrt(2 * draws.size)
    assert kstest(draws, "norm").pvalue > 1e-6


@pytest.mark.parametrize("sigma", [8, 16])
def test_the_distance_to_a_rounded_gaussian_is_the_one_that_is_claimed(sigma: int) -> None:
    k = np.arange(-30 * sigma, 30 * sigma + 1)
    law = np.exp(-(k.astype(float) ** 2) / (2 * sigma**2))
    law /= law.sum()
    away = np.abs(k)
    rounded = norm.sf((away - 0.5) / sigma) - norm.sf((away + 0.5) / sigma)
    divergence = float((law * np.log(law / rounded)).sum())
    assert divergence * 576 * sigma**4 == pytest.approx(1, abs=0.01)
    assert sampler_distance(1000, int(math.log2(sigma))) == pytest.approx(math.sqrt(1000 * divergence / 2), rel=0.01)


def test_below_is_uniform_also_where_the_bound_is_no_power_of_two() -> None:
    assert chisquare(np.bincount(SecureBits().below(7, 70_000), minlength=7)).pvalue > 1e-6


def test_a_word_of_the_last_partial_block_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([[2**64 - 1, 5], [2**64 - 1], [7]])  # 2^64 - 1 is a multiple of 3, so 0 would come once too often
    monkeypatch.setattr(SecureBits, "words", lambda self, count: np.array(next(drawn), dtype=np.uint64))
    assert SecureBits().below(3, 2).tolist() == [1, 2]


def test_a_draw_whose_square_would_leave_64_bits_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = iter([True, *[True] * 70, False])  # the low part is kept, then seventy coins in a row
    monkeypatch.setattr(noise, "_bernoulli_exp", lambda bits, n, _: np.full(n.size, next(heads)))
    assert noise._discrete_laplace(SecureBits(), 5, 24).size == 0


def test_no_two_key_streams_are_equal() -> None:
    assert len({SecureBits().words(4).tobytes() for _ in range(100)}) == 100


@pytest.mark.parametrize(("sigma", "size"), [(0.6, 455), (1.391, 3900), (2.685, 5000), (30.0, 8000)])
def test_the_grid_keeps_sigma_for_the_sensitivity_after_rounding(sigma: float, size: int) -> None:
    grid = Grid(0.7, sigma, size)
    worst = 0.7 * (1 + grid.slack) / grid.gamma + 1.001 * math.sqrt(size)  # grid steps between neighbouring sums
    assert worst * sigma == pytest.approx(2**24, rel=1e-12)
    assert 0 < grid.std / (sigma * 0.7) - 1 < 3e-4


def test_the_errors_of_sums_in_float64_are_paid_for() -> None:
    for clip, sigma, size in ((1.0, 1.391, 4420), (0.3, 10.0, 64)):
        room = 2.0**24 / sigma - 1.001 * math.sqrt(size)
        assert Grid(clip, sigma, size).gamma * room == pytest.approx(clip * (1 + 1e-6), rel=1e-9)


def test_rounding_neighbours_moves_whole_numbers_by_no_more_than_is_paid_for() -> None:
    grid, rng = Grid(1.0, 16.0, 400), np.random.default_rng(5)
    worst = 0.0
    for _ in range(200):
        total, record = rng.normal(size=400) * 30, rng.normal(size=400)
        record /= np.linalg.norm(record)
        moved = grid.quantise(total + record) - grid.quantise(total)
        worst = max(worst, float(np.linalg.norm(moved.astype(float))))
    assert worst * 16.0 <= 2**24


@pytest.mark.parametrize("values", [[math.nan, 0], [math.inf, 0], [1e12, 0], [0.0]])
def test_a_sum_outside_the_grid_is_refused(values: list[float]) -> None:
    with pytest.raises(PrivacyError):
        Grid(1.0, 1.0, 2).quantise(np.array(values))


def test_float32_sums_are_refused() -> None:
    with pytest.raises(PrivacyError, match="float64"):
        Grid(1.0, 1.0, 2).quantise(np.zeros(2, dtype=np.float32))  # type: ignore[arg-type]


def test_a_sigma_that_makes_the_grid_coarse_is_refused() -> None:
    assert grid_room(30.0, 8000) and not grid_room(2e4, 8000)
    with pytest.raises(PrivacyError):
        Grid(1.0, 2e4, 8000)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan])
def test_a_clip_that_bounds_nothing_makes_no_grid(clip: float) -> None:
    with pytest.raises(PrivacyError, match="no sound grid"):
        Grid(clip, 1.0, 10)


def test_noise_reads_no_random_state_that_a_program_can_set(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []
    for _ in range(2):
        np.random.seed(0)
        draws.append(discrete_gaussian(50))
    assert not np.array_equal(*draws)
    asked: list[int] = []
    genuine = noise.os.urandom
    monkeypatch.setattr(noise.os, "urandom", lambda count: asked.append(count) or genuine(count))
    discrete_gaussian(50)
    assert asked == [32, 16]  # one fresh key and counter for the vector
