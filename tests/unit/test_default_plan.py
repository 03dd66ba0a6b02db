"""The default plan is one plan: in the results that chose it, in `sgps-server init`, in examples, chart, forecast and check."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "simulators"))
import tiny_release
from typer.testing import CliRunner

from sgps.default_plan import DEFAULT_PLAN, DefaultPlan
from sgps.files import sha256_file
from sgps.release import MANIFEST, Release
from sgps.settings import parse
from sgps_client import forecast as forecasts
from sgps_client.cli import app as client
from sgps_server import enrolment
from sgps_server.cli import app as server
from sgps_server.config import Federation, Folder

PAGE = (ROOT / "docs" / "results" / "plans.md").read_text()
KEYS = vars(DEFAULT_PLAN)


def plan_of(keys: Any) -> dict[str, Any]:
    """The plan's keys among those of a federation.yaml."""
    some = {"name": "a", "url": "https://localhost:8443", "listen": {"host": "localhost", "port": 8443}, "quorum": 2}
    settings = Federation.model_validate({**some, **keys})
    return {k: getattr(settings, k) for k in KEYS}


def test_what_init_writes_is_the_plan_that_the_results_name(tmp_path: Path) -> None:
    source = tiny_release.make(tmp_path / "r")
    release = Release.open(source, sha256=sha256_file(source / MANIFEST))
    enrolment.init(tmp_path / "centre", "derm", "https://localhost:8443", release)
    settings = Folder(tmp_path / "centre").settings()
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    page = parse(block, "plans.md")
    assert set(page) == set(KEYS)
    assert plan_of(page) == {k: getattr(settings, k) for k in KEYS} == KEYS


def test_the_page_says_what_the_rule_picks_from_its_own_table() -> None:
    """The table of the page, read again with the rule of `bench.plans`."""
    from bench.plans_report import chosen

    lines = [[c.strip() for c in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
    start = next(i for i, row in enumerate(lines) if row[0] == "plan")
    head, found = lines[start], {}
    for row in lines[start + 1 :]:
        if len(row) == len(head) and row[0].startswith("epsilon "):
            kept, gain, lost = (row[head.index(f"{c}: grid")] for c in ("kept, %", "gain", "lost a point, %"))
            found[row[0]] = {
                "epsilon": float(re.findall(r"[\d.]+", row[0])[0]),
                "kept": float(kept.split()[0]) / 100,
                "gain": float(gain),
                "lost": float(lost) / 100,
            }
    assert len(found) == 8
    name = chosen(found)
    assert name == f"epsilon {DEFAULT_PLAN.epsilon:g}" + ", centred" * DEFAULT_PLAN.centre_sites
    assert f"The rule picks: **{name}**" in PAGE


@pytest.mark.parametrize("place", ["deploy/config/federation.example.yaml", "deploy/helm/sgps-server/values.yaml"])
def test_examples_and_chart_begin_with_it(place: str) -> None:
    found = parse((ROOT / place).read_text(), place)
    assert plan_of(found.get("federation", found)) == KEYS


@pytest.mark.parametrize(("app", "patients"), [(client, "40"), (server, "20,20")])
def test_a_forecast_without_epsilon_is_of_the_default_plan(app: Any, patients: str) -> None:
    said = CliRunner().invoke(app, ["forecast", "--patients", patients])
    assert said.exit_code == 0
    assert f"epsilon {DEFAULT_PLAN.epsilon:g} at delta {DEFAULT_PLAN.delta:g}" in said.output


def test_the_forecast_says_when_it_is_not_of_the_default_plan() -> None:
    usual = forecasts.forecast(40, DEFAULT_PLAN.epsilon, 6, DEFAULT_PLAN.delta)
    assert f"the default: {DEFAULT_PLAN}" in usual.text() and usual.facts()["default_plan"] == KEYS
    other = forecasts.forecast(40, DEFAULT_PLAN.epsilon + 1, 6)
    assert f"the default is {DEFAULT_PLAN}" in other.text()
    assert "at epsilon 3" in str(DefaultPlan(2, "rows", True, 3.0, 1e-5))


def test_the_forecast_agrees_with_the_page() -> None:
    """Cells of one camera, plain rows: within the scatter that the forecast states (federated.md's combinations are coarser)."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
    head = next(row for row in lines if row[0] == "cameras")
    cells = [row for row in lines if row[0] == "one camera"]
    assert len(cells) == 6
    for name in [h for h in head if re.fullmatch(r"epsilon \d+", h)]:
        for row in cells:
            kept = float(re.findall(r"\((-?\d+)\)", row[head.index(name)])[0])
            found = forecasts.forecast(int(row[1]), float(name.split()[1]), int(row[2]))
            assert found.kept == pytest.approx(kept, abs=16), (name, row[:3])
