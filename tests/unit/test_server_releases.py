"""The next release is written once, from the one before, and says who gave what under which terms."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import tiny_release

from sgps.errors import InputError, SignatureError, StateError
from sgps.files import sha256_file
from sgps.memory import Contribution, Memory, pool
from sgps.release import BANK, CATALOGUE, GENERATOR, MANIFEST, MEMORY, Release, memory_bytes
from sgps_server import releases
from sgps_server.checkpoint import Record
from sgps_server.config import Federation
from sgps_server.kinds import Result
from sgps_server.replies import MOST_TEXT

KEY = Ed25519PrivateKey.generate()
TERMS = {1: {"kind": "rows", "sigma": 1.5}}
STATEMENT = json.dumps({"epsilon": 3.0, "mu": 0.7})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tiny_release.make(tmp_path / "source")
    (tmp_path / "releases").mkdir()
    release = Release.open(source, sha256=sha256_file(source / MANIFEST))
    releases.first(release, tmp_path / "releases" / "0000", "derm", KEY)
    return tmp_path / "releases"


def memory(scale: float = 20.0) -> Memory:
    rng = np.random.default_rng(3)
    parts = [Contribution(scale * rng.normal(size=(3, 4)), scale * np.abs(rng.normal(size=3)), 1.5) for _ in range(2)]
    return pool(tiny_release.coordinates(), tiny_release.CLASSES, parts)


def record(site: str) -> Record:
    return Record(
        round=1, site=site, receipt="a" * 64, sha256="b" * 64, sigma=1.5, statement=STATEMENT, signature="00", key="PEM"
    )


def write(folder: Path, found: Memory) -> Release:
    result = Result(found.arrays(), {MEMORY: memory_bytes(found)})
    return releases.following(folder, 1, result, [record("south"), record("north")], TERMS, "c" * 64, KEY)


def test_the_next_release_changes_the_memory_and_nothing_else(folder: Path) -> None:
    release = write(folder, memory())
    for name in (GENERATOR, BANK, CATALOGUE):
        assert (release.folder / name).read_bytes() == (folder / "0000" / name).read_bytes()
    assert np.allclose(release.memory().total, memory().total)
    assert release.manifest.rounds[0].sites == ("north", "south")
    assert list(release.manifest.statements) == ["north", "south"]
    (entry,) = release.manifest.statements["south"]
    assert entry == {"round": "1", "text": STATEMENT, "receipt": "a" * 64, "signature": "00", "key": "PEM"}
    assert (release.folder / MANIFEST).read_text().count("epsilon") == 2  # once for each site
    assert releases.anchors(folder, KEY.public_key()) == {"0001": "c" * 64}
    assert releases.latest(folder) == releases.Named("0001", release.sha256)


def test_a_crash_after_the_release_and_before_the_checkpoint_is_healed_and_another_memory_is_not(folder: Path) -> None:
    assert write(folder, memory()).sha256 == write(folder, memory()).sha256
    with pytest.raises(StateError, match="made from other contributions"):
        write(folder, memory(21.0))


def test_a_release_with_contributions_to_another_federation_is_no_beginning(folder: Path, tmp_path: Path) -> None:
    """Nor one whose memory is empty and whose generator sites have trained: what they stated would be lost."""
    empty = Release.open(folder / "0000", key=KEY.public_key()).memory()
    for given in (memory(), empty):
        with pytest.raises(InputError, match="holds contributions of another federation"):
            releases.first(write(folder, given), tmp_path / "x", "other", KEY)
        assert not (tmp_path / "x").exists()
        shutil.rmtree(folder / "0001")


def test_a_line_of_another_federations_record_is_not_looked_for_in_a_new_one(folder: Path, tmp_path: Path) -> None:
    """All who had contributed withdrew, and their parts were taken out."""
    release = releases.following(folder, 1, Result({}), (), TERMS, "c" * 64, KEY)
    (tmp_path / "new").mkdir()
    releases.first(release, tmp_path / "new" / "0000", "other", KEY)
    assert releases.anchors(tmp_path / "new", KEY.public_key()) == {}


def test_half_written_folders_are_no_releases(folder: Path) -> None:
    (folder / ".0001.abc.tmp").mkdir()
    (folder / "notes").mkdir()
    assert releases.names(folder) == ["0000"]


def test_an_altered_release_is_not_exported(folder: Path, tmp_path: Path) -> None:
    (folder / "0000" / CATALOGUE).write_bytes(b"other")
    with pytest.raises(SignatureError, match="hash of the manifest"):
        releases.export(folder, "0000", KEY.public_key(), tmp_path / "usb")
    assert not (tmp_path / "usb").exists()


def test_the_largest_quorum_fits_into_a_release_whatever_sites_state(folder: Path) -> None:
    most = Federation.model_json_schema()["properties"]["quorum"]["maximum"]
    before, key = Release.open(folder / "0000", key=KEY.public_key()), "-----\n" + 124 * "A" + "\n-----\n"
    releases.check_room(before, (1,), {f"{n:040d}": key for n in range(most)}, (), TERMS)
    with pytest.raises(StateError, match="round 1 with"):
        releases.check_room(before, (1,), {f"{n:040d}": key for n in range(most + most // 5)}, (), TERMS)


def test_no_answer_takes_more_room_than_was_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest statement, of events without end, and the longest signature."""
    before = Release.open(folder / "0000", key=KEY.public_key())
    text = ('{"a":"one patient (column ' + 21 * "a b" + '), all","events":[' + MOST_TEXT * "[1.391,1.0,1],")[:MOST_TEXT]
    records = [record(s).model_copy(update={"statement": text, "signature": "f" * 512}) for s in ("south", "north")]
    release = releases.following(folder, 1, Result({}), records, TERMS, "c" * 64, KEY)
    monkeypatch.setattr(releases, "MANIFEST_LIMIT", (release.folder / MANIFEST).stat().st_size - 1)
    with pytest.raises(StateError, match="round 1 with 2 sites could"):
        releases.check_room(before, (1,), dict.fromkeys(("south", "north"), "PEM"), (), TERMS)
