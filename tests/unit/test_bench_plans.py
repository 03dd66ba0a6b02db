"""`bench.plans`: candidates have the coordinator's terms, cells keep people apart, the rule picks what it says."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.federated_arms import Judge, noise_multiplier
from bench.federated_world import World
from bench.pictures import Pictures, read_pictures
from bench.plans import CAMERAS, EXACT, PATIENTS, PLANS, SITES, Camera, Cell, Plan, Views, noised_sum
from bench.plans_report import chosen, interval, report, summary
from bench.shipped import Ours
from sgps import site_mean
from sgps.memory import ROWS
from sgps.release import Release
from sgps.shipped import shipped_release

COMMON = ("nv", "mel", "bkl", "bcc")


def test_candidates_have_the_coordinators_terms_and_cost_what_they_say() -> None:
    release = shipped_release()
    assert len({p.name for p in PLANS}) == len(PLANS) and sum(p.epsilon == 3 for p in PLANS) == 3
    for plan in PLANS:
        mean, rows = plan.terms(release, 3)
        assert rows is not None and rows.kind == "rows" and (rows.q, rows.steps, rows.clips) == (1.0, 1, (1.0,))
        mu = math.hypot(1 / rows.sigma, 1 / mean.sigma if mean else 0.0)  # of a patient: one round of rows, and a mean
        assert 1 / mu == pytest.approx(noise_multiplier(plan.epsilon or 0), rel=1e-3)
        assert (mean is not None) == plan.centre_sites
    assert Plan(3.0, rounds=2).terms(release, 3) == Plan(3.0).terms(release, 3)
    assert EXACT[0].terms(release, 3) == (None, None)


@pytest.fixture
def cell(small_release: Callable[..., Release], monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Cell]:
    """cell(shift) -> patients of four classes; sites with an odd number see every feature moved by `shift` radii."""
    release = small_release()
    memory, random = release.memory(), np.random.default_rng(0)
    label = np.repeat(COMMON, 400)
    centre = {k: memory.coordinates.radius * random.normal(size=64) / 8 for k in COMMON}
    spread = memory.coordinates.radius * random.normal(size=(len(label), 64)) / 30
    place = np.stack([centre[k] for k in label]) + spread
    features = memory.coordinates.lift(place)
    means = {memory.ids.index(k): memory.coordinates.lift(centre[k]) for k in COMMON}
    monkeypatch.setattr(site_mean, "common", lambda _: means)
    nothing = Pictures.__new__(Pictures)
    object.__setattr__(nothing, "label", label)
    number = np.arange(len(label))
    world = World(nothing, label, number.astype(str), number, features, features, COMMON, ("df",))
    judge, turn = Judge(Ours(release, nothing, dict(enumerate(features)))), number % 400
    moved = memory.coordinates.lift(np.eye(64)[0] * memory.coordinates.radius) - memory.coordinates.mean

    def make(shift: float) -> Cell:
        seen = {s: features + shift * (turn % s % 2)[:, None] * moved for s in SITES}
        return Cell(judge, world, Views(turn, seen, features), "mel", 0)

    return make


def test_nobody_is_at_two_places(cell: Callable[[float], Cell]) -> None:
    one = cell(0.0)
    assert not set(one.rows) & (set(one.held) | set(one.others)) and not set(one.held) & set(one.others)
    assert (one.world.label[one.rows[one.chosen]] == "mel").all()
    for n in PATIENTS:
        for s in SITES:
            groups = one.groups(n, s)
            assert len(groups) == s and len(np.unique(np.concatenate(groups))) == n
            assert all((one.views.turn[g] % s == i).all() for i, g in enumerate(groups))


def test_a_row_gains_and_two_rounds_of_half_are_the_same_sum(cell: Callable[[float], Cell]) -> None:
    one = cell(0.0)
    groups = one.groups(80, 3)
    whole, halves = one.memory(Plan(None), groups), one.memory(Plan(None, rounds=2), groups)
    assert np.allclose(whole.row(0), halves.row(0), atol=0.05 * np.linalg.norm(whole.row(0)))

    def error(plan: Plan) -> float:
        rows = [one.memory(plan, groups).row(0) - whole.row(0) for _ in range(20)]
        return float(np.mean(np.square(rows)))

    assert error(Plan(8.0, rounds=2)) > 1.3 * error(Plan(8.0))  # twice the noise in the same sum


def test_the_mean_of_a_site_takes_its_camera_out(cell: Callable[[float], Cell]) -> None:
    plain, moved = cell(0.0), cell(1.0)
    groups = plain.groups(80, 3)
    wanted = plain.memory(Plan(None), groups).row(0)
    gap = {p: np.linalg.norm(moved.memory(p, groups).row(0) - wanted) for p in EXACT}
    assert gap[EXACT[1]] < 0.3 * gap[EXACT[0]]


def test_a_site_sends_the_engines_noise() -> None:
    _, terms = Plan(3.0).terms(shipped_release(), 3)
    records = [{ROWS: np.zeros((1, 64)), "memory.counts": np.ones(1) / 2}] * 4
    exact = noised_sum("rows", shipped_release(), records, None)
    assert exact["memory.counts"] == 2
    sent = np.stack([noised_sum("rows", shipped_release(), records, terms)[ROWS][0] for _ in range(20)])
    assert terms is not None and sent.std() == pytest.approx(terms.sigma, rel=0.1)


def test_cameras_differ_and_each_takes_the_same_picture_twice(tmp_path: Path) -> None:
    (tmp_path / "df").mkdir()
    pixels = np.random.default_rng(0).integers(60, 200, (32, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "df" / "a.png")
    pictures = read_pictures(tmp_path)
    seen = [np.asarray(Camera.at(pictures, n).image(0), float) for n in range(CAMERAS + 1)]
    again = Camera.at(pictures, 3)
    assert np.array_equal(seen[3], again.image(0)) and len({Camera.at(pictures, n).sha256(0) for n in range(7)}) == 7
    gaps = [np.abs(a - b).mean() for i, a in enumerate(seen) for b in seen[:i]]
    assert min(gaps) > 2


def test_the_rule() -> None:
    def plan(epsilon: float, kept: float, lost: float, gain: float = 1.0) -> dict[str, float]:
        return {"epsilon": epsilon, "kept": kept, "lost": lost, "gain": gain}

    found = {"a": plan(1, 0.84, 0), "b": plan(2, 0.9, 0.03), "c": plan(3, 0.85, 0.02), "d": plan(4, 0.99, 0)}
    assert chosen(found) == "c"
    assert chosen(found | {"e": plan(3, 0.86, 0, 1.1)}) == "e"
    assert chosen({"a": found["a"], "b": found["b"]}) is None


def test_summary_and_report() -> None:
    epsilons = {"epsilon 1": 1.0, "epsilon 3": 3.0, "epsilon 3, centred": 3.0}
    gains = {"no noise": 0.1, "no noise, centred": 0.1, "epsilon 1": 0.0, "epsilon 3": 0.09, "epsilon 3, centred": 0.08}
    cells: list[dict[str, Any]] = [
        {"split": s, "class": "nv", "cameras": c, "patients": n, "sites": 6, "plan": p, "draw": 0, "alone": 0.7}
        | {"auroc": 0.7 + g + 0.001 * s - (0.05 if (p, n, s) == ("epsilon 1", 20, 0) else 0)}
        for s in range(3)
        for c in ("one camera", "cameras differ")
        for n in PATIENTS
        for p, g in gains.items()
    ]
    found = summary(cells, epsilons, "no noise")
    assert found["default"] == "epsilon 3"
    assert found["found"]["epsilon 1"]["lost"] == pytest.approx(2 / 18)
    assert found["found"]["epsilon 3"]["kept"] == pytest.approx(0.091 / 0.101)
    assert found["found"]["epsilon 3, centred"]["against"]["grid"][0] == pytest.approx(-0.01)
    text = report(
        {"release": "a" * 64, "data": {"file": "x", "sha256": "b" * 64}, "setting": {"splits": 3, "draws": 1}}
        | {"plans": found}
    )
    assert "The rule picks: **epsilon 3**." in text and "| epsilon 3, centred minus epsilon 3 | -1.0 ± 0.0" in text
    assert interval(np.array([1.0, 2.0, 3.0])) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-5))
