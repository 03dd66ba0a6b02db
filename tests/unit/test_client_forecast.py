"""The forecast agrees with the measured figures that it stands on, and says plainly when patients are too few."""

import pytest

from sgps.errors import InputError
from sgps.forecast import ENOUGH, HOPELESS, NOTHING
from sgps_client.forecast import alone, forecast, too_few


@pytest.mark.parametrize(("epsilon", "r"), [(8, 1.47), (3, 0.64), (1, 0.24)])
def test_five_patients_alone(epsilon: float, r: float) -> None:
    found = forecast(5, epsilon)
    assert found.r == pytest.approx(r, abs=0.01)
    assert ("only receiving" in found.text()) == (found.r < HOPELESS)


@pytest.mark.parametrize(
    ("sites", "needed"), [(1, (8, 18, 47)), (3, (13, 30, 81)), (6, (19, 43, 114)), (12, (26, 60, 161))]
)
def test_patients_for_four_fifths_of_the_gain(sites: int, needed: tuple[int, int, int]) -> None:
    found = [forecast(12, epsilon, sites).enough for epsilon in (8, 3, 1)]
    assert found == [pytest.approx(n, abs=1) for n in needed]
    assert all(
        forecast(n, e, sites).kept == pytest.approx(80, abs=6)
        for n, e in zip(found, (8, 3, 1), strict=True)
        if n >= sites
    )


@pytest.mark.parametrize(  # docs/results/federated.md, its last table
    ("patients", "sites", "epsilon", "kept"),
    [(10, 6, 3, 5), (20, 3, 3, 57), (40, 6, 3, 79), (80, 6, 3, 93), (160, 6, 1, 83), (40, 1, 1, 78), (80, 12, 8, 99)],
)
def test_the_kept_share_is_that_of_the_measured_cells(patients: int, sites: int, epsilon: float, kept: int) -> None:
    found = forecast(patients, epsilon, sites)
    assert found.kept == pytest.approx(kept, abs=16)
    assert found.low - 10 <= kept <= found.high + 2  # the combinations scatter, most of all near r = 1


def test_gain_and_kept_share_grow_with_patients() -> None:
    found = [forecast(n, 3.0, 6) for n in (6, 12, 24, 48, 96, 200)]
    assert [f.kept for f in found] == sorted(f.kept for f in found)
    assert "points of AUROC" in found[0].text() and 8 < found[-1].gain < 13


def test_the_words_do_not_promise_what_noise_takes() -> None:
    assert "passes for noise" in forecast(5, 1.0).text()
    assert "it is a forecast" in forecast(500, 3.0, 6).text()


def test_a_site_that_is_too_small_is_told_so() -> None:
    mu = forecast(20, 3.0).mu
    enough, nothing = (round(r * 32**0.5 / mu) for r in (HOPELESS, NOTHING))
    assert alone(enough + 1, mu) is None
    assert "too few to help alone (from 8 on in part, from 18 on with 80 %" in (alone(enough - 1, mu) or "")
    assert "too few to help at all" in (alone(nothing - 1, mu) or "")
    assert list(too_few({"nv": 400, "df": 1, "akiec": 3}, 3.0, 1e-5)) == ["df", "akiec"]
    assert too_few({"df": 1}, 500.0, 1e-5) == {}
    assert NOTHING < HOPELESS < ENOUGH


def test_numbers_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="cannot be in 6 sites"):
        forecast(5, 3.0, 6)
    with pytest.raises(InputError, match="promises nothing"):
        forecast(5, 100.0)
