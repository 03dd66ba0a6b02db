"""Releases come over the coordinator's port, and only what verifies is there afterwards."""

import hashlib
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import Bench

from sgps.errors import NetworkError, SgpsError, SignatureError
from sgps.release import FILES, GENERATOR, MANIFEST, MEMORY, SIGNATURE
from sgps_client.coordinator import Latest
from sgps_client.store import Store


class Shelf:
    """What the coordinator serves, from a folder; `broken` names files whose bytes are altered on the way."""

    url = "https://localhost:9"

    def __init__(self, folder: Path, broken: str = "", cut: str = "") -> None:
        self.folder, self.broken, self.cut, self.asked = folder, broken, cut, list[str]()

    def latest(self) -> Latest:
        name = max(p.name for p in self.folder.iterdir())
        return Latest(name=name, sha256=hashlib.sha256((self.folder / name / MANIFEST).read_bytes()).hexdigest())

    def file(self, release: str, name: str, limit: int) -> bytes:
        self.asked.append(name)
        if name == self.cut:
            raise NetworkError("the line was cut")
        data = (self.folder / release / name).read_bytes()
        assert len(data) <= limit
        return data[:-1] + bytes([data[-1] ^ 1]) if name == self.broken else data


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return site_bench.make(tmp_path / "north")


@pytest.fixture
def shelf(bench: Bench, tmp_path: Path) -> Shelf:
    (tmp_path / "centre").mkdir()
    site_bench.make_release(tmp_path / "centre" / "0001", bench.key)
    return Shelf(tmp_path / "centre")


def fetch(bench: Bench, shelf: Shelf) -> Store:
    store = Store(bench.site)
    store.fetch(shelf, shelf.latest())  # type: ignore[arg-type]
    return store


def test_a_release_is_fetched_verified_and_newest(bench: Bench, shelf: Shelf) -> None:
    store = fetch(bench, shelf)
    newest = store.newest()
    assert newest is not None
    assert newest.folder.name == "0001"
    assert store.holds(shelf.latest())
    assert GENERATOR not in shelf.asked  # the older release holds the same bytes
    assert MANIFEST in shelf.asked
    assert not [p for p in bench.site.releases.iterdir() if p.name.startswith(".")]
    shelf.asked.clear()
    fetch(bench, shelf)
    assert shelf.asked == []  # it is here already


@pytest.mark.parametrize("name", [GENERATOR, MEMORY, MANIFEST, SIGNATURE])
def test_altered_bytes_leave_nothing(bench: Bench, shelf: Shelf, tmp_path: Path, name: str) -> None:
    import shutil

    shutil.rmtree(bench.site.releases)
    with pytest.raises(SgpsError):
        fetch(bench, Shelf(shelf.folder, broken=name))
    assert list(bench.site.releases.iterdir()) == []


@pytest.mark.parametrize("name", [MEMORY, SIGNATURE])
def test_a_cut_line_leaves_nothing_and_the_next_try_succeeds(bench: Bench, shelf: Shelf, name: str) -> None:
    for file in FILES:  # nothing can be taken from an older release
        (bench.site.releases / "0000" / file).write_bytes(b"old")
    with pytest.raises(NetworkError):
        fetch(bench, Shelf(shelf.folder, cut=name))
    assert [p.name for p in bench.site.releases.iterdir()] == ["0000"]
    assert fetch(bench, shelf).newest() is not None


def test_a_damaged_release_is_passed_over_and_replaced(bench: Bench, shelf: Shelf) -> None:
    fetch(bench, shelf)
    memory = bench.site.releases / "0001" / MEMORY
    memory.unlink()
    memory.write_bytes(b"damaged")
    newest = Store(bench.site).newest()
    assert newest is not None
    assert newest.folder.name == "0000"
    assert fetch(bench, shelf).newest().folder.name == "0001"  # type: ignore[union-attr]


def test_a_release_of_another_key_or_federation_is_not_used(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "centre").mkdir()
    site_bench.make_release(tmp_path / "centre" / "0001", Ed25519PrivateKey.generate())
    with pytest.raises(SignatureError, match="does not fit the pinned key"):
        fetch(bench, Shelf(tmp_path / "centre"))
    site_bench.make_release(tmp_path / "centre" / "0002", bench.key, fingerprint="b" * 64)
    with pytest.raises(SignatureError, match="another federation"):
        fetch(bench, Shelf(tmp_path / "centre"))


def test_a_release_that_changes_while_it_is_fetched_is_not_mixed(bench: Bench, shelf: Shelf) -> None:
    with pytest.raises(NetworkError, match="changed"):
        Store(bench.site).fetch(shelf, Latest(name="0001", sha256="0" * 64))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["../x", "/etc", ".hidden", "A", ""])
def test_a_name_that_climbs_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Latest(name=name, sha256="0" * 64)
