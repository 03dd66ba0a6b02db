import numpy as np
import pytest

from sgps.calibration import Calibration, Share, fit_logistic, fit_temperature, p_values, score

R = np.random.default_rng


def calibration(named=1, negatives=(), level=0.1, **more):
    given = {"least": -1e9, "slope": 1.0, "offset": 0.0, "temperature": 1.0, "measured": ()}
    return Calibration(named=named, false_alarms=level, negatives=tuple(sorted(negatives)), **{**given, **more})


def test_score_is_the_formula_of_the_card():
    logits = np.array([[2.0, 1.0, -3.0], [0.0, -1.0, -0.5]])
    assert np.allclose(score(logits, 1), [[2 - 0.6], [0 + 0.3]])
    assert np.array_equal(score(logits, 3), logits)


def test_p_values_count_negatives_at_least_as_high():
    assert np.allclose(p_values(np.array([0.0, 2.0, 2.5, 9.0]), np.array([3.0, 1.0, 2.0])), [1.0, 3 / 4, 2 / 4, 1 / 4])


@pytest.mark.parametrize("level", [0.05, 0.1, 0.3])
def test_false_alarms_of_exchangeable_negatives_keep_to_the_level(level):
    rates = []
    for seed in range(200):
        draw = R(seed).normal(size=(160, 3))
        c = calibration(negatives=score(draw[:60], 1)[:, 0], level=level)
        rates.append(c.decide(draw[60:]).accepted.mean())
    assert level - 0.03 < np.mean(rates) <= level + 0.005


def test_the_threshold_says_what_p_says():
    negatives = R(0).normal(size=57)
    for level in (0.02, 0.1, 0.5):
        c = calibration(negatives=negatives, level=level)
        logits = np.stack([np.linspace(-3, 3, 200), np.zeros(200)], 1)
        assert np.array_equal(c.decide(logits).accepted, score(logits, 1)[:, 0] > c.threshold)
    assert calibration(negatives=negatives, level=0.01).threshold == np.inf


def test_one_disease_ends_as_disease_rival_or_none():
    c = calibration(negatives=np.linspace(-1, 1, 99), level=0.1, least=0.0)
    d = c.decide(np.array([[5.0, 0.0, 1.0], [0.2, 3.0, 1.0], [0.5, 0.4, 0.3], [-1.0, -2.0, -3.0]]))
    assert d.output.tolist()[:2] == [0, 1] and d.none.tolist() == [False, False, True, True]
    assert d.accepted.tolist() == [True, False, False, False]


def test_several_diseases_end_as_one_of_them_or_none():
    c = calibration(named=3, negatives=np.linspace(-1, 1, 99), least=0.0)
    d = c.decide(np.array([[0.1, 2.0, 0.3], [-1.0, -2.0, -3.0]]))
    assert d.output.tolist() == [1, 0] and d.none.tolist() == [False, True]
    assert d.probability[0] == pytest.approx(np.exp(2.0) / np.exp([0.1, 2.0, 0.3]).sum())


def test_logistic_recovers_its_parameters():
    r = R(1)
    x = r.normal(size=40_000)
    y = r.random(len(x)) < 1 / (1 + np.exp(-(2 * x - 1)))
    slope, offset = fit_logistic(x, y, np.ones(len(x)))
    assert slope == pytest.approx(2, abs=0.1) and offset == pytest.approx(-1, abs=0.1)


def test_a_score_that_points_the_wrong_way_gets_no_slope():
    x = np.linspace(-1, 1, 50)
    assert fit_logistic(x, x < 0, np.ones(50))[0] == 0


def test_temperature_cools_and_heats():
    r = R(2)
    labels = r.integers(3, size=3000)
    logits = r.gumbel(size=(3000, 3))
    logits[np.arange(3000), labels] += 1.0
    one = fit_temperature([logits], [labels])
    assert fit_temperature([10 * logits], [labels]) == pytest.approx(10 * one, rel=0.15)


def test_shares_hold_the_true_rate():
    assert Share.of("a", 0, 10).low == 0 and Share.of("a", 10, 10).high == 1
    r, inside = R(3), 0
    for _ in range(300):
        s = Share.of("a", int(r.binomial(60, 0.1)), 60)
        inside += s.low <= 0.1 <= s.high
    assert inside >= 280
