"""Clutter: none changes no bit, a step's clutter is drawn again after a restart, and the teacher's pictures never have it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sgps.draw import draw_patient, draw_profile
from sgps.errors import ConfigError
from sgps.pretrain import distil as distillation
from sgps.pretrain import finetune as tuning
from sgps.pretrain.augment import to_float
from sgps.pretrain.base import claim
from sgps.pretrain.clutter import clutter, clutter_random
from sgps.pretrain.distil import distil
from sgps.pretrain.finetune import finetune
from sgps.pretrain.images import Images
from sgps.pretrain.loop import Stage
from sgps.pretrain.networks import BASE, FEATURES, HALF, TEACHER_SHA256, Arithmetic, Input, base_network
from sgps.pretrain.pool import Pool, step_random
from sgps.pretrain.progress import silent, stopping
from sgps.pretrain.recipe import Recipe, read_recipe

SIZE, STURDY = 32, Path(__file__).parents[2] / "bench" / "recipes" / "sturdy.yaml"


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    pixels = [draw_patient(draw_profile(place), 0, views=1, size=64)[0] for place in range(12)]
    return to_float(np.stack(pixels))


@pytest.fixture(scope="module")
def sets() -> dict[str, Images]:
    recipe, found = read_recipe(None), {}
    for kind in recipe.sets:
        labels = recipe.base_classes if kind.role == "skin" else ("a",)
        label = np.repeat(np.array(labels, np.str_), 10)
        pixels = np.random.default_rng(0).integers(0, 256, (len(label), 40, 40, 3), np.uint8)
        lesion = np.array([f"{kind.name}-{i}" for i in range(len(label))])
        found[kind.name] = Images(pixels, lesion, label, lesion, np.full(len(label), "back"), kind.name)
    return found


def recipe(clutter: float) -> Recipe:
    given = read_recipe(None)
    step = given.distil.model_copy(update={"clutter": clutter, "batch": 12, "steps": 2, "mixed": 0.5})
    fine = [f.model_copy(update={"clutter": clutter, "batch": 6, "steps": 1, "keep": (1,)}) for f in given.finetune]
    return given.model_copy(update={"size": SIZE, "distil": step, "finetune": tuple(fine)})


def test_no_clutter_is_the_same_batch_and_draws_nothing(drawn: Tensor) -> None:
    random = clutter_random(0, 1, 2)
    assert clutter(drawn, 0.0, random) is drawn
    assert random.random() == clutter_random(0, 1, 2).random()


def test_clutter_is_that_of_the_step_and_leaves_the_others_as_they_are(drawn: Tensor) -> None:
    before = drawn.clone()
    found = clutter(drawn, 0.5, clutter_random(3, 1, 7))
    assert torch.equal(drawn, before)
    assert torch.equal(found, clutter(drawn, 0.5, clutter_random(3, 1, 7)))
    assert not torch.equal(found, clutter(drawn, 0.5, clutter_random(3, 1, 8)))
    same = [torch.equal(a, b) for a, b in zip(found, drawn, strict=True)]
    assert same == (clutter_random(3, 1, 7).random(len(drawn)) >= 0.5).tolist()
    assert 0 < sum(same) < len(drawn)
    assert found.abs().max() <= 1 and found.shape == drawn.shape


def test_clutter_is_seen_and_leaves_the_picture_there(drawn: Tensor) -> None:
    random = np.random.default_rng(0)
    moved = torch.cat([(clutter(drawn, 1.0, random) - drawn).abs().mean((1, 2, 3)) for _ in range(10)])
    assert (moved > 0).float().mean() > 0.95  # a few short hairs may all miss it
    assert 0.01 < float(moved.mean()) < 0.3


def test_its_random_source_is_none_of_those_that_a_step_has() -> None:
    own = clutter_random(0, 1, 2).random()
    assert own not in {step_random(0, stage, step)[0].random() for stage in range(4) for step in range(4)}


def test_a_recipe_without_clutter_keeps_the_key_of_its_work_folder(tmp_path: Path, sets: dict[str, Images]) -> None:
    plan = read_recipe(None)
    told = json.loads(plan.model_dump_json(exclude={"atlas"}))
    assert "clutter" not in json.dumps(told)
    key = {"recipe": told, "seed": 0, "teacher": TEACHER_SHA256, "images": {n: i.sha256 for n, i in sets.items()}}
    claim(tmp_path, plan, 0, sets)
    wanted = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    assert (tmp_path / "run.sha256").read_text() == wanted
    assert json.dumps(recipe(0.3).model_dump(mode="json")).count('"clutter": 0.3') == 5


def test_the_sturdy_recipe_is_the_shipped_one_with_cluttered_fine_tunes() -> None:
    plan, shipped = read_recipe(STURDY), read_recipe(None)
    assert (plan.distil.clutter, {f.clutter for f in plan.finetune}) == (0.0, {0.3})
    plain = plan.model_copy(
        update={
            "measure": shipped.measure,
            "finetune": tuple(f.model_copy(update={"clutter": 0.0}) for f in plan.finetune),
        }
    )
    assert plain == shipped


def test_a_share_beyond_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(STURDY.read_text().replace("clutter: 0.3", "clutter: 1.3", 1))
    with pytest.raises(ConfigError, match="clutter"):
        read_recipe(path)


class Halt(Exception):
    """The first step is over."""


def seen_by(monkeypatch: pytest.MonkeyPatch, share: float, sets: dict[str, Images], folder: Path) -> list[Tensor]:
    """What teacher and student get at the first step of the distillation."""
    seen: list[Tensor] = []
    plan = recipe(share)

    def staged(net: torch.nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
        seen.append(x)
        if len(seen) == 6 + 2:  # six batches set the scale, without clutter
            raise Halt
        return [torch.rand(len(x), c, 2, 2) for c in (16, 24, 40, 80, 112, 192)], torch.rand(len(x), FEATURES)

    monkeypatch.setattr(distillation, "staged", staged)
    monkeypatch.setattr(distillation, "transplant", lambda net, _: net)
    with stopping() as stop, pytest.raises(Halt):
        stage = Stage("distil", 2, (2,), folder)
        distil(stage, Pool(sets, plan), plan, torch.nn.Identity(), 5, Arithmetic(False), silent, stop)
    return seen


def test_student_and_teacher_see_pictures_that_differ_by_clutter_alone(
    monkeypatch: pytest.MonkeyPatch, sets: dict[str, Images], tmp_path: Path
) -> None:
    plain = seen_by(monkeypatch, 0.0, sets, tmp_path)
    cluttered = seen_by(monkeypatch, 0.5, sets, tmp_path)
    teacher, student = cluttered[-2:]
    assert torch.equal(plain[-1], plain[-2])  # without clutter both see the same
    assert torch.equal(teacher, plain[-2])
    assert all(torch.equal(a, b) for a, b in zip(plain[:6], cluttered[:6], strict=True))
    assert torch.equal(student, clutter(teacher, 0.5, clutter_random(5, distillation.DISTIL, 0)))
    assert not torch.equal(student, teacher)


def test_a_fine_tune_sees_clutter_over_the_pictures_it_would_see_without(
    monkeypatch: pytest.MonkeyPatch, sets: dict[str, Images], tmp_path: Path
) -> None:
    given, seen = Input(BASE, SIZE, HALF, HALF), list[Tensor]()
    start = base_network().state_dict()

    def pooled(_: torch.nn.Module, x: Tensor) -> Tensor:
        seen.append(x)
        raise Halt

    monkeypatch.setattr(tuning, "pooled", pooled)
    for share in (0.0, 0.5):
        plan = recipe(share)
        with stopping() as stop, pytest.raises(Halt):
            stage = Stage("contrast", 1, (1,), tmp_path)
            arguments = (plan.finetune[2], 2, start, given, Pool(sets, plan), plan, 5, Arithmetic(False), silent, stop)
            finetune(stage, *arguments)
    plain, cluttered = seen
    assert len(plain) == 12  # two views of six pictures
    assert torch.equal(cluttered, clutter(plain, 0.5, clutter_random(5, tuning.FIRST + 2, 0)))
    assert not torch.equal(cluttered, plain)
