import json

import numpy as np
import pytest
import safetensors.torch
import torch

from sgps.attributes import NAMES
from sgps.bank import Bank
from sgps.errors import InputError
from sgps.files import sha256_file
from sgps.generator import Generator
from sgps.pretrain.assemble import assemble
from sgps.release import GENERATOR, Release
from sgps.settings import dump
from sgps.synthesis import synthesize
from sgps.target import factors, network

NAME = "tf_efficientnetv2_b0"
SKIN, LESIONS = ("nv", "mel"), 9


@pytest.fixture
def made(tmp_path):
    """A base folder as pre-training leaves it, with random weights and features."""
    r = np.random.default_rng(0)
    folder = tmp_path / "base"
    folder.mkdir()
    torch.manual_seed(0)
    base = {
        n: t.half() if t.is_floating_point() and "running" not in n else t
        for n, t in network(NAME).state_dict().items()
    }
    safetensors.torch.save_file(base, folder / "base.safetensors")
    digest = sha256_file(folder / "base.safetensors")
    public = [{"set": "ham10000", "class": c, "lesion": f"{c}{i}"} for c in SKIN for i in range(LESIONS)]
    public += [{"set": "cxr", "class": c, "lesion": f"{c}/{i}"} for c in ("normal", "virus") for i in range(30)]
    bank = [row for row in public if int(row["lesion"].lstrip("abcdefghijklmnopqrstuvwxyz/")) < 6]
    bank += [{"set": "bank", "class": f"drawn-{s}", "lesion": f"{s}-{p}"} for s in (1000, 1001) for p in range(4)]
    eight = torch.from_numpy(r.normal(size=(len(public), 1280))).half()
    safetensors.torch.save_file({"eight": eight}, folder / "public.safetensors")
    (folder / "public.json").write_text(json.dumps({"base_sha256": digest, "rows": public}))
    place = {row["lesion"]: i for i, row in enumerate(public)}
    features = torch.stack(
        [eight[place[b["lesion"]]].float() if b["lesion"] in place else torch.randn(1280) for b in bank]
    )
    directions = torch.linalg.qr(torch.randn(1280, 64))[0].T.contiguous()
    statistics = {"mean": torch.zeros(1280), "directions": directions, "bank": features}
    safetensors.torch.save_file(statistics, folder / "statistics.safetensors")
    names = {"base_sha256": digest, "radius": 3.0, "within": 2.0, "means": SKIN, "bank": bank}
    (folder / "statistics.json").write_text(json.dumps(names))
    images = {
        "name": "ham10000",
        "source": "s",
        "licence": "CC BY-NC 4.0",
        "sha256": "0" * 64,
        "images": 18,
        "left_out": ["df"],
    }
    record = {
        "network": {"architecture": NAME, "size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
        "teacher": {"package": "lite0", "licence": "Apache-2.0", "sha256": "1" * 64},
        "images": [{**images, "trained_on": {"nv": 9, "mel": 9}}],
        "figures": "not measured",
    }
    record["made_by"] = {"command": "y", "code_sha256": "5" * 64}
    (folder / "base.yaml").write_text(dump(record))
    return folder


def test_a_release_of_the_base_alone(made, tmp_path, drawn):
    out = tmp_path / "release"
    release = Release.open(out, sha256=assemble(made, None, out))
    assert release.manifest.architecture.learned == () and not release.tensors(GENERATOR, "generator.")
    assert release.manifest.licence == "CC BY-NC 4.0" and release.manifest.provenance[0].left_out == ("df",)
    assert sum(f.stat().st_size for f in out.iterdir()) < 16_000_000
    c = synthesize({"akiec": drawn(600)}, {}, release, rivals=3)
    assert c.record.origin.domain == "dermoscopy" and c.record.origin.rivals == ("mel", "nv")


def test_the_bank_is_filled_from_public_features(made, tmp_path):
    out = tmp_path / "release"
    bank = Bank.of(Release.open(out, sha256=assemble(made, None, out)))
    ids = [c.id for c in bank.classes]
    assert ids == ["nv", "mel", "cxr-normal", "cxr-viral-pneumonia", "drawn-1000", "drawn-1001"]
    assert np.bincount(bank.label).tolist() == [9, 9, 16, 16, 4, 4]
    assert bank.inside.tolist() == [True, True, False, False, True, True]
    public = safetensors.torch.load_file(made / "public.safetensors")["eight"].float().numpy()
    normal = public[18:48]
    mine = bank.features[bank.label == 2]
    rest = [x for x in normal if not np.isclose(mine, x, atol=1e-3).all(1).any()]
    assert len(rest) == 14 and np.allclose(bank.means[2], np.mean(rest, 0), atol=2e-3)


def generator_file(made, folder, learned):
    folder.mkdir()
    net = network(NAME)
    fixed = {
        f"fixed.{n}": t
        for n, t in factors(
            net, {c: torch.zeros(m.in_channels) for c, m in net.named_modules() if isinstance(m, torch.nn.Conv2d)}
        ).items()
    }
    generator = Generator(layers=91, features=1280, attributes=len(NAMES))
    tensors = {f"generator.{n}": t.detach().half() for n, t in generator.state_dict().items()}
    path = folder / "generator.safetensors"
    safetensors.torch.save_file({**fixed, **tensors, "head.scale": torch.tensor([0.5])}, path)
    digest = sha256_file(made / "base.safetensors")
    drawn = {"first": 2000, "profiles": 2, "patients": 3}
    made_by = {
        "base_sha256": digest,
        "command": "x",
        "code_sha256": "4" * 64,
        "recipe": {"drawn": drawn, "judged": drawn},
    }
    (folder / "meta.yaml").write_text(dump({"learned": list(learned), "made_by": made_by}))
    return path


def test_learned_parts_are_those_of_the_record(made, tmp_path):
    out = tmp_path / "release"
    release = Release.open(out, sha256=assemble(made, generator_file(made, tmp_path / "meta", ("text", "body")), out))
    assert release.manifest.architecture.learned == ("body", "text")
    assert release.manifest.provenance[-1].images == 12 and "body, text" in release.manifest.provenance[-1].used_for
    assert release.manifest.figures["made_by"]["generator"]["command"] == "x"
    assert release.tensors(GENERATOR, "head.scale")[""].tolist() == [0.5]
    assert sum(f.stat().st_size for f in out.iterdir()) < 16_000_000


def test_parts_of_different_bases_are_refused(made, tmp_path):
    path = generator_file(made, tmp_path / "meta", ())
    (tmp_path / "meta" / "meta.yaml").write_text(dump({"learned": [], "made_by": {"base_sha256": "2" * 64}}))
    with pytest.raises(InputError, match="another base"):
        assemble(made, path, tmp_path / "release")
    names = json.loads((made / "statistics.json").read_text())
    (made / "statistics.json").write_text(json.dumps({**names, "base_sha256": "3" * 64}))
    with pytest.raises(InputError, match="different runs"):
        assemble(made, None, tmp_path / "release")
    assert not (tmp_path / "release").exists()
