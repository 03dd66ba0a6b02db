"""An ONNX file that needs nothing but onnxruntime and what it says itself, and never lies about its network."""

import io
import json
import stat
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import random_classifier

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from sgps import export
from sgps.calibration import Share
from sgps.classifier import Classifier, look
from sgps.draw import draw_patient, draw_profile
from sgps.errors import InputError, StateError
from sgps.foreign import Foreign
from sgps_client import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "df"
    random_classifier.make("df", rivals=("nv", "größe"), ids=("df", "nv", "mel")).save(folder)
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command itself, which says what the file is."""
    path = tmp_path_factory.mktemp("onnx") / "df.onnx"
    code, said = command("export", "--model", folder, "--onnx", path)
    assert code == 0 and f"{path} is patient data" in said
    return path


def command(*words: object) -> tuple[int, str]:
    """Exit code, and all that was said."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setattr(sys, "argv", ["sgps-client", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0), said.getvalue()


def opened(path: Path) -> tuple[Any, dict[str, Any]]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session, {n: json.loads(v) for n, v in session.get_modelmeta().custom_metadata_map.items()}


def by_metadata_alone(path: Path, pictures: list[Image.Image]) -> tuple[NDArray[Any], list[bool]]:
    """Logits and claims as a program of another language would make them: nothing of sgps is used."""
    session, said = opened(path)
    assert said["crop"] == "middle square" and said["input"].startswith("RGB, (x - mean) / std")
    rows = []
    for picture in pictures:
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        side = min(x.shape[2:])
        top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
        x = x[:, :, top : top + side, left : left + side]
        size = (said["size"], said["size"])
        x = torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (np.array(said[n], np.float32)[:, None, None] for n in ("mean", "std"))
        x = (x[0].numpy() - mean) / std
        turned = [np.rot90(x, k, (1, 2)) for k in range(4)]
        every = np.stack([*turned, *(v[:, :, ::-1] for v in turned)])[: said["views"]]
        rows.append(session.run(["logits"], {"images": np.ascontiguousarray(every)})[0].mean(0))
    logits = np.stack(rows)
    n = said["named"]
    score = logits[:, :n].max(1) - said["rival_weight"] * logits[:, n:].max(1)
    return logits, ((score > said["threshold"]) & (logits.max(1) >= said["least"])).tolist()


def test_metadata_are_enough(folder: Path, exported: Path) -> None:
    pictures = [
        Image.fromarray(draw_patient(draw_profile(p), 0, views=1, size=90)[0]).crop((0, 5, 90, 85)) for p in range(6)
    ]
    classifier = Classifier.load(folder)
    logits, accepted = by_metadata_alone(exported, pictures)
    np.testing.assert_allclose(logits, classifier.logits(pictures), atol=1e-4)
    assert accepted == [p.accepted for p in classifier.predict(pictures)]


def test_metadata_name_origin_and_thresholds(folder: Path, exported: Path) -> None:
    _, said = opened(exported)
    record = Classifier.load(folder).record
    assert said["labels"] == ["df", "nv", "größe"] and said["ids"] == ["df", "nv", "mel"]
    assert (
        said["threshold"] == record.calibration.threshold
        and said["weights_sha256"] == record.files["classifier.safetensors"]
    )
    assert said["patient_data"].startswith("made from a patient's picture")
    assert {"licence", "release_sha256", "encoder_sha256", "bank_sha256", "std", "views", "false_alarms"} <= set(said)


def test_the_head_of_other_kinds_goes_along(folder: Path, tmp_path: Path) -> None:
    made, x = Classifier.load(folder), torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, features = (t.numpy() for t in look(made.network, x))
    weight = np.random.default_rng(0).normal(size=(2, features.shape[1])).round(3)
    ahead = (features @ weight.T + 0.5).max(1) - logits.max(1)
    other = Foreign(
        ids=("a", "b"),
        weight=weight.tolist(),
        bias=(0.5, 0.5),
        limit=float(np.median(ahead)) - 1e-3,
        measured=(Share.of("x", 0, 5),),
    )
    Classifier(made.record.model_copy(update={"foreign": other}), made.state).save(tmp_path / "model")
    export.save_onnx(Classifier.load(tmp_path / "model"), tmp_path / "it.onnx")
    session, said = opened(tmp_path / "it.onnx")
    found, others = session.run(["logits", "others"], {"images": x.numpy()})
    np.testing.assert_allclose(found, logits, atol=1e-4)
    np.testing.assert_allclose(others.max(1) - found.max(1), ahead, atol=1e-4)
    refused = others.max(1) - found.max(1) > said["other_kind"]["limit"]
    assert refused.tolist() == other.found(features, logits).tolist() and refused.sum() == 2


def test_any_number_of_pictures(folder: Path, exported: Path) -> None:
    session, _ = opened(exported)
    net = Classifier.load(folder).network
    for n in (1, 2, 7):
        x = torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(n))
        with torch.inference_mode():
            wanted = net(x).numpy()
        np.testing.assert_allclose(session.run(None, {"images": x.numpy()})[0], wanted, atol=1e-4)


def test_the_file_is_private_and_tells_nothing_of_the_computer(exported: Path) -> None:
    assert stat.S_IMODE(exported.stat().st_mode) == 0o600
    data = exported.read_bytes()
    assert b"site-packages" not in data and str(Path.cwd()).encode() not in data and b".py" not in data
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)


def test_another_network_is_never_written(
    folder: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that is not the classifier's is noticed before the file has its name."""
    model = onnx.load(exported)
    (weight,) = (t for t in model.graph.initializer if t.name == "classifier.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model_proto=model))
    with pytest.raises(StateError, match="onnxruntime differs from torch by"):
        export.save_onnx(Classifier.load(folder), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_faults_are_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nowhere: does not exist"):
        export.save_onnx(Classifier.load(folder), tmp_path / "nowhere" / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(StateError, match=r"onnxruntime: is not installed - install sgps\[export\]"):
        export.save_onnx(Classifier.load(folder), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(folder: Path, exported: Path) -> None:
    before = exported.read_bytes()
    code, said = command("export", "--model", folder, "--onnx", exported)
    assert code == 2 and "exists already" in said and said.count("\n") == 1
    assert exported.read_bytes() == before
