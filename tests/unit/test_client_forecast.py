"""The forecast agrees with the measured note that it stands on."""

import pytest

from sgps.errors import InputError
from sgps_client.forecast import forecast


@pytest.mark.parametrize(("epsilon", "r"), [(8, 1.04), (3, 0.45), (1, 0.17)])
def test_five_patients_alone(epsilon: float, r: float) -> None:
    found = forecast(5, epsilon)
    assert found.r == pytest.approx(r, abs=0.01)
    assert ("only receiving" in found.text()) == (found.r < 1)


@pytest.mark.parametrize(
    ("sites", "needed"), [(1, (14, 33, 90)), (3, (25, 58, 155)), (6, (35, 82, 219)), (12, (50, 116, 310))]
)
def test_patients_for_four_fifths_of_the_gain(sites: int, needed: tuple[int, int, int]) -> None:
    found = [forecast(12, epsilon, sites).enough for epsilon in (8, 3, 1)]
    assert found == [pytest.approx(n, abs=2) for n in needed]


@pytest.mark.parametrize(("patients", "kept"), [(10, 5), (20, 22), (40, 43), (80, 82), (160, 94), (320, 100)])
def test_kept_share_at_epsilon_3_in_six_sites(patients: int, kept: int) -> None:
    found = forecast(patients, 3.0, 6)
    assert found.kept == pytest.approx(kept, abs=6)
    assert found.low - 1 <= kept <= found.high + 2  # the cells themselves scatter


def test_the_words_do_not_promise_what_noise_takes() -> None:
    assert "which is not used" in forecast(5, 1.0).text()
    assert "it is a forecast" in forecast(500, 3.0, 6).text()


def test_numbers_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="cannot be in 6 sites"):
        forecast(5, 3.0, 6)
    with pytest.raises(InputError, match="promises nothing"):
        forecast(5, 100.0)
