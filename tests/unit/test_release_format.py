"""A release is used only when signature and every hash fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save

from sgps import release as r
from sgps.errors import InputError, SgpsError, SignatureError
from sgps.files import sha256_file
from sgps.memory import Contribution, Coordinates, Memory, pool

KEY = Ed25519PrivateKey.generate()
PLACE = Coordinates(np.zeros(6, np.float32), np.eye(6, dtype=np.float32)[:2], 1.0, 1.0)


def manifest(**changes: Any) -> r.Manifest:
    fields: dict[str, Any] = {
        "name": "0001", "federation": "test", "fingerprint": "a" * 64, "encoder_sha256": "b" * 64, "classes": ("df", "vasc"),
        "architecture": r.Architecture(base="tiny", size=32, mean=(0.5,) * 3, std=(0.5,) * 3, width=8, depth=1),
        "text_encoder": r.TextEncoder(name="none", sha256="c" * 64), "files": {}, "licence": "CC-BY-NC-4.0",
        "intended_use": "research", "provenance": (), "code_sha256": "d" * 64,
    }  # fmt: skip
    return r.Manifest(**{**fields, **changes})


def written(folder: Path, key: Ed25519PrivateKey | None = KEY, memory: Memory | None = None) -> Path:
    contents = {
        r.GENERATOR: save({"base.w": np.ones(3, np.float16)}),
        r.MEMORY: r.memory_bytes(memory or Memory.empty(PLACE, ("df", "vasc"))),
        r.BANK: save({"x": np.zeros(1)}),
        r.CATALOGUE: b"classes: []\n",
    }
    r.write(folder, contents, manifest(), key)
    return folder


def test_a_release_comes_back_with_its_memory(tmp_path: Path) -> None:
    memory = pool(PLACE, ("df", "vasc"), [Contribution(np.ones((2, 2)), np.ones(2), 0.5)])
    release = r.Release.open(written(tmp_path / "0001", memory=memory), KEY.public_key())
    assert np.array_equal(release.memory().total, memory.total)
    assert list(release.tensors(r.GENERATOR, "base.")) == ["w"]
    assert release.sha256 == sha256_file(tmp_path / "0001" / r.MANIFEST)


@pytest.mark.parametrize("name", [*r.FILES, r.MANIFEST, r.SIGNATURE])
def test_one_flipped_byte_is_refused(tmp_path: Path, name: str) -> None:
    file = written(tmp_path / "0001") / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(SignatureError):
        r.Release.open(tmp_path / "0001", KEY.public_key())


@pytest.mark.parametrize("name", [*r.FILES, r.MANIFEST, r.SIGNATURE])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    (written(tmp_path / "0001") / name).unlink()
    with pytest.raises((SignatureError, InputError)):
        r.Release.open(tmp_path / "0001", KEY.public_key())


def test_another_coordinators_release_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "0001", Ed25519PrivateKey.generate())
    with pytest.raises(SignatureError, match="does not fit the pinned key"):
        r.Release.open(tmp_path / "0001", KEY.public_key())


def test_the_shipped_form_is_pinned_by_hash(tmp_path: Path) -> None:
    folder = written(tmp_path / "0000", None)
    assert r.Release.open(folder, sha256=sha256_file(folder / r.MANIFEST)).manifest.name == "0001"
    with pytest.raises(SignatureError, match="not the pinned release"):
        r.Release.open(folder, sha256="0" * 64)
    with pytest.raises(ValueError, match="pinned"):
        r.Release.open(folder)


def test_a_manifest_of_a_later_version_says_so(tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="colour: there is no such key"):
        r.parse_manifest(b"colour: red\n", "release.yaml")
    with pytest.raises(SgpsError):
        r.parse_manifest(b"\xff", "release.yaml")


def test_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        r.write(tmp_path / "0001", {r.GENERATOR: b""}, manifest(), KEY)
    assert list(tmp_path.iterdir()) == []


def test_encoder_hash_sees_base_size_and_coordinates() -> None:
    memory, shape = Memory.empty(PLACE, ("df",)), manifest().architecture
    moved = Memory.empty(Coordinates(PLACE.mean, PLACE.directions, 2.0, 1.0), ("df",))
    base = {"w": np.ones(3, np.float16)}
    hashes = {
        r.encoder_sha256(base, shape, memory),
        r.encoder_sha256({"w": np.zeros(3, np.float16)}, shape, memory),
        r.encoder_sha256(base, shape.model_copy(update={"size": 64}), memory),
        r.encoder_sha256(base, shape, moved),
    }
    assert len(hashes) == 4
