"""The strongest adversary gets close to the claim and not beyond it; a planted fault is refuted."""

from __future__ import annotations

import numpy as np
import pytest
from opacus.optimizers import DPOptimizer
from scipy.stats import norm

from sgps_privacy.attacks import distinguishing, epsilon_bound, low_bits, mu_bound, one_run, one_run_bound
from sgps_privacy.engine import PrivateRound, Record, SecureDPOptimizer


class RecordTwice(PrivateRound):
    def records_of_step(self, records: list[Record | None]) -> list[Record | None]:
        return [*records, *records[:1]]


@pytest.mark.slow
def test_the_game_comes_close_to_the_claim_and_does_not_refute_it() -> None:
    found = distinguishing(1500)
    assert 0.7 * found.claimed < found.mu <= found.claimed
    assert found.epsilon < 8.0


def test_the_game_refutes_a_record_that_counts_twice() -> None:
    found = distinguishing(500, RecordTwice)
    assert found.mu > found.claimed


def test_one_run_with_many_canaries_stays_below_the_claim() -> None:
    assert 0.5 < one_run() < 8.0


def test_low_bits_of_the_grid_tell_nothing() -> None:
    ours = low_bits()
    assert min(ours) > 100


def test_low_bits_of_float_noise_tell_two_sums_apart_for_certain() -> None:
    class FloatNoise(SecureDPOptimizer):
        add_noise = DPOptimizer.add_noise

    when_zero, when_one = low_bits(FloatNoise)
    assert when_zero > 100 and when_one == 0


@pytest.mark.parametrize("mu", [0.5, 1.666, 3.0])
def test_a_bound_of_mu_stays_below_the_truth_and_comes_near(mu: float) -> None:
    trials = 100_000
    errors = round(trials * float(norm.sf(mu / 2)))  # the expected counts of a mu-Gaussian
    assert 0.95 * mu < mu_bound(errors, errors, trials) < mu
    assert mu_bound(trials // 2, trials // 2, trials) == 0


def test_plain_counts_bound_epsilon_without_presuming_anything() -> None:
    assert epsilon_bound(0, 0, 1000, 1e-5) > 4
    assert epsilon_bound(500, 500, 1000, 1e-5) == 0


def test_scores_that_know_nothing_prove_nothing() -> None:
    rng = np.random.default_rng(0)
    present = rng.random(2000) < 0.5
    assert one_run_bound(rng.normal(size=2000), present, 160, 1e-5) < 1
    assert one_run_bound(present + rng.normal(size=2000) * 1e-3, present, 160, 1e-5) > 2
