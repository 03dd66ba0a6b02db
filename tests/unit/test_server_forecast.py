"""The federation's forecast is the sites' forecast where sites are equal, and holds for the pooled rows where they are not."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from sgps.errors import InputError
from sgps.forecast import kept, signal
from sgps.memory import SHARE_COUNT, SHARE_ROW, USED, Contribution, Coordinates, pool
from sgps_client import forecast as at_a_site
from sgps_server.cli import app
from sgps_server.forecast import forecast, numbers


@pytest.mark.parametrize(("each", "sites", "epsilon"), [(7, 6, 3.0), (30, 1, 1.0), (5, 12, 8.0)])
def test_equal_sites_hear_the_same_from_both_programs(each: int, sites: int, epsilon: float) -> None:
    whole, one = forecast([each] * sites, epsilon), at_a_site.forecast(each * sites, epsilon, sites)
    for field in ("sigma", "mu", "r", "gain", "kept", "low", "high", "enough", "recognised"):
        assert getattr(whole, field) == pytest.approx(getattr(one, field)), field


def test_too_small_sites_are_named() -> None:
    found = forecast([0, 1, 5, 8, 60], 3.0)
    assert [s.helps for s in found.sites] == ["nothing", "nothing", "beside", "part", "alone"]
    assert sum(s.share for s in found.sites) == pytest.approx(1)
    without = forecast([5, 8, 60], 3.0)
    assert found.kept == pytest.approx(without.kept, abs=0.1)  # that is what "too small to help" claims
    assert found.text().count("role: receive") == 2


def test_words_follow_the_interval() -> None:
    for n in (8, 12, 13, 18, 39):
        (site,) = forecast([n], 3.0).sites
        low, mean, high = kept(site.r).low, kept(site.r).mean, kept(site.r).high
        words = "helps, also alone" if low >= 50 else "helps, alone in part"
        assert site.text().endswith(f": {words}: about {mean:.0f} % of the gain ({low:.0f} to {high:.0f})")
    assert "alone in part: about 29 % of the gain (9 to 47)" in forecast([8, 30], 3.0).text()


def _doubt(patients: list[int], sigma: float) -> float:
    """Median over many draws of the squared tangent of the angle between pooled row and truth."""
    rng, k = np.random.default_rng(1), USED
    coordinates = Coordinates(np.zeros(k, np.float32), np.eye(k, dtype=np.float32), 1.0, 1.0)
    truth, found = np.eye(k)[0] * np.sqrt(SHARE_ROW), []
    for _ in range(400):
        parts = [
            Contribution(
                n * truth[None] + rng.normal(size=(1, k)) * sigma,
                np.array([n * np.sqrt(SHARE_COUNT) + rng.normal() * sigma]),
                sigma,
            )
            for n in patients
        ]
        memory = pool(coordinates, ["a"], parts)
        row = memory.total[0] / np.linalg.norm(memory.total[0])
        found.append(1 / max(row[0], 1e-6) ** 2 - 1)
    return float(np.median(found))


@pytest.mark.parametrize("patients", [[12, 30, 8], [40, 4, 4, 4], [25, 25, 1]])
def test_r_of_unequal_sites_is_that_of_their_pooled_rows(patients: list[int]) -> None:
    found = forecast(patients, 3.0)
    equal = np.full(3, found.r * np.sqrt(USED) / found.mu / np.sqrt(3))
    assert signal(equal.tolist(), found.mu) == pytest.approx(found.r)
    same = _doubt([round(n) for n in equal], found.sigma)
    assert _doubt(patients, found.sigma) == pytest.approx(same, rel=0.25)
    assert same == pytest.approx((USED - 1) / USED / found.r**2 / SHARE_ROW, rel=0.4)


def test_json_and_errors() -> None:
    out = CliRunner().invoke(app, ["forecast", "--patients", "12,30,8", "--epsilon", "3", "--json"])
    assert json.loads(out.output)["patients"] == 50
    assert len(json.loads(out.output)["sites"]) == 3
    for bad in ("", "12,,8", "a", "1.5", "-1"):
        with pytest.raises(InputError, match="list of whole numbers"):
            numbers(bad)
    with pytest.raises(InputError, match="no patient"):
        forecast([0, 0], 3.0)
    with pytest.raises(InputError, match="promises nothing"):
        forecast([5], 100.0)
