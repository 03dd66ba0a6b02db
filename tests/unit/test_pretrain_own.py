"""A user's checkpoint as the base network: from the file to a release that writes classifiers, and every fault in one line."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import small_skin

from sgps.cli import app
from sgps.encoders import ImageEncoder
from sgps.errors import ConfigError, InputError, SgpsError, StateError
from sgps.files import sha256_file
from sgps.pretrain import base
from sgps.pretrain.assemble import assemble
from sgps.pretrain.own import Own, read_own
from sgps.pretrain.recipe import Draw
from sgps.release import Release
from sgps.settings import parse
from sgps.synthesis import synthesize
from sgps.target import network

NAME, SIZE = "tf_efficientnetv2_b0", 48


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network with a classifier, as timm would save it."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        safetensors.torch.save_file(network(NAME, 7).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_skin.make(tmp_path_factory.mktemp("data"))


def own(file: Path, **more: Any) -> Own:
    return Own(file, **{"source": "our archive", "licence": "internal use", "size": SIZE} | more)


@pytest.fixture(scope="module")
def made(data: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        draw = Draw(first=1000, profiles=3, patients=8)
        patch.setattr(base, "BANK_SET", base.BANK_SET.model_copy(update={"draw": draw, "frame": (40, 40)}))
        base.run(data, out, data / "recipe.yaml", own=own(checkpoint))
    return out


@pytest.fixture(scope="module")
def release(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    out = tmp_path_factory.mktemp("release") / "release"
    return Release.open(out, sha256=assemble(made, None, out))


def test_the_base_is_the_checkpoint_and_says_so(made: Path, checkpoint: Path) -> None:
    stored = safetensors.torch.load_file(made / "base.safetensors")
    given = safetensors.torch.load_file(checkpoint)
    assert set(given) - set(stored) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(t, given[n].half() if t.dtype == torch.float16 else given[n]) for n, t in stored.items())
    record = parse((made / "base.yaml").read_text(), "base.yaml")
    assert record["weights"] == {
        "source": "our archive",
        "licence": "internal use",
        "sha256": sha256_file(checkpoint),
    }
    assert record["network"]["size"] == str(SIZE) and record["network"]["mean"] == ["0.485", "0.456", "0.406"]
    assert "teacher" not in record and "trained_on" not in record["images"][0] and "meta_test" not in record
    assert record["figures"].startswith("not measured: the images of the frozen episodes")
    assert str(checkpoint.parent) not in (made / "base.yaml").read_text()


def test_a_release_names_the_weights_and_their_licence(release: Release, checkpoint: Path) -> None:
    last = release.manifest.provenance[-1]
    assert (last.source, last.licence, last.sha256) == ("our archive", "internal use", sha256_file(checkpoint))
    assert release.manifest.licence == "Apache-2.0; base network: internal use"
    assert release.manifest.provenance[0].used_for.startswith("coordinates")


def test_the_release_reads_pictures_as_the_statistics_did(made: Path, release: Release, data: Path) -> None:
    rows = json.loads((made / "public.json").read_text())["rows"]
    place = next(i for i, row in enumerate(rows) if row["class"] == "mel")
    eight = safetensors.torch.load_file(made / "public.safetensors")["eight"][place].float().numpy()
    with Image.open(data / "skin" / rows[place]["image"]) as image:
        found = ImageEncoder(release).features([image.convert("RGB")])[0]
    assert np.allclose(found, eight, rtol=2e-3, atol=2e-3 * np.abs(eight).max())


def test_a_classifier_of_the_release(release: Release, data: Path) -> None:
    with Image.open(data / "skin" / "df" / "df0.png") as image:
        c = synthesize({"df": [image.convert("RGB")]}, {}, release, rivals=2)
    assert (c.record.size, c.record.mean) == (SIZE, (0.485, 0.456, 0.406))
    assert torch.equal(
        c.state["conv_stem.weight"],
        torch.from_numpy(release.tensors("generator.safetensors")["base.conv_stem.weight"]).float(),
    )


def test_another_checkpoint_needs_another_folder(made: Path, checkpoint: Path, data: Path) -> None:
    with pytest.raises(StateError, match="belongs to other weights or images"):
        base.run(data, made, data / "recipe.yaml", own=own(checkpoint, size=SIZE + 16))


def test_a_network_without_classifier_and_counters_is_taken(checkpoint: Path, tmp_path: Path) -> None:
    given = safetensors.torch.load_file(checkpoint)
    bare = {n: t.bfloat16() for n, t in given.items() if not n.startswith("classifier") and "num_batches" not in n}
    safetensors.torch.save_file(bare, tmp_path / "bare.safetensors")
    found = read_own(own(tmp_path / "bare.safetensors"))
    assert found.state["bn1.running_var"].dtype == torch.float32
    assert found.state["bn1.num_batches_tracked"].dtype == torch.int64
    network(NAME).load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in found.state.items()})


@pytest.mark.parametrize(
    ("change", "said", "kind", "more"),
    [
        (lambda s: None, "is not a safetensors file", InputError, {}),
        (
            lambda s: s | {"conv_stem.weight": torch.zeros(8, 3, 3, 3)},
            r"conv_stem.weight has the shape \[8",
            InputError,
            {},
        ),
        (lambda s: s | {"extra": torch.zeros(1)}, "holds extra, which is not of the network", InputError, {}),
        (lambda s: {n: t for n, t in s.items() if n != "bn2.bias"}, "lacks bn2.bias", InputError, {}),
        (lambda s: s | {"bn2.bias": s["bn2.bias"] + 1e6}, "bn2.bias holds numbers that are not finite", InputError, {}),
        (dict, "tf_efficientnetv2_s does not fit", InputError, {"architecture": "tf_efficientnetv2_s"}),
        (dict, "resnet18 is not one of timm's", ConfigError, {"architecture": "resnet18"}),
        (dict, "--weights-licence: is needed", ConfigError, {"licence": " "}),
        (dict, "--mean: needs three numbers", ConfigError, {"mean": (0.5, 0.5)}),
        (dict, "--std: must be positive", ConfigError, {"std": (0.5, 0.5, 0.0)}),
        (dict, "--size: must lie in", ConfigError, {"size": 8}),
    ],
)
def test_faults_are_one_line(
    checkpoint: Path, tmp_path: Path, change: Any, said: str, kind: type[SgpsError], more: dict[str, Any]
) -> None:
    path = tmp_path / "changed.safetensors"
    changed = change(safetensors.torch.load_file(checkpoint))
    if changed is None:
        path.write_bytes(b"PK\x03\x04" * 100)
    else:
        safetensors.torch.save_file(changed, path)
    with pytest.raises(kind, match=said) as caught:
        read_own(own(path, **more))
    assert "\n" not in str(caught.value)


def test_options_of_weights_need_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgps.pretrain.process.prepare_process", lambda threads: None)
    call = ["pretrain", "base", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, [*call, "--size", "192"])
    assert isinstance(found.exception, ConfigError) and "belongs to --weights" in str(found.exception)
    found = CliRunner().invoke(app, [*call, "--encoders-licence", "MIT"])
    assert isinstance(found.exception, ConfigError) and "belongs to --encoders" in str(found.exception)
    found = CliRunner().invoke(app, [*call, "--encoders", f"timm:{tmp_path}"])
    assert isinstance(found.exception, ConfigError) and "--encoders-source: is needed" in str(found.exception)
    found = CliRunner().invoke(app, [*call, "--weights", "x", "--mean", "a,b"])
    assert isinstance(found.exception, ConfigError) and "--mean: needs three numbers" in str(found.exception)
