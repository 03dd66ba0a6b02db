"""A centre's own V2 network, teacher and text encoder, from folders that this test makes to a classifier's prediction at a site."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
import small_encoders
import small_skin

pytest.importorskip("open_clip")

from sgps.bank import SAME_TEXT, Bank, same_text
from sgps.catalogue import Catalogue
from sgps.classifier import Classifier
from sgps.draw import draw_patient, draw_profile
from sgps.encoders import text_encoder_of
from sgps.errors import ConfigError, InputError, StateError
from sgps.open_encoders import ImageTower, OpenText, Spec
from sgps.pretrain import base
from sgps.pretrain.assemble import assemble
from sgps.pretrain.loop import Stage
from sgps.pretrain.networks import HALF, Arithmetic, Input, base_network, load_state, pooled
from sgps.pretrain.own import Own
from sgps.pretrain.pool import Pool
from sgps.pretrain.progress import Report, Stop, silent
from sgps.pretrain.recipe import Draw, read_recipe
from sgps.pretrain.teach import Teacher, alike, teach
from sgps.release import FILES, Release, write
from sgps.settings import parse
from sgps.synthesis import synthesize
from sgps.target import network
from sgps.text import TextEncoder
from sgps_client import cli

NAME, SIZE = "tf_efficientnetv2_b1", 48


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, biomed/ (open_clip: ViT and BERT), weights.safetensors (a B1 with a classifier)."""
    top = tmp_path_factory.mktemp("top")
    small_skin.make(top / "data")
    small_encoders.open_clip(top / "biomed", hf_text=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        safetensors.torch.save_file(network(NAME, 7).state_dict(), top / "weights.safetensors")
    return top


def spec(top: Path) -> Spec:
    return Spec.parse(f"open_clip:{top / 'biomed'}")


def taught(top: Path, out: Path, teacher: Teacher | None = None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        draw = Draw(first=1000, profiles=3, patients=8)
        patch.setattr(base, "BANK_SET", base.BANK_SET.model_copy(update={"draw": draw, "frame": (40, 40)}))
        own = Own(top / "weights.safetensors", "our archive", "internal use", NAME, SIZE)
        given = teacher or Teacher(spec(top), "a public hub", "MIT")
        base.run(top / "data", out, top / "data" / "recipe.yaml", own=own, teacher=given)


@pytest.fixture(scope="module")
def made(top: Path) -> Path:
    taught(top, top / "made")
    return top / "made"


@pytest.fixture(scope="module")
def release(top: Path, made: Path) -> Release:
    return Release.open(top / "release", sha256=assemble(made, None, top / "release", encoders=spec(top)))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def command(*words: object) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["sgps-client", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(err if ended.value.code else out)

    return command


@pytest.fixture
def one(release: Release, tmp_path: Path) -> tuple[object, ...]:
    """A request for a classifier, but for its encoder and its place."""
    Image.fromarray(draw_patient(draw_profile(2), 20, views=1, size=90)[0]).save(tmp_path / "exemplar.png")
    exemplar = ("--exemplar", tmp_path / "exemplar.png", "--disease", "dermatofibroma")
    return "synthesize", *exemplar, "--release", release.folder, "--sha256", release.sha256


def test_the_teacher_moves_the_users_weights_and_is_named(top: Path, made: Path) -> None:
    before = safetensors.torch.load_file(top / "weights.safetensors")
    after = safetensors.torch.load_file(made / "base.safetensors")
    assert set(before) - set(after) == {"classifier.weight", "classifier.bias"}
    assert all(torch.isfinite(t).all() for t in after.values())
    assert not torch.equal(after["conv_head.weight"], before["conv_head.weight"].half())
    record = parse((made / "base.yaml").read_text(), "base.yaml")
    assert record["encoders"] == {
        "name": "open_clip:biomed",
        "source": "a public hub",
        "licence": "MIT",
        "sha256": spec(top).sha256,
    }
    assert record["network"]["architecture"] == NAME and record["network"]["mean"] == ["0.485", "0.456", "0.406"]
    assert "teacher" not in record and record["weights"]["source"] == "our archive"
    assert record["images"][0]["trained_on"] and set(record["made_by"]["stages"]) == {"distil", "a"}
    assert str(top) not in (made / "base.yaml").read_text()


def test_another_teacher_needs_another_folder(top: Path, made: Path, tmp_path: Path) -> None:
    other = Spec.parse(f"timm:{small_encoders.timm(tmp_path / 'vit')}")
    with pytest.raises(StateError, match="belongs to other weights or images"):
        taught(top, made, Teacher(other, "a public hub", "MIT"))
    with pytest.raises(ConfigError, match="--encoders-licence: is needed"):
        Teacher(other, "a public hub", " ")
    with pytest.raises(InputError, match="reads no pictures"):
        text = Spec.parse(f"transformers:{small_encoders.transformers_text(tmp_path / 'bert')}")
        taught(top, tmp_path / "none", Teacher(text, "a public hub", "MIT"))


def test_a_release_names_encoder_weights_and_licences(top: Path, release: Release) -> None:
    text = release.manifest.text_encoder
    assert (text.kind, text.name, text.sha256) == ("open_clip", "open_clip:biomed", spec(top).sha256)
    assert release.manifest.licence == "Apache-2.0; base network: internal use; its teacher: MIT"
    used = {p.name: p.used_for for p in release.manifest.provenance}
    assert used["open_clip:biomed"] == "teacher of the base network"
    assert used["weights of the base network"] == "start of the base network"
    assert used["skin"].startswith("base network, coordinates")
    assert Bank.of(release).embedding.shape[1] == 24 and str(top) not in (release.folder / "release.yaml").read_text()


def test_one_exemplar_to_a_prediction(
    run: Any, one: tuple[object, ...], top: Path, tmp_path: Path, release: Release
) -> None:
    code, facts = run(*one, "--encoders", f"open_clip:{top / 'biomed'}", "--out", "m")
    assert code == 0 and facts["named"] == ["dermatofibroma"]
    made = Classifier.load(tmp_path / "m")
    assert made.record.architecture == NAME and made.record.size == SIZE and set(made.labels) >= {"dermatofibroma"}
    assert len(made.labels) >= 3, "the encoder's own threshold keeps rivals apart from the disease"
    net = timm.create_model(NAME, num_classes=len(made.labels)).eval()
    net.load_state_dict(safetensors.torch.load_file(tmp_path / "m" / "classifier.safetensors"), strict=True)
    code, facts = run("predict", "--model", "m", tmp_path / "exemplar.png", "--out", "r.csv")
    assert code == 0 and facts["pictures"] == 1


def test_a_folder_that_is_missing_or_another_is_one_line(
    run: Any, one: tuple[object, ...], top: Path, tmp_path: Path
) -> None:
    code, said = run(*one, "--out", "m")
    assert code == 3 and "reads texts with open_clip:biomed" in said["error"] and "open_clip:DIR" in said["error"]
    changed = shutil.copytree(top / "biomed", tmp_path / "changed")
    with (changed / "vocab.txt").open("a") as file:
        file.write("x\n")
    code, said = run(*one, "--encoders", f"open_clip:{changed}", "--out", "m")
    assert code == 4 and "changed: is not the text encoder of the release: open_clip:biomed" in said["error"]
    code, said = run(*one, "--encoders", f"open_clip:{tmp_path / 'none'}", "--out", "m")
    assert code == 2 and "none: is not a folder" in said["error"]
    assert not (tmp_path / "m").exists()


def test_an_encoder_that_is_not_needed_is_refused(run: Any, one: tuple[object, ...], top: Path) -> None:
    code, said = run(*one[:5], "--encoders", f"open_clip:{top / 'biomed'}", "--out", "m")
    assert code == 3 and "installed all-MiniLM-L6-v2 - leave it out" in said["error"]


def test_the_sites_own_settings_name_the_folder(
    run: Any, one: tuple[object, ...], top: Path, tmp_path: Path, release: Release
) -> None:
    bench = site_bench.make(tmp_path / "north")
    shutil.copytree(top / "biomed", bench.folder / "encoders")
    with bench.file.open("a") as file:
        file.write("encoders: open_clip:encoders\n")
    shutil.rmtree(bench.folder / "releases" / "0000")
    manifest = release.manifest.model_copy(update={"name": "0000", "federation": "derm", "fingerprint": bench.mark})
    write(bench.folder / "releases" / "0000", {n: release.folder / n for n in FILES}, manifest, bench.key)
    code, facts = run(*one[:5], "--config", bench.file, "--out", "m")
    assert code == 0 and facts["release"] == "0000"


def test_texts_are_read_with_the_named_encoder_alone(top: Path, release: Release) -> None:
    encoder = text_encoder_of(release, spec(top))
    assert isinstance(encoder, OpenText)
    wanted = encoder.embed([c.text for c in Bank.of(release).classes])
    np.testing.assert_allclose(Bank.of(release).embedding, wanted, atol=1e-3)
    with Image.open(top / "data" / "skin" / "df" / "df0.png") as image:
        picture = image.convert("RGB")
    with pytest.raises(ConfigError, match="reads texts with open_clip:biomed"):
        synthesize({"df": [picture]}, {}, release)


def test_a_texts_threshold_lies_above_every_two_diseases_of_the_catalogue() -> None:
    rows = TextEncoder().embed([e.text for e in Catalogue.load().entries])
    cosine = rows @ rows.T
    assert cosine[~np.eye(len(rows), dtype=bool)].max() < same_text(rows) < 1
    assert abs(same_text(rows) - SAME_TEXT) < 0.01, "the formula gives the installed encoder's own threshold"


def test_teaching_that_was_stopped_goes_on_to_the_same_weights(top: Path, tmp_path: Path) -> None:
    recipe, steps = read_recipe(top / "data" / "recipe.yaml"), 4
    tower, given = ImageTower(spec(top)), Input("tf_efficientnetv2_b0", 32, HALF, HALF)
    pool = Pool(base.read_sets(top / "data", recipe.sets, tmp_path, silent, Stop()), recipe)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = base_network().state_dict()

    def go(folder: Path, stop: Stop, report: Report = silent) -> Path:
        folder.mkdir(exist_ok=True)
        stage = Stage("distil", steps, (steps,), folder)
        teach(stage, pool, recipe, tower, start, given, 0, Arithmetic(False), report, stop)
        return stage.kept(steps)

    whole, stop = go(tmp_path / "whole", Stop()), Stop()

    def interrupt(_: str, done: int, __: int, ___: Any) -> None:
        stop.asked = done == 2

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "twice", stop, interrupt)
    assert whole.read_bytes() == go(tmp_path / "twice", Stop()).read_bytes()


@pytest.mark.slow
def test_the_base_learns_what_its_teacher_holds_for_alike(top: Path, tmp_path: Path) -> None:
    """Of lesions of other drawn diseases: their likeness under the base agrees better with the teacher's than before."""
    size, steps = 32, 120
    tower = ImageTower(Spec.parse(f"timm:{small_encoders.timm(tmp_path / 'vit')}"))
    pictures = [draw_patient(draw_profile(p), 100 + i, views=1, size=size)[0] for p in range(8, 16) for i in range(4)]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    wanted, off = alike(tower(x)), ~torch.eye(32, dtype=torch.bool)

    def agreement(weights: dict[str, torch.Tensor]) -> float:
        with torch.inference_mode():
            found = alike(pooled(base_network(weights).eval(), x))
        return float(np.corrcoef(found[off].numpy(), wanted[off].numpy())[0, 1])

    recipe = read_recipe(top / "data" / "recipe.yaml")
    distil = recipe.distil.model_copy(update={"steps": steps, "horizon": steps, "batch": 16})
    recipe = recipe.model_copy(update={"distil": distil})
    sets = base.read_sets(top / "data", recipe.sets, tmp_path, silent, Stop())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = base_network().state_dict()
    stage, given = Stage("distil", steps, (steps,), tmp_path), Input("tf_efficientnetv2_b0", size, HALF, HALF)
    teach(stage, Pool(sets, recipe), recipe, tower, start, given, 0, Arithmetic(False), silent, Stop())
    assert agreement(load_state(stage.kept(steps))) > agreement(start) + 0.2
