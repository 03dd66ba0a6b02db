"""Every kind of encoder and size of EfficientNet-V2 from the centre's commands to a site's prediction, with checkpoints made here."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import small_encoders
import small_skin

pytest.importorskip("open_clip")

from sgps import cli as centre
from sgps.draw import draw_patient, draw_profile
from sgps.errors import ConfigError, InputError, SgpsError
from sgps.files import sha256_file
from sgps.generator import PARTS
from sgps.open_encoders import OpenText, Spec
from sgps.pretrain import base
from sgps.pretrain.meta import pack
from sgps.pretrain.meta_train import new_generator
from sgps.pretrain.networks import load_state
from sgps.pretrain.own import input_of
from sgps.pretrain.recipe import Draw
from sgps.release import Release
from sgps.settings import dump
from sgps.target import RANK, layers_of, network
from sgps_client import cli as site

SIZE = 32
MAKE: dict[str, Callable[[Path], Path]] = {
    "clip": small_encoders.open_clip,
    "biomed": lambda folder: small_encoders.open_clip(folder, hf_text=True),
    "vit": small_encoders.timm,
    "bert": small_encoders.transformers_text,
    "dino": small_encoders.transformers_image,
    "both": small_encoders.transformers_both,
}
KIND = {
    "clip": "open_clip",
    "biomed": "open_clip",
    "vit": "timm",
    "bert": "transformers",
    "dino": "transformers",
    "both": "transformers",
}


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, exemplar.png, and one folder for each encoder."""
    top = tmp_path_factory.mktemp("top")
    small_skin.make(top / "data")
    Image.fromarray(draw_patient(draw_profile(2), 20, views=1, size=90)[0]).save(top / "exemplar.png")
    for name, make in MAKE.items():
        make(top / name)
    return top


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few drawn pictures in the reference bank; the process is not started again."""
    draw = Draw(first=1000, profiles=3, patients=8)
    monkeypatch.setattr(base, "BANK_SET", base.BANK_SET.model_copy(update={"draw": draw, "frame": (40, 40)}))
    monkeypatch.setattr("sgps.pretrain.process.prepare_process", lambda threads: None)


def run(app: Any, *words: object) -> dict[str, Any]:
    """One command in this process. Raises what it raises."""
    found = CliRunner().invoke(app, [*map(str, words), "--json"])
    if found.exception is not None:
        raise found.exception
    facts: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return facts


def checkpoint(architecture: str, path: Path, seed: int = 0) -> Path:
    """Random weights with a classifier of seven outputs, as timm's own files hold them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        safetensors.torch.save_file(network(architecture, 7).state_dict(), path)
    return path


def pretrained(top: Path, out: Path, architecture: str, teacher: str | None) -> Path:
    """`sgps pretrain base` from a checkpoint, and an encoder where one teaches."""
    file = checkpoint(architecture, out.with_suffix(".safetensors"))
    words: list[object] = ["--data", top / "data", "--out", out, "--recipe", top / "data" / "recipe.yaml"]
    words += ["--weights", file, "--architecture", architecture, "--size", SIZE, "--threads", 1]
    words += ["--weights-source", "our archive", "--weights-licence", "internal use"]
    if teacher is not None:
        words += ["--encoders", f"{KIND[teacher]}:{top / teacher}"]
        words += ["--encoders-source", "a hub", "--encoders-licence", "MIT"]
    run(centre.app, "pretrain", "base", *words)
    return out


def moving_generator(folder: Path, made: Path, text: Spec | None) -> Path:
    """A generator of this base whose parts are all on and all move something; its record is that of `sgps pretrain generator`."""
    given = input_of(made)
    net = network(given.architecture)
    net.load_state_dict(
        {n: t.float() if t.is_floating_point() else t for n, t in load_state(made / "base.safetensors").items()}
    )
    width = {} if text is None else {"text": OpenText(text).width}
    directions = load_state(made / "statistics.safetensors")["directions"]
    generator = new_generator(len(layers_of(net)), int(net.num_features), len(directions), 0, **width)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=random))
    state = net.state_dict()
    fixed = {}
    for layer in layers_of(net):  # of random directions: what they are made of is not this test's
        if not layer.depthwise:
            kernel = state[layer.conv + ".weight"].flatten(1)
            fixed[layer.conv + ".U"] = torch.randn(len(kernel), RANK, generator=random).half()
            fixed[layer.conv + ".V"] = 0.1 * torch.randn(RANK, kernel.shape[1], generator=random).half()
    folder.mkdir()
    (folder / "generator.safetensors").write_bytes(pack(generator, PARTS, fixed, 0.1))
    digest = None if text is None else text.sha256
    drawn = {"first": 2000, "profiles": 2, "patients": 2}
    made_by = {
        "command": "sgps pretrain generator",
        "base_sha256": sha256_file(made / "base.safetensors"),
        "code_sha256": "0" * 64,
        "recipe": {"drawn": drawn, "judged": drawn},
        **({"text_encoder": digest} if digest else {}),
    }
    (folder / "meta.yaml").write_text(dump({"learned": list(PARTS), "made_by": made_by}))
    return folder / "generator.safetensors"


def end_to_end(top: Path, folder: Path, architecture: str, teacher: str | None, text: str | None, parts: bool) -> None:
    """Pretraining, release, synthesis and prediction; parts: with every learned part of the generator on."""
    folder.mkdir()
    made = pretrained(top, folder / "base", architecture, teacher)
    reader = [] if text is None else ["--encoders", f"{KIND[text]}:{top / text}"]
    learned: list[object] = []
    if parts:
        spec = None if text is None else Spec.parse(reader[1])
        learned = ["--generator", moving_generator(folder / "generator", made, spec)]
    out = folder / "release"
    mark = run(centre.app, "pretrain", "release", "--base", made, "--out", out, *learned, *reader)["sha256"]
    manifest = Release.open(out, sha256=mark).manifest
    assert manifest.architecture.base == architecture and manifest.architecture.size == SIZE
    assert manifest.architecture.learned == (PARTS if parts else ())
    assert manifest.text_encoder.kind == ("package" if text is None else KIND[text])
    used = {p.name: p.used_for for p in manifest.provenance}
    if teacher is None:
        assert used["weights of the base network"] == "base network, as its owner gave it"
    else:
        assert used[f"{KIND[teacher]}:{teacher}"] == "teacher of the base network"
        assert used["weights of the base network"] == "start of the base network"

    exemplar = ("--exemplar", top / "exemplar.png", "--disease", "dermatofibroma")
    model = folder / "model"
    facts = run(site.app, "synthesize", *exemplar, "--release", out, "--sha256", mark, *reader, "--out", model)
    assert facts["named"] == ["dermatofibroma"]
    weights = safetensors.torch.load_file(model / "classifier.safetensors")
    outputs = len(weights["classifier.bias"])
    assert outputs >= 3, "the disease and at least two rivals"
    net = timm.create_model(architecture, num_classes=outputs).eval()
    net.load_state_dict(weights, strict=True)
    before = load_state(made / "base.safetensors")
    moved = {n for n, t in weights.items() if n in before and not torch.equal(t.float(), before[n].float())}
    assert bool(moved) == parts
    if parts:
        convolutions = {layer.conv + ".weight" for layer in layers_of(network(architecture))}
        assert moved >= convolutions, "the generator writes every convolution"
    assert all(t.isfinite().all() for t in weights.values())
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, SIZE, SIZE)).isfinite().all()
    facts = run(site.app, "predict", "--model", model, top / "exemplar.png", "--out", folder / "results.csv")
    assert facts["pictures"] == 1 and (folder / "results.csv").read_text().count("exemplar.png") == 1


@pytest.mark.parametrize(
    ("architecture", "teacher", "text"),
    [
        ("tf_efficientnetv2_b0", "vit", "clip"),
        ("tf_efficientnetv2_b0", "clip", None),
        ("tf_efficientnetv2_b0", "dino", "bert"),
        ("tf_efficientnetv2_b1", "both", "biomed"),
        ("tf_efficientnetv2_b2", None, "both"),
        pytest.param("tf_efficientnetv2_b3", None, None, marks=pytest.mark.slow),
    ],
)
def test_from_a_checkpoint_to_a_prediction(
    top: Path, tmp_path: Path, architecture: str, teacher: str | None, text: str | None
) -> None:
    end_to_end(top, tmp_path / "x", architecture, teacher, text, parts=True)


@pytest.mark.slow
def test_a_big_network_as_its_owner_gave_it(top: Path, tmp_path: Path) -> None:
    end_to_end(top, tmp_path / "x", "tf_efficientnetv2_s", None, None, parts=False)


Change = Callable[[Path], object]


def configured(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """An edit of a folder's configuration."""

    def apply(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        change(found)
        (folder / name).write_text(json.dumps(found))

    return apply


def pickled(folder: Path) -> None:
    (path,) = folder.glob("*.safetensors")
    torch.save(safetensors.torch.load_file(path), folder / "pytorch_model.bin")
    path.unlink()


def without_words(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.name.startswith(("tokenizer", "vocab", "special_tokens")):
            path.unlink()


CLIP, OTHER, PICTURES = "open_clip_config.json", "config.json", "preprocessor_config.json"
TEACHES = "a network for pictures teaches the base"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("clip", lambda d: (d / CLIP).unlink(), f"lacks {CLIP}"),
        ("vit", lambda d: (d / OTHER).unlink(), f"lacks {OTHER}"),
        ("both", lambda d: (d / PICTURES).unlink(), f"lacks {PICTURES}"),
        ("clip", pickled, "holds no safetensors file"),
        ("vit", pickled, "holds no safetensors file"),
        ("dino", pickled, "holds no safetensors file"),
        ("clip", configured(CLIP, lambda c: c["model_cfg"]["vision_cfg"].update(layers=2)), "differ: the weights lack visual"),
        ("vit", configured(OTHER, lambda c: c.update(architecture="vit_of_nobody")), "Unknown model"),
        ("vit", configured(OTHER, lambda c: c.update(architecture="resnet18")), "timm cannot read it"),
        ("dino", configured(OTHER, lambda c: c.update(model_type="nobody")), "transformers cannot read it"),
        ("clip", configured(CLIP, lambda c: c["model_cfg"]["vision_cfg"].update(image_size=64)), r"\[5, 64\] instead of \[17, 64\]"),
        ("vit", configured(OTHER, lambda c: c["pretrained_cfg"].update(input_size=[3, 64, 64])), "instead of"),
        ("dino", configured(OTHER, lambda c: c.update(image_size=64)), r"\[1, 5, 32\] instead of \[1, 17, 32\]"),
        ("fixed", configured(CLIP, lambda c: c["model_cfg"]["vision_cfg"].update(image_size=64)), "open_clip cannot read it: Input height"),
        ("bert", lambda d: None, "reads no pictures"),
    ],
)  # fmt: skip
def test_a_teacher_that_cannot_teach_is_one_line(
    top: Path, tmp_path: Path, name: str, change: Change, said: str
) -> None:
    folder = tmp_path / "broken"
    if name == "fixed":  # a ViT for pictures of one size
        small_encoders.open_clip(folder, hf_text=True, trunk="test_vit3")
    else:
        shutil.copytree(top / name, folder)
    change(folder)
    kind = KIND.get(name, "open_clip")
    out, file = tmp_path / "base", checkpoint("tf_efficientnetv2_b0", tmp_path / "weights.safetensors")
    words: list[object] = ["--data", top / "data", "--out", out, "--weights", file, "--encoders", f"{kind}:{folder}"]
    words += [x for w in ("weights", "encoders") for x in (f"--{w}-source", "a hub", f"--{w}-licence", "MIT")]
    with pytest.raises(InputError, match=said) as caught:
        run(centre.app, "pretrain", "base", *words)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) and not out.exists()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("clip", lambda d: (d / CLIP).unlink(), f"lacks {CLIP}"),
        ("bert", lambda d: (d / OTHER).unlink(), f"lacks {OTHER}"),
        ("bert", pickled, "holds no safetensors file"),
        ("bert", without_words, "holds no tokenizer"),
        ("biomed", without_words, "holds no tokenizer"),
        ("bert", configured(OTHER, lambda c: c.update(hidden_size=64)), "instead of"),
        ("vit", lambda d: None, TEACHES),
        ("dino", lambda d: None, TEACHES),
    ],
)
def test_a_reader_that_cannot_read_is_one_line(top: Path, tmp_path: Path, name: str, change: Change, said: str) -> None:
    folder = shutil.copytree(top / name, tmp_path / "broken")
    change(folder)
    with pytest.raises(InputError, match=said) as caught:
        OpenText(Spec.parse(f"{KIND[name]}:{folder}")).embed(["Red lacunae."])
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_tokenizer_with_more_words_than_the_network_is_one_line(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    folder = small_encoders.transformers_text(tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    BertModel(BertConfig(**small_encoders.bert_config() | {"vocab_size": 100})).save_pretrained(folder)
    with pytest.raises(InputError, match="transformers cannot read it"):
        OpenText(Spec.parse(f"transformers:{folder}")).embed(["Red lacunae."])


@pytest.mark.parametrize(
    ("architecture", "kind", "said"),
    [
        ("tf_efficientnetv2_b1", InputError, "name its --architecture, tf_efficientnetv2_b1 does not fit"),
        ("efficientnetv2_rw_s", ConfigError, "is not one of timm's tf_efficientnetv2_"),
        ("pickle", InputError, "is not a safetensors file"),
    ],
)
def test_weights_that_are_no_base_are_one_line(
    top: Path, tmp_path: Path, architecture: str, kind: type[SgpsError], said: str
) -> None:
    file = checkpoint("tf_efficientnetv2_b0", tmp_path / "weights.safetensors")
    if architecture == "pickle":
        torch.save(safetensors.torch.load_file(file), tmp_path / "weights.pth")
        file, architecture = tmp_path / "weights.pth", "tf_efficientnetv2_b0"
    words = ("--data", top / "data", "--out", tmp_path / "base", "--weights", file, "--architecture", architecture)
    with pytest.raises(kind, match=said) as caught:
        run(centre.app, "pretrain", "base", *words, "--weights-source", "a hub", "--weights-licence", "MIT")
    assert "\n" not in str(caught.value) and not (tmp_path / "base").exists()
