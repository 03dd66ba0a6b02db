"""Releases come in pieces over lines that break, and only what verifies is there afterwards."""

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import CLASSES, Bench, K

from sgps.errors import NetworkError, SgpsError, SignatureError
from sgps.memory import Contribution, pool
from sgps.release import BANK, CATALOGUE, FILES, GENERATOR, MANIFEST, MEMORY, SIGNATURE, memory_bytes, write
from sgps_client import store as stores
from sgps_client.coordinator import Interrupted, Named
from sgps_client.store import Store

PIECE = 1 << 20


class Shelf:
    """What the coordinator gives, from a folder. broken: a file whose bytes are altered on the way; cut: after how many bytes the
    line breaks, and how often."""

    url = "https://localhost:9"

    def __init__(self, folder: Path, broken: str = "", cut: int = 0, times: int = 0) -> None:
        self.folder, self.broken, self.cut, self.times = folder, broken, cut, times
        self.asked = list[tuple[str, int]]()

    def latest(self) -> Named:
        name = max(p.name for p in self.folder.iterdir())
        return Named(name=name, sha256=hashlib.sha256(self._bytes(name, MANIFEST, False)).hexdigest())

    def inspect(self, name: str) -> tuple[bytes, bytes]:
        return self._bytes(name, MANIFEST), self._bytes(name, SIGNATURE)

    def pull(self, release: Named, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
        self.asked.append((file, offset))
        data, passed = self._bytes(release.name, file), 0
        yield len(data), b""
        for begin in range(offset, len(data), PIECE):
            if self.times and passed >= self.cut:
                self.times -= 1
                raise Interrupted("the line was cut")
            yield len(data), data[begin : begin + PIECE]
            passed += PIECE

    def _bytes(self, release: str, name: str, altered: bool = True) -> bytes:
        data = (self.folder / release / name).read_bytes()
        return data[:-1] + bytes([data[-1] ^ 1]) if altered and name == self.broken else data


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "PAUSE", 0.0)


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


def there(bench: Bench) -> list[str]:
    return sorted(p.name for p in bench.site.releases.iterdir() if p.name != ".lock")


def nothing_old(bench: Bench) -> None:
    """No file can be taken from an older release."""
    shutil.rmtree(bench.site.releases)


def test_a_share_that_knows_no_links_gets_copies(bench: Bench, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    assert fetch(bench, shelf).newest() is not None  # from the older release
    nothing_old(bench)
    assert fetch(bench, shelf).newest() is not None and there(bench) == ["0001"]  # from the coordinator


def test_a_release_is_fetched_verified_and_newest(bench: Bench, shelf: Shelf) -> None:
    store = fetch(bench, shelf)
    newest = store.newest()
    assert newest is not None
    assert newest.folder.name == "0001"
    assert store.holds(shelf.latest())
    assert shelf.asked == []  # the older release holds the same bytes
    nothing_old(bench)
    fetch(bench, shelf)
    assert [file for file, _ in shelf.asked] == list(FILES)
    assert there(bench) == ["0001"]
    shelf.asked.clear()
    fetch(bench, shelf)
    assert shelf.asked == []  # it is here already


def test_only_what_changed_since_an_older_release_is_fetched(bench: Bench, shelf: Shelf) -> None:
    first = fetch(bench, shelf).newest()
    assert first is not None
    part = Contribution(np.zeros((len(CLASSES), K)), np.full(len(CLASSES), 3.0), sigma=1.0)
    contents: dict[str, bytes | Path] = {n: first.folder / n for n in (GENERATOR, BANK, CATALOGUE)}
    contents[MEMORY] = memory_bytes(pool(site_bench.coordinates(), CLASSES, [part]))
    write(shelf.folder / "0002", contents, first.manifest.model_copy(update={"name": "0002"}), bench.key)
    newest = fetch(bench, shelf).newest()
    assert newest is not None and newest.folder.name == "0002" and shelf.asked == [(MEMORY, 0)]


@pytest.mark.parametrize("name", [GENERATOR, MEMORY, MANIFEST, SIGNATURE])
def test_altered_bytes_are_never_installed_and_are_not_built_upon(bench: Bench, shelf: Shelf, name: str) -> None:
    nothing_old(bench)
    with pytest.raises(SgpsError):
        fetch(bench, Shelf(shelf.folder, broken=name))
    good = {f".{hashlib.sha256((shelf.folder / '0001' / f).read_bytes()).hexdigest()}.part" for f in FILES}
    assert set(there(bench)) <= good
    assert fetch(bench, shelf).newest() is not None
    assert there(bench) == ["0001"]
    if name in FILES:
        assert (name, 0) in shelf.asked


def test_a_line_that_breaks_again_and_again_brings_every_byte_once(bench: Bench, shelf: Shelf) -> None:
    nothing_old(bench)
    worn = Shelf(shelf.folder, cut=3 * PIECE, times=1000)
    assert fetch(bench, worn).newest() is not None
    offsets = [offset for file, offset in worn.asked if file == GENERATOR]
    size = (shelf.folder / "0001" / GENERATOR).stat().st_size
    assert offsets == list(range(0, size, 3 * PIECE))
    assert len(offsets) > stores.TRIES


def test_a_line_that_brings_nothing_is_given_up_and_taken_up_by_the_next_fetch(bench: Bench, shelf: Shelf) -> None:
    nothing_old(bench)
    dying = Shelf(shelf.folder, cut=2 * PIECE, times=1000)
    pull, calls = dying.pull, list[int]()

    def dies(release: Named, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
        calls.append(offset)
        if len(calls) > 2:
            raise Interrupted("nobody answers")
        yield from pull(release, file, offset)

    dying.pull = dies  # type: ignore[method-assign]
    with pytest.raises(NetworkError, match="nobody answers"):
        fetch(bench, dying)
    assert calls == [0, 2 * PIECE] + [4 * PIECE] * stores.TRIES
    (part,) = there(bench)
    assert part.endswith(".part")
    assert fetch(bench, shelf).newest() is not None
    assert shelf.asked[0] == (GENERATOR, 4 * PIECE)
    assert there(bench) == ["0001"]


def test_a_refusal_is_not_tried_again(bench: Bench, shelf: Shelf) -> None:
    nothing_old(bench)
    calls = list[int]()

    def refused(release: Named, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
        calls.append(offset)
        raise NetworkError("this site is not enrolled or was revoked")

    shelf.pull = refused  # type: ignore[method-assign]
    with pytest.raises(NetworkError, match="revoked"):
        fetch(bench, shelf)
    assert calls == [0]


def test_a_release_that_changed_since_the_cut_begins_anew(bench: Bench, shelf: Shelf, tmp_path: Path) -> None:
    nothing_old(bench)
    memory = shelf.folder / "0001" / MEMORY
    bench.site.releases.mkdir()
    stale = bench.site.releases / f".{'a' * 64}.part"  # of a file that the release no longer has
    stale.write_bytes(memory.read_bytes()[:100])
    fetch(bench, shelf)
    assert (MEMORY, 0) in shelf.asked
    assert (bench.site.releases / "0001" / MEMORY).read_bytes() == memory.read_bytes()
    assert there(bench) == ["0001"]


@pytest.mark.parametrize("damage", [b"x", b"x" * (64 << 20)])
def test_a_part_that_was_damaged_on_disk_is_thrown_away(bench: Bench, shelf: Shelf, damage: bytes) -> None:
    nothing_old(bench)
    bench.site.releases.mkdir()
    sha = hashlib.sha256((shelf.folder / "0001" / GENERATOR).read_bytes()).hexdigest()
    (bench.site.releases / f".{sha}.part").write_bytes(damage)
    with pytest.raises(SgpsError):
        fetch(bench, shelf)
    assert there(bench) == []
    assert fetch(bench, shelf).newest() is not None


def test_more_bytes_than_announced_are_refused(bench: Bench, shelf: Shelf) -> None:
    nothing_old(bench)

    def flood(release: Named, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
        while True:
            yield 10, b"x" * 8

    shelf.pull = flood  # type: ignore[method-assign]
    with pytest.raises(NetworkError, match="more than the 10 bytes"):
        fetch(bench, shelf)
    shelf.pull = lambda *_: iter([(1 << 40, b"x")])  # type: ignore[method-assign]
    with pytest.raises(NetworkError, match="more than the 536,870,912 bytes"):
        fetch(bench, shelf)
    assert there(bench) == []


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
        Store(bench.site).fetch(shelf, Named(name="0001", sha256="0" * 64))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["../x", "/etc", ".hidden", "A", ""])
def test_a_name_that_climbs_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Named(name=name, sha256="0" * 64)
