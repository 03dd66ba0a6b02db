"""Audit chain, checkpoint, settings: what must survive, and what must show."""

import errno
import json
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from sgps.errors import ConfigError, NetworkError, StateError
from sgps.memory import COUNTS, ROWS
from sgps.settings import dump, load
from sgps_privacy.terms import Terms
from sgps_server import audit
from sgps_server.audit import Audit
from sgps_server.checkpoint import Checkpoint, Open, read_state
from sgps_server.config import Federation, Listen, locked
from sgps_server.door import bind
from sgps_server.kinds import CONDUCT, Sent

SETTINGS = {
    "name": "derm", "url": "https://localhost:8443", "listen": {"host": "127.0.0.1", "port": 8443}, "rounds": 2, "epsilon": 3.0,
    "delta": 1e-5, "quorum": 2,
}  # fmt: skip


def many(path: Path, start: int) -> None:
    for n in range(start, start + 20):
        Audit(path).add("tick", n=n)


def test_lines_of_several_processes_and_threads_form_one_chain(tmp_path: Path) -> None:
    path, context = tmp_path / "audit.jsonl", multiprocessing.get_context("spawn")
    workers = [context.Process(target=many, args=(path, 100 * i)) for i in range(2)]
    threads = [threading.Thread(target=many, args=(path, 1000 * i)) for i in (1, 2)]
    for worker in (*workers, *threads):
        worker.start()
    for worker in (*workers, *threads):
        worker.join()
    assert sorted(e["n"] for e in audit.read(path)) == sorted(100 * i + n for i in (0, 1, 10, 20) for n in range(20))


@pytest.mark.parametrize("change", ["edit", "drop", "swap"])
def test_a_changed_line_shows(tmp_path: Path, change: str) -> None:
    path = tmp_path / "audit.jsonl"
    for n in range(4):
        Audit(path).add("tick", n=n)
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "edit":
        lines[1] = lines[1].replace(b'"n":1', b'"n":7')
    elif change == "drop":
        del lines[1]
    else:
        lines[1], lines[2] = lines[2], lines[1]
    path.write_bytes(b"".join(lines))
    with pytest.raises(StateError, match="chain of hashes is broken"):
        audit.read(path)


def test_half_a_line_of_a_crash_is_cut_off_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    Audit(path).add("tick", n=0)
    with path.open("ab") as file:
        file.write(b'{"event":"ti')
    Audit(path).add("tick", n=1)
    assert [e["n"] for e in audit.read(path)] == [0, 1]


def test_a_line_holds_as_many_sites_as_a_plan(tmp_path: Path) -> None:
    """It is written when they have paid."""
    path, sites = tmp_path / "audit.jsonl", [f"{n:040d}" for n in range(10_000)]
    for n in range(2):
        Audit(path).add("pooled", round=n, sites=sites)
    assert [e["sites"] for e in audit.read(path)] == [sites] * 2


def test_a_record_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError) as caught:
        Audit(tmp_path / "audit.jsonl").add("tick")
    assert caught.value.filename == str(tmp_path / "audit.jsonl")


def test_no_line_is_signed_for_before_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power loss would take it back, and two signed answers would contradict each other."""
    heads, seen = audit.Heads(tmp_path / "audit.jsonl"), list[int]()
    reader, sync = threading.Thread(target=lambda: seen.append(heads.last()[1])), os.fsync

    def syncing(handle: int) -> None:
        reader.start()
        reader.join(0.5)
        assert not seen
        sync(handle)

    monkeypatch.setattr(os, "fsync", syncing)
    Audit(tmp_path / "audit.jsonl").add("tick")
    reader.join()
    assert seen == [1]


def test_a_cut_end_shows_by_the_releases_that_name_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    Audit(path).add("tick", n=0)
    head = Audit(path).add("pooled", round=1)
    audit.verify(path, {"0001": head})
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert len(audit.read(path)) == 1  # the chain itself is whole
    with pytest.raises(StateError, match="release 0001"):
        audit.verify(path, {"0001": head})


TERMS = Terms("rows", 1.5, 1.0, 1, (1.0,), ((ROWS, COUNTS),), 1)


def opened(folder: Path) -> Checkpoint:
    """A checkpoint whose first round is issued."""
    checkpoint = Checkpoint(folder)
    facts = TERMS.to_mapping()
    opened = Open(round=1, attempt=1, terms=facts, code=("b" * 64,), sites=("north", "south"))
    checkpoint.save(open=opened, terms={1: facts})
    return checkpoint


def accept(checkpoint: Checkpoint, site: str, value: float) -> None:
    arrays = {ROWS: np.full((3, 4), value, np.float32), COUNTS: np.full(3, value, np.float32)}
    sent = Sent(TERMS, arrays)
    checkpoint.accept(1, site, sent, receipt="a" * 64, statement='{"epsilon":3.0}', signature="00", key="PEM")


def test_a_checkpoint_comes_back_with_every_contribution_bit_for_bit(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path)
    accept(checkpoint, "north", 0.1)
    checkpoint.receipt("south", "c" * 64)
    again = Checkpoint(tmp_path)
    assert again.state == checkpoint.state
    assert again.state.receipts == {"north": "a" * 64, "south": "c" * 64}
    assert again.contributions[(1, "north")].arrays[ROWS].tobytes() == np.full((3, 4), 0.1, np.float32).tobytes()
    assert again.contributions[(1, "north")].terms == TERMS


def test_a_crash_between_arrays_and_checkpoint_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = opened(tmp_path)

    def die(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", die)
    with pytest.raises(KeyboardInterrupt):
        accept(checkpoint, "north", 0.1)
    again = Checkpoint(tmp_path)
    assert again.contributions == {}
    accept(again, "north", 0.2)  # the same site's bytes come again
    assert Checkpoint(tmp_path).contributions[(1, "north")].arrays[COUNTS][0] == np.float32(0.2)


def test_nothing_takes_its_name_before_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power loss would leave an empty file in the place of what patients have paid for."""
    checkpoint = opened(tmp_path)
    before = (tmp_path / "checkpoint.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        accept(checkpoint, "north", 0.1)
    assert not (tmp_path / "contributions" / "0001.north.safetensors").exists()
    with pytest.raises(OSError, match="No space"):
        checkpoint.receipt("south", "c" * 64)
    assert (tmp_path / "checkpoint.json").read_bytes() == before


def test_a_damaged_or_missing_contribution_is_an_error_not_a_smaller_memory(tmp_path: Path) -> None:
    accept(opened(tmp_path), "north", 0.1)
    file = tmp_path / "contributions" / "0001.north.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StateError, match="hash of the checkpoint"):
        Checkpoint(tmp_path)
    (tmp_path / "checkpoint.json").write_text(json.dumps({"done": -1}))
    with pytest.raises(StateError, match="done"):
        read_state(tmp_path)


def test_one_process_per_folder(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    lock = tmp_path / "state" / "lock"
    with locked(lock), pytest.raises(StateError, match="another process"), locked(lock):
        pass
    with locked(lock):
        pass


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epsilon": None}, "epsilon"), ({"delta": None}, "delta"), ({"quorum": 0}, "quorum"), ({"wait_for": 1}, "wait_for"),
        ({"answer_after": 700}, "answer_after"), ({"kind": "episodes"}, "kind"), ({"colour": "red"}, "colour"),
        ({"epsilon": "nan"}, "epsilon"), ({"url": "http://localhost:1"}, "url"),
        ({"url": "https://köln.example:1"}, "ASCII"), ({"listen": {"host": "köln", "port": 1}}, "listen.host"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, object], says: str) -> None:
    found = {k: v for k, v in {**SETTINGS, **change}.items() if v is not None}
    (tmp_path / "federation.yaml").write_text(dump(found))
    with pytest.raises(ConfigError, match=says):
        load(tmp_path / "federation.yaml", Federation)


@pytest.mark.enable_socket  # it looks for an address, and finds none
def test_a_name_that_no_machine_can_have_is_one_line() -> None:
    with pytest.raises(NetworkError, match=r"^a\.\.b:1: cannot listen"):
        bind(Listen(host="a..b", port=1))


def test_terms_of_a_rows_round_spend_exactly_the_epsilon_of_the_settings() -> None:
    from sgps_privacy import accountant
    from sgps_privacy.events import Event

    terms = CONDUCT["rows"].terms(Federation.model_validate(SETTINGS), 1.0)
    spent = accountant.epsilon([Event(terms.sigma, terms.q, terms.steps)], 1e-5)
    assert 2.98 < spent <= 3.0
    assert (terms.kind, terms.clips, terms.groups, terms.denominator) == ("rows", (1.0,), ((ROWS, COUNTS),), 1)
