"""Encoders from a folder: the same numbers as their own library gives, one hash, no code, no pickle, no network; faults in a line."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import small_encoders

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")

from sgps.errors import ConfigError, InputError, SgpsError, StateError
from sgps.open_encoders import ImageTower, OpenText, Spec

TEXTS = ["Red lacunae, well demarcated.", "A firm papule with a central white scar-like patch and a delicate network."]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("encoders")
    return {
        "clip": small_encoders.open_clip(top / "clip"),
        "biomed": small_encoders.open_clip(top / "biomed", hf_text=True),
        "vit": small_encoders.timm(top / "vit"),
        "bert": small_encoders.transformers_text(top / "bert"),
        "dino": small_encoders.transformers_image(top / "dino"),
        "both": small_encoders.transformers_both(top / "both"),
    }


KIND = {
    "clip": "open_clip",
    "biomed": "open_clip",
    "vit": "timm",
    "bert": "transformers",
    "dino": "transformers",
    "both": "transformers",
}


def spec(folders: dict[str, Path], name: str) -> Spec:
    return Spec.parse(f"{KIND[name]}:{folders[name]}")


def pictures(size: int) -> torch.Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("name", "width"), [("clip", 24), ("biomed", 24), ("bert", 32), ("both", 24)])
def test_texts(folders: dict[str, Path], name: str, width: int) -> None:
    encoder = OpenText(spec(folders, name))
    rows = encoder.embed(TEXTS)
    assert rows.shape == (2, width) and rows.dtype == np.float32 and encoder.width == width
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 1e-4
    np.testing.assert_allclose(np.concatenate([encoder.embed([t]) for t in TEXTS]), rows, atol=1e-5)
    np.testing.assert_array_equal(OpenText(spec(folders, name)).embed(TEXTS), rows)
    with pytest.raises(InputError, match="text 2: is empty"):
        encoder.embed(["a", " "])
    assert np.isfinite(encoder.embed(["atypical network " * 500])).all() and encoder.embed([]).shape == (0, width)


@pytest.mark.parametrize(("name", "width"), [("clip", 24), ("biomed", 24), ("vit", 64), ("dino", 32), ("both", 24)])
def test_pictures(folders: dict[str, Path], name: str, width: int) -> None:
    tower = ImageTower(spec(folders, name))
    found = tower(pictures(48))
    assert found.shape == (3, width) == (3, tower.num_features) and torch.isfinite(found).all()
    torch.testing.assert_close(torch.cat([tower(p[None]) for p in pictures(48)]), found, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ImageTower(spec(folders, name))(pictures(48)), found, rtol=0, atol=0)
    assert not any(p.requires_grad for p in tower.parameters())


def test_same_as_open_clip_itself(folders: dict[str, Path]) -> None:
    net, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folders['clip']}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folders['clip']}")(TEXTS)
    x = pictures(32)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (net.visual.preprocess_cfg["mean"], net.visual.preprocess_cfg["std"])
    )
    with torch.inference_mode():
        text = torch.nn.functional.normalize(net.eval().encode_text(tokens), dim=-1)
        image = net.encode_image(((x + 1) / 2 - mean) / std)
    np.testing.assert_allclose(OpenText(spec(folders, "clip")).embed(TEXTS), text.numpy(), atol=1e-6)
    torch.testing.assert_close(ImageTower(spec(folders, "clip"))(x), image, atol=1e-5, rtol=1e-5)


def test_same_as_timm_itself(folders: dict[str, Path]) -> None:
    net = timm.create_model(f"local-dir:{folders['vit']}", pretrained=True, num_classes=0).eval()
    x = pictures(160)
    with torch.inference_mode():
        wanted = net(((x + 1) / 2 - 0.5) / 0.25)
    torch.testing.assert_close(ImageTower(spec(folders, "vit"))(x), wanted, atol=1e-6, rtol=1e-6)


def test_a_sentence_is_the_mean_over_its_tokens_or_its_first_one(folders: dict[str, Path], tmp_path: Path) -> None:
    net = transformers.AutoModel.from_pretrained(folders["bert"]).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folders["bert"])(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        hidden = net(**tokens).last_hidden_state[0]
    for first, wanted in ((False, hidden.mean(0)), (True, hidden[0])):
        folder = shutil.copytree(folders["bert"], tmp_path / str(first))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": first}))
        found = OpenText(Spec.parse(f"transformers:{folder}")).embed(TEXTS[:1])[0]
        np.testing.assert_allclose(found, (wanted / wanted.norm()).numpy(), atol=1e-5)


def test_hash_and_name_follow_content_not_place(folders: dict[str, Path], tmp_path: Path) -> None:
    one = spec(folders, "clip")
    copy = Spec.parse("open_clip:elsewhere", shutil.copytree(folders["clip"], tmp_path / "elsewhere").parent)
    (copy.folder / "README.md").write_text("words")
    assert copy.sha256 == one.sha256 and (one.name, copy.name) == ("open_clip:clip", "open_clip:elsewhere")
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        changed = shutil.copytree(folders["clip"], tmp_path / name)
        with (changed / name).open("ab") as file:
            file.write(b" ")
        assert Spec.parse(f"open_clip:{changed}").sha256 != one.sha256


def change_config(name: str, **more: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(found | more))

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (path,) = folder.glob("*.safetensors")
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file(tensors, path)

    return apply


def only_a_pickle(folder: Path) -> None:
    (path,) = folder.glob("*.safetensors")
    torch.save(safetensors.torch.load_file(path), folder / "pytorch_model.bin")
    path.unlink()


def cut(folder: Path) -> None:
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])


def first(tensors: dict[str, torch.Tensor]) -> str:
    return next(n for n in sorted(tensors) if "weight" in n and tensors[n].ndim == 2)


@pytest.mark.parametrize("name", ["clip", "vit", "bert", "both"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (only_a_pickle, "holds no safetensors file"),
        (cut, "not a safetensors file|cannot read it"),
        (change_weights(lambda t: t.pop(first(t))), "differ: the weights lack"),
        (
            change_weights(lambda t: t.update({first(t): torch.zeros(2, 3)})),
            r"differ: the weights hold .* as \[2, 3\] instead of",
        ),
        (lambda folder: next(folder.glob("*config.json")).write_text("{"), "is not JSON"),
        (
            lambda folder: shutil.copy(next(folder.glob("*.safetensors")), folder / "two.safetensors"),
            "holds 2 safetensors",
        ),
    ],
)
def test_a_broken_folder_is_one_line(
    folders: dict[str, Path], tmp_path: Path, name: str, change: Any, said: str
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "broken")
    if name in {"bert", "both"}:
        (folder / "tokenizer_config.json").unlink()  # so that the glob above meets config.json
        for other in folder.glob("preprocessor_config.json"):
            other.unlink()
    change(folder)
    with pytest.raises(InputError, match=said) as caught:
        made = Spec.parse(f"{KIND[name]}:{folder}")
        ImageTower(made) if name == "vit" else OpenText(made).embed(["a"])
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["hf-hub:someone/else", "hf_hub:someone/else", "local-dir:elsewhere"])
def test_a_configuration_that_points_elsewhere_is_refused(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """timm would fetch such a network, or read another folder than the one that is named and hashed."""
    vit, clip = (shutil.copytree(folders[kind], tmp_path / kind) for kind in ("vit", "biomed"))
    change_config("config.json", architecture=name)(vit)
    said = json.loads((clip / "open_clip_config.json").read_text())
    said["model_cfg"]["vision_cfg"]["timm_model_name"] = name
    (clip / "open_clip_config.json").write_text(json.dumps(said))
    for made in (f"timm:{vit}", f"open_clip:{clip}"):
        with pytest.raises(InputError, match=f"names the network {name}, which is none of timm's"):
            ImageTower(Spec.parse(made))


def test_numbers_that_are_not_finite(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["vit"], tmp_path / "vit")
    change_weights(lambda t: t[first(t)].fill_(float("nan")))(folder)
    with pytest.raises(InputError, match="not finite"):
        ImageTower(Spec.parse(f"timm:{folder}"))


@pytest.mark.parametrize(
    ("name", "use", "said"),
    [
        ("vit", OpenText, "timm networks read no texts"),
        ("dino", OpenText, "reads no texts"),
        ("bert", ImageTower, "reads no pictures"),
    ],
)
def test_what_an_encoder_cannot_do(folders: dict[str, Path], name: str, use: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        made = use(spec(folders, name))
        made.embed(["a"])


@pytest.mark.parametrize(
    ("text", "said", "kind"),
    [
        ("clip", "'clip' names no encoder", ConfigError),
        ("keras:x", "write one of open_clip:DIR, timm:DIR, transformers:DIR", ConfigError),
        ("timm:", "names no encoder", ConfigError),
        ("timm:nowhere", "nowhere: is not a folder", InputError),
    ],
)
def test_names_of_encoders(text: str, said: str, kind: type[SgpsError]) -> None:
    with pytest.raises(kind, match=said):
        Spec.parse(text)


def test_code_of_a_folder_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["bert"], tmp_path / "bert")
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nfrom transformers import BertModel as Model\n")
    change_config("config.json", auto_map={"AutoModel": "evil.Model"})(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", None)
        OpenText(Spec.parse(f"transformers:{folder}")).embed(["a"])
        change_config("config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.Model"})(
            folder
        )
        with pytest.raises(InputError, match="transformers cannot read it"):
            OpenText(Spec.parse(f"transformers:{folder}")).embed(["a"])
    assert not mark.exists()


def test_a_library_that_is_missing(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(StateError, match=r"open_clip: is not installed - install sgps\[encoders\]"):
        ImageTower(spec(folders, "clip"))
