"""What the forecast says of each kind follows from the formulas, and agrees with what is refused."""

import json
import subprocess
import sys

import pytest

from sgps.errors import InputError
from sgps_client.forecast_kinds import episodes, site_mean


def test_a_pair_costs_its_epsilon_and_a_mean_of_many_patients_is_sharp() -> None:
    found = site_mean(100, 3.0)
    assert (found.sigma_mean, found.sigma_rows) == (pytest.approx(3.110, abs=1e-3), pytest.approx(1.555, abs=1e-3))
    assert found.mu == pytest.approx(0.719, abs=1e-3)
    assert found.blur == pytest.approx(0.197, abs=1e-3) and site_mean(400, 3.0).blur == pytest.approx(found.blur / 4)
    assert "factor 0.89" in found.text()


@pytest.mark.parametrize(
    ("patients", "epsilon", "sites", "signal"),
    [(180, 8, 6, 7.6), (1210, 1, 6, 8.2), (600, 3, 6, 10.9), (1210, 3, 6, 22)],
)
def test_the_signal_of_the_measured_cells(patients: int, epsilon: float, sites: int, signal: float) -> None:
    """Dp-utility note, section 6: 260 numbers, full batch; the number of steps drops out."""
    for steps in (1, 15):
        found = episodes(patients, epsilon, sites, 1e-5, 260, steps, 1.0)
        assert found.signal == pytest.approx(signal, rel=0.03)
        assert ("refused" in found.text()) == (signal < 20)
    again = episodes(found.enough, epsilon, sites, 1e-5, 260, 15, 1.0)
    assert again.signal >= 20 > episodes(found.enough - sites, epsilon, sites, 1e-5, 260, 15, 1.0).signal


def test_sampling_saves_no_privacy() -> None:
    full, part = (episodes(1200, 3.0, 6, 1e-5, 260, 20, q) for q in (1.0, 0.25))
    assert part.signal < full.signal and part.sigma < full.sigma


def test_numbers_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="cannot be in 6 sites"):
        episodes(5, 3.0, 6, 1e-5, 260, 15, 1.0)
    with pytest.raises(InputError, match="promises nothing"):
        site_mean(5, 100.0)


@pytest.mark.parametrize(("kind", "word"), [("site_mean", "blur"), ("episodes", "signal"), ("rows", "kept")])
def test_the_command_tells_of_each_kind(kind: str, word: str) -> None:
    command = [
        sys.executable,
        "-m",
        "sgps_client.cli",
        "forecast",
        "--patients",
        "60",
        "--epsilon",
        "3",
        "--kind",
        kind,
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert word in json.loads(done.stdout)
