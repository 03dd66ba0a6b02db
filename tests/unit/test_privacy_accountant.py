"""Calibration, composition, neighbouring relations."""

from __future__ import annotations

import math

import dp_accounting as dpa
import pytest
from scipy.special import log_ndtr, ndtr

from sgps_privacy import accountant
from sgps_privacy.accountant import (
    calibrate,
    epsilon,
    equivalent_mu,
    full_batch_mu,
    gaussian_epsilon,
    gaussian_mu,
    replaced_epsilon,
    signal_ratio,
    split,
    true_positive_bound,
    with_sampler,
)
from sgps_privacy.errors import PrivacyError
from sgps_privacy.events import Event
from sgps_privacy.noise import sampler_distance

DELTA = 1e-5
EPSILONS = 1, 2, 3, 4, 8
SIGMAS = {
    1: (3.731, 1.994, 1.391, 1.082, 0.6003),
    5: (8.342, 4.459, 3.110, 2.418, 1.343),
    10: (11.80, 6.305, 4.398, 3.419, 1.899),
    20: (16.69, 8.917, 6.219, 4.836, 2.685),
    50: (26.38, 14.10, 9.833, 7.645, 4.245),
}


def own_delta(eps: float, mu: float) -> float:
    """Balle and Wang 2018, theorem 8: a second opinion on dp-accounting's formula."""
    return float(ndtr(mu / 2 - eps / mu) - math.exp(eps + log_ndtr(-mu / 2 - eps / mu)))


@pytest.mark.parametrize("steps", SIGMAS)
def test_calibration_gives_the_table_to_four_figures(steps: int) -> None:
    for target, want in zip(EPSILONS, SIGMAS[steps], strict=True):
        sigma = calibrate(target, DELTA, steps)
        assert float(f"{sigma:.4g}") == pytest.approx(want, abs=1e-9)
        assert epsilon([Event(sigma, 1.0, steps)], DELTA) <= target


@pytest.mark.parametrize("mu", [0.05, 0.268, 1.0, 1.666, 3.332])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_the_accountant_of_record_agrees_with_the_formula(mu: float, delta: float) -> None:
    assert own_delta(gaussian_epsilon(mu, delta), mu) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize(("eps", "mu"), [(0.5, 0.142), (1, 0.268), (2, 0.502), (3, 0.719), (4, 0.925), (8, 1.666)])
def test_mu_at_an_epsilon(eps: float, mu: float) -> None:
    assert gaussian_mu(eps, DELTA) == pytest.approx(mu, abs=5e-4)
    assert gaussian_epsilon(gaussian_mu(eps, DELTA), DELTA) == pytest.approx(eps, rel=1e-6)


def test_full_batch_events_add_as_squares_of_mu() -> None:
    events = [Event(2.0, 1.0, 4), Event(4.0, 1.0, 9)]
    assert full_batch_mu(events) == pytest.approx(math.hypot(1.0, 0.75))
    assert equivalent_mu(events, DELTA) == full_batch_mu(events)
    assert epsilon([], DELTA) == 0


@pytest.mark.parametrize(("eps", "replaced"), [(8, 19.1), (3, 6.7), (1, 2.2)])
def test_replacing_one_patient_doubles_mu(eps: float, replaced: float) -> None:
    event = Event(1 / gaussian_mu(eps, DELTA), 1.0, 1)
    assert replaced_epsilon([event], DELTA) == pytest.approx(replaced, abs=0.06)


def test_renyi_accounting_does_not_know_the_relation_and_must_not_be_believed() -> None:
    gaussian, relations = dpa.GaussianDpEvent(2.685), dpa.NeighboringRelation
    rdp = {
        r: dpa.rdp.RdpAccountant(neighboring_relation=r).compose(gaussian, 20).get_epsilon(DELTA)
        for r in (relations.REPLACE_SPECIAL, relations.REPLACE_ONE)
    }
    assert rdp[relations.REPLACE_ONE] == rdp[relations.REPLACE_SPECIAL]  # the same figure for twice the sensitivity
    assert replaced_epsilon([Event(2.685, 1.0, 20)], DELTA) > 2 * rdp[relations.REPLACE_ONE]


def test_sampled_replacement_is_an_upper_bound() -> None:
    event = Event(2.0, 0.25, 10)
    accountant = dpa.pld.PLDAccountant(dpa.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dpa.PoissonSampledDpEvent(0.25, dpa.GaussianDpEvent(2.0)), 10)
    assert accountant.get_epsilon(DELTA) <= replaced_epsilon([event], DELTA) < 4 * epsilon([event], DELTA)
    removed = dpa.pld.PLDAccountant(dpa.NeighboringRelation.REPLACE_SPECIAL)
    removed.compose(dpa.PoissonSampledDpEvent(0.25, dpa.GaussianDpEvent(2.0)), 10)
    half = replaced_epsilon([event], DELTA) / 2  # (e, d) twice is (2e, (1 + exp(e)) d)
    assert (1 + math.exp(half)) * removed.get_delta(half) <= DELTA


def test_sampled_and_full_batch_events_compose() -> None:
    full, sampled = Event(10.0, 1.0, 10), Event(2.0, 0.2, 50)
    assert epsilon([full], DELTA) == pytest.approx(1.20, abs=0.01)
    assert epsilon([sampled], DELTA) == pytest.approx(3.49, abs=0.01)
    assert epsilon([full, sampled], DELTA) == pytest.approx(3.75, abs=0.01)
    assert equivalent_mu([full, sampled], DELTA) == pytest.approx(gaussian_mu(epsilon([full, sampled], DELTA), DELTA))


def test_equal_sampled_events_are_merged_and_their_order_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [Event(2.0, 0.2, 20), Event(3.0, 0.5, 2), Event(2.0, 0.2, 30)]
    found = epsilon(parts, DELTA)
    monkeypatch.setattr(accountant, "_composed", lambda *_: pytest.fail("composed again"))
    with pytest.raises(pytest.fail.Exception):
        epsilon([Event(2.0, 0.2, 51), Event(3.0, 0.5, 2)], DELTA)
    monkeypatch.undo()
    by_hand = dpa.pld.PLDAccountant(dpa.NeighboringRelation.REPLACE_SPECIAL)
    for e in parts:
        by_hand.compose(dpa.PoissonSampledDpEvent(e.q, dpa.GaussianDpEvent(e.sigma)), e.steps)
    assert found == pytest.approx(by_hand.get_epsilon(DELTA), rel=1e-3)
    assert epsilon(parts[::-1], DELTA) == found


@pytest.mark.parametrize("target", [0.5, 3.0, 8.0])
def test_shares_of_mu_squared_cost_the_target_together_and_never_more(target: float) -> None:
    sigmas = split(target, DELTA, (0.2, 0.8))
    assert sigmas[0] / sigmas[1] == pytest.approx(2, rel=2e-3)
    together = epsilon([Event(s, 1.0, 1) for s in sigmas], DELTA)
    assert target * 0.99 < together <= target
    assert split(target, DELTA, (1.0,)) == (calibrate(target, DELTA, 1),)


def test_shares_that_are_none_are_refused() -> None:
    for shares in ((0.3, 0.8), (0.0, 0.5), (-0.2, 0.5)):
        with pytest.raises(PrivacyError, match="shares"):
            split(3.0, DELTA, shares)
    with pytest.raises(PrivacyError, match="promises nothing"):
        split(80.0, DELTA, (1.0,))


def test_sampled_steps_are_calibrated_to_the_fourth_figure() -> None:
    sigma = calibrate(3, DELTA, 20, 0.25)
    assert epsilon([Event(sigma, 0.25, 20)], DELTA) <= 3 < epsilon([Event(sigma - 0.002, 0.25, 20)], DELTA)


@pytest.mark.slow
@pytest.mark.parametrize(("q", "steps", "sigma"), [(0.5, 20, 1.553), (0.25, 80, 1.572)])
def test_sampling_never_gives_more_signal_than_the_full_batch(q: float, steps: int, sigma: float) -> None:
    found = calibrate(8, DELTA, steps, q)
    assert found == pytest.approx(sigma, abs=2e-3)
    assert math.sqrt(steps) * q / found < gaussian_mu(8, DELTA)


def test_calibration_counts_what_is_spent_and_refuses_when_nothing_is_left() -> None:
    spent = [Event(2.0, 1.0, 1)]
    sigma = calibrate(3, DELTA, 1, spent=spent)
    assert sigma > calibrate(3, DELTA, 1)
    assert epsilon([*spent, Event(sigma, 1.0, 1)], DELTA) <= 3
    with pytest.raises(PrivacyError, match="nothing left"):
        calibrate(1, DELTA, 1, spent=spent)
    with pytest.raises(PrivacyError, match="promises nothing"):
        calibrate(80, DELTA, 1)


@pytest.mark.parametrize(("mu", "share"), [(1.666, 0.51), (0.719, 0.18), (0.268, 0.084)])
def test_what_an_attacker_with_five_percent_false_alarms_finds(mu: float, share: float) -> None:
    assert true_positive_bound(mu) == pytest.approx(share, abs=0.005)
    assert true_positive_bound(0.0) == pytest.approx(0.05)


@pytest.mark.parametrize(("eps", "n", "d", "ratio"), [(8, 50, 1000, 2.63), (8, 100, 300, 9.62), (3, 200, 1000, 4.55), (1, 20, 1000, 0.17)])  # fmt: skip
def test_signal_over_noise(eps: float, n: int, d: int, ratio: float) -> None:
    assert signal_ratio(n, gaussian_mu(eps, DELTA), d) == pytest.approx(ratio, abs=0.01)
    assert signal_ratio(n, 1.0, d, sites=4) == pytest.approx(2 * signal_ratio(n, 1.0, d))


def test_the_sampler_costs_next_to_nothing_and_never_less() -> None:
    events = [Event(4.245, 1.0, 50)]
    plain, real = epsilon(events, DELTA), with_sampler(events, DELTA, sampler_distance(8000 * 50))
    assert plain < real < plain + 1e-4
    assert with_sampler(events, DELTA, 1.0) == math.inf
    worse, far = with_sampler(events, DELTA, 1e-9), DELTA - (1 + math.exp(plain)) * 1e-9  # delta + (1 + e^epsilon) tau
    assert worse == pytest.approx(epsilon(events, far), rel=1e-2) and worse >= epsilon(events, far)
    assert epsilon(events, far) > 1.01 * plain


@pytest.mark.parametrize("wrong", [(math.nan, 1.0, 1), (0.0, 1.0, 1), (math.inf, 1.0, 1), (-1.0, 1.0, 1), (1.0, 0.0, 1),
                                   (1.0, 1.5, 1), (1.0, math.nan, 1), (1.0, 1.0, 0), (1.0, 1.0, True), (1.0, 1.0, 2.0), (1.0, 1.0, 10**400)])  # fmt: skip
def test_an_event_that_is_no_mechanism_is_refused(wrong: tuple[float, float, int]) -> None:
    with pytest.raises(PrivacyError):
        Event(*wrong)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_lies_strictly_between_nothing_and_one(delta: float) -> None:
    with pytest.raises(PrivacyError):
        epsilon([Event(1.0, 1.0, 1)], delta)


def test_a_sampled_event_with_next_to_no_noise_passes_every_budget_at_once() -> None:
    assert epsilon([Event(0.01, 0.5, 3)], DELTA) == math.inf


@pytest.mark.parametrize(("sigma", "distance"), [(3.731, 1e-6), (1.391, 2e-7)])
def test_what_the_sampler_costs_is_paid_at_the_epsilon_that_is_stated(sigma: float, distance: float) -> None:
    """(eps, d) of the ideal becomes (eps, d + (1 + e^eps) tau) of the real sampler; distances far above the real one, about 1e-13."""
    events = [Event(sigma, 1.0, 1)]
    stated = with_sampler(events, DELTA, distance)
    assert accountant.epsilon(events, DELTA - (1 + math.exp(stated)) * distance) <= stated
