"""Folders and zips that are damaged, lie about themselves or reach outside."""

import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from sgps.errors import InputError
from sgps_client.data import sources
from sgps_client.data.sources import open_source


def make_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def refused(path: Path, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        open_source(path)
    assert "\n" not in str(caught.value) and str(path.name) in str(caught.value)


def test_folder_and_zip_give_the_same_files(tmp_path: Path) -> None:
    files = {"b/2.jpg": b"two", "a/1.jpg": b"one", "a/.hidden": b"x", "__MACOSX/a/1.jpg": b"x", "b/Thumbs.db": b"x"}
    for name, data in files.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    for path in (tmp_path / "folder", make_zip(tmp_path / "x.zip", *files.items())):
        source = open_source(path)
        assert source.names == ["a/1.jpg", "b/2.jpg"]
        assert source.read("b/2.jpg") == b"two" and source.head("a/1.jpg", 2) == b"on"
        assert source.where("a/1.jpg") == f"{path}/a/1.jpg"


def test_missing_and_neither(tmp_path: Path) -> None:
    refused(tmp_path / "none", "does not exist")
    (tmp_path / "text").write_text("hello")
    refused(tmp_path / "text", "neither a folder nor a zip")


@pytest.mark.parametrize(
    "name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "C:/x.jpg", "a\\..\\x.jpg", "//host/x.jpg"]
)
def test_zip_path_that_climbs_out(tmp_path: Path, name: str) -> None:
    refused(make_zip(tmp_path / "x.zip", ("a/good.jpg", b"1"), (name, b"2")), "climbs out|absolute")


def test_zip_link(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a/link.jpg")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    refused(make_zip(tmp_path / "x.zip", (link, b"/etc/passwd")), "is a link")


def test_zip_encrypted(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", ("a.jpg", b"1"))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(signature) + offset
        data[at : at + 2] = struct.pack("<H", 1)
    path.write_bytes(data)
    refused(path, "is encrypted")


def test_zip_member_twice(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = make_zip(tmp_path / "x.zip", ("a.jpg", b"1"), ("a.jpg", b"2"))
    refused(path, "twice")


def test_zip_huge_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "x.zip", ("a.jpg", bytes(3_000_000)))
    assert path.stat().st_size < 5_000
    with pytest.raises(InputError, match="larger than 1,000 bytes"):
        open_source(path).read("a.jpg", 1000)
    monkeypatch.setattr(sources, "FILE_LIMIT", 1_000_000)
    refused(path, "unpacks to more than")


def test_zip_member_that_lies_about_its_size(tmp_path: Path) -> None:
    """The directory says 10 bytes, the data unpack to three million: no more than the limit is ever read."""
    path = make_zip(tmp_path / "x.zip", ("a.jpg", bytes(3_000_000)))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + offset
        data[at : at + 4] = struct.pack("<I", 10)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.zip/a\.jpg"):
        open_source(path).read("a.jpg", 1000)


def test_zip_damaged(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", ("a.jpg", os.urandom(5000)))
    data = path.read_bytes()
    (tmp_path / "flip.zip").write_bytes(data[:2000] + bytes([data[2000] ^ 255]) + data[2001:])
    with pytest.raises(InputError, match="damaged in the zip"):
        open_source(tmp_path / "flip.zip").read("a.jpg")
    (tmp_path / "short.zip").write_bytes(data[:3000])
    refused(tmp_path / "short.zip", "neither a folder nor a zip")


def test_zip_of_a_mac(tmp_path: Path) -> None:
    """Its names are UTF-8, and nothing in the zip says so."""
    name = "Na\u0308vus/1.jpg".encode()
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as file:
        file.writestr("x" * len(name), b"one")
    (tmp_path / "mac.zip").write_bytes((tmp_path / "mac.zip").read_bytes().replace(b"x" * len(name), name))
    source = open_source(tmp_path / "mac.zip")
    assert source.names == [name.decode()] and source.read(name.decode()) == b"one"


def test_name_that_is_no_text(tmp_path: Path) -> None:
    """Of an old share: it could be written neither into a CSV nor into a report."""
    (tmp_path / os.fsdecode(b"n\xe4vus.jpg")).write_bytes(b"x")
    with pytest.raises(InputError, match="not UTF-8") as caught:
        open_source(tmp_path)
    assert str(caught.value).isprintable()


def test_folder_link_that_leaves(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"x")
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.jpg").write_bytes(b"1")
    (folder / "a" / "inside.jpg").symlink_to(folder / "a" / "1.jpg")
    assert open_source(folder).names == ["a/1.jpg", "a/inside.jpg"]
    (folder / "a" / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(InputError, match=r"out\.jpg: is a link that leaves"):
        open_source(folder)


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FILES_LIMIT", 2)
    refused(make_zip(tmp_path / "x.zip", *((f"{i}.jpg", b"") for i in range(3))), "more than 2 files")


def test_vanished_file(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"1")
    source = open_source(tmp_path)
    (tmp_path / "1.jpg").unlink()
    for read in (lambda: source.read("1.jpg"), lambda: source.head("1.jpg", 4)):
        with pytest.raises(InputError, match="cannot be read"):
            read()
