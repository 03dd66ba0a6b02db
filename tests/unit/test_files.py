"""Files and folders are there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from sgps.errors import InputError
from sgps.files import new_folder, read_limited, sha256_file, write_atomic


def test_write_replaces_whole_and_sets_the_mode(tmp_path: Path) -> None:
    file = tmp_path / "key"
    write_atomic(file, b"one", 0o600)
    write_atomic(file, b"two", 0o600)
    assert file.read_bytes() == b"two" and file.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    write_atomic(file, b"one")

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(file, b"two")
    assert file.read_bytes() == b"one" and [p.name for p in tmp_path.iterdir()] == ["key"]


def test_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "model") as work:
        (work / "half").write_bytes(b"1")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "model", 0o700) as work:
        (work / "whole").write_bytes(b"1")
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o700
    with pytest.raises(InputError, match="exists already"), new_folder(tmp_path / "model"):
        pass
    assert (tmp_path / "model" / "whole").exists()


def test_a_new_folder_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, Path.rename

    def seen(handle: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name.partition(".tmp")[0])
        sync(handle)

    def renamed(path: Path, target: Path) -> Path:
        calls.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(Path, "rename", renamed)
    with new_folder(tmp_path / "model") as work:
        (work / "file").write_bytes(b"1")
    folder = calls[1]
    assert folder.startswith(".model.")
    assert calls == ["file", folder, "rename", tmp_path.name]


def test_a_folder_that_cannot_be_kept_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError) as caught, new_folder(tmp_path / "model") as work:
        (work / "file").write_bytes(b"1")
        monkeypatch.setattr(os, "fsync", full)
    assert caught.value.filename == str(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_a_folder_is_written_is_named(tmp_path: Path) -> None:
    """Libraries that draw or save raise what `write` raises: it names nothing."""
    with pytest.raises(OSError, match="No space") as caught, new_folder(tmp_path / "f"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "f") and not [*tmp_path.iterdir()]


def test_reading_is_limited(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"12345")
    assert read_limited(tmp_path / "big", 5) == b"12345"
    with pytest.raises(InputError, match="larger than 4 bytes"):
        read_limited(tmp_path / "big", 4)
    assert sha256_file(tmp_path / "big").startswith("5994471abb01112a")
