"""The bench of oracle bodies: nothing at zero, a lower loss where it is fitted, nothing borrowed from a class of one's own, kept work."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # bench is a folder of the repository, not a package that is installed

from bench import body
from bench.body_fit import Trial, World, acting, cosines, fit, flat, left_out, unflat
from bench.body_report import over_tasks
from bench.body_tasks import Kind, drawn_task, plain
from sgps.errors import InputError
from sgps.generator import BOUNDS
from sgps.target import Coefficients

TINY = body.Plan(
    tasks=(9500, 9503),
    choice=(9600,),
    trained=range(2000, 2003),
    patients=4,
    known=4,
    shown=7,
    episodes=4,
    rates=(0.03,),
    marks=(1,),
    few_rates=(0.03,),
    few_marks=(1,),
    common_steps=1,
    bounded=1,
    public=3,
)


@pytest.fixture(scope="module")
def world(small_release):
    return World.of(small_release())


@pytest.fixture(scope="module")
def task():
    return drawn_task(9500, 4, 7)


def test_a_zero_body_is_the_base(world, task):
    trial = Trial(world, task, plain(task.known[0], world.release), 5, 0)
    zero = Coefficients.zero(len(world.target.layers))
    base = trial.judged(None, whole=True)
    assert trial.judged(zero, whole=True) == pytest.approx(base, abs=1e-5)
    assert base["cosine"] == pytest.approx(1)


def test_coefficients_that_act_come_back_from_their_vector(world):
    mask = acting(world.target)
    values = np.random.default_rng(0).uniform(-1, 1, int(mask.core.sum() + mask.chan.sum() + mask.tap.sum()))
    made = unflat(values, mask)
    assert flat(made, mask) == pytest.approx(values, abs=1e-6)
    assert not (made.core * (1 - mask.core)).any() and not (made.tap * (1 - mask.tap)).any()


def test_fitting_lowers_the_loss_within_the_bounds_and_moves_only_what_acts(world, task):
    made, losses = fit(world, task.frames, 3, (1, 12), 0.2, 0)
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    mask, c = acting(world.target), made[12]
    for part, bound in zip(("core", "chan", "tap"), BOUNDS, strict=True):
        values = getattr(c, part)
        assert values.abs().max() <= bound
        assert values[getattr(mask, part) == 0].abs().sum() == 0
    assert fit(world, task.frames, 3, (1,), 0.2, 0)[0][1].core.equal(made[1].core)


def test_a_task_is_tested_on_patients_that_nothing_learned_from(task):
    seen = [np.asarray(x).tobytes() for part in (task.known, task.again, task.shown) for own in part for x in own]
    assert len(seen) == len(set(seen)) == 3 * (4 + 4 + 7)


def test_a_body_is_borrowed_only_from_tasks_without_a_class_of_ones_own(task):
    shared = [task, drawn_task(9501, 1, 1), drawn_task(9506, 1, 1)]
    assert Kind("drawn", tuple(shared), tuple(shared)).lenders(task, 2) == ["drawn-9506"]


def test_a_ridge_map_predicts_what_is_linear_and_never_sees_its_own_task():
    random = np.random.default_rng(0)
    x = random.normal(size=(30, 3))
    y = x @ random.normal(size=(3, 4)) + 5
    assert left_out(x, y, 1e-6)[5, 5] == pytest.approx(y[5], abs=1e-3)
    changed = y.copy()
    changed[5] += 100
    assert left_out(x, changed, 1e-6)[5, 5] == pytest.approx(y[5], abs=1e-3)
    own, shuffled = cosines(left_out(x, y - 5, 1e-6), y - 5, lambda i, j: False)
    assert own.min() > 0.99 and abs(shuffled.mean()) < 0.3


def test_intervals_are_over_tasks():
    assert over_tasks([0.0, 1.0]).half == pytest.approx(12.706 * 0.5, abs=1e-3)


@pytest.mark.slow
def test_a_run_that_was_stopped_continues_where_it_was(small_release, tmp_path, monkeypatch):
    first = body.run(tmp_path, plan=TINY, release=small_release())
    arms = first["kinds"]["drawn"]["tasks"]["drawn-9500"]["arms"]
    assert {body.BASE, body.ORACLE, body.SWAPPED, body.COMMON, body.RIDGE, "bounds x 2"} <= set(arms)
    (next((tmp_path).glob("work-*")) / "drawn-9503 oracle.json").unlink()
    monkeypatch.setattr(body, "fit", lambda *_: pytest.fail("fitted again"))
    again = body.run(tmp_path, plan=TINY, release=small_release())
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert json.loads((tmp_path / "results.json").read_text())["kinds"] == json.loads(json.dumps(again["kinds"]))
    assert "| drawn, 3-way | oracle |" in (tmp_path / "results.md").read_text()


def test_test_classes_want_their_pictures(tmp_path):
    with pytest.raises(InputError, match="wants --data"):
        body.run(tmp_path, test=("df",))


def test_a_file_that_is_no_generator_is_refused(small_release, tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="no generator"):
        body.run(tmp_path, plan=TINY, release=small_release(), body=tmp_path / "x.safetensors")
