"""What can happen to a ledger's file, disk and clock: it is refused with a line that says what to do, or nothing was lost."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import sgps_privacy
from sgps_privacy import chain
from sgps_privacy.errors import MachineFailure, PrivacyError, Refused
from sgps_privacy.events import Event
from sgps_privacy.ledger import Ledger, Order

DELTA, ROUNDS, PAGE = 1e-5, 12, 4096
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(sgps_privacy.__path__[0]).parent), "OMP_NUM_THREADS": "1"}


def order(number: int = 1, echo: str | None = None) -> Order:
    return Order("f", number, f"plan {number}", "rows", Event(50.0, 1.0, 1), 1.0, "a", echo)


def refusal(attempt: Callable[[], object]) -> tuple[str, str]:
    """Code and line. A line names what, and what to do."""
    with pytest.raises((Refused, PrivacyError)) as caught:
        attempt()
    line = getattr(caught.value, "detail", "") or str(caught.value)
    assert "\n" not in line and ": " in line
    return getattr(caught.value, "code", "failure"), line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger of twelve rounds, closed."""
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", [str(i) for i in range(30)], 8.0, DELTA)
        for number in range(1, ROUNDS + 1):
            ledger.answer(order(number), lambda n=number: b"noised %d" % n)  # type: ignore[misc]
    return tmp_path / "ledger"


def hashes(folder: Path) -> list[str]:
    with Ledger(folder) as ledger:
        return [e["hash"] for e in ledger.history()]


# --- the file ----------------------------------------------------------------------------------------------------------


def torn(whole: bytes, older: bytes) -> Iterator[tuple[str, bytes]]:
    """Every half page as zeros, as noise, and as it was two rounds before; and every length of the file."""
    for start in range(0, len(whole), PAGE // 2):
        end = start + PAGE // 2
        for kind, part in (("zeros", bytes(PAGE // 2)), ("ones", b"\xff" * (PAGE // 2)), ("older", older[start:end])):
            if len(part) == PAGE // 2 and part != whole[start:end]:
                yield f"{kind} at {start}", whole[:start] + part + whole[end:]
        yield f"cut at {start}", whole[:start]


def test_a_torn_page_is_damage_or_changes_nothing(tmp_path: Path) -> None:
    """Never a ledger with other entries: the ones that open hold every entry, or an older chain that the outbox betrays."""
    place = tmp_path / "ledger"
    with Ledger(place) as ledger:
        ledger.open_cohort("a", [str(i) for i in range(30)], 8.0, DELTA)
        for number in range(1, ROUNDS - 1):
            ledger.answer(order(number), lambda: b"x")
    older = (place / "ledger.sqlite").read_bytes()
    with Ledger(place) as ledger:
        for number in (ROUNDS - 1, ROUNDS):
            ledger.answer(order(number), lambda: b"x")
    whole, genuine, damaged = (place / "ledger.sqlite").read_bytes(), hashes(place), 0
    assert len(whole) >= 4 * PAGE
    for name, data in torn(whole, older):
        (place / "ledger.sqlite").write_bytes(data)
        try:
            with Ledger(place) as ledger:
                found = [e["hash"] for e in ledger.history()]
                if found != genuine:
                    assert found == genuine[: len(found)], name
                    assert refusal(lambda: ledger.preview(order(99)))[0] == "rolled_back", name
        except Refused as refused:
            assert refused.code == "damaged" and "put the newest copy" in refused.detail, name
            damaged += 1
    assert damaged > 20
    (place / "ledger.sqlite").write_bytes(whole)
    assert hashes(place) == genuine


@pytest.mark.parametrize("how", ["empty", "deleted"])
def test_a_ledger_that_is_gone_is_not_begun_anew(tmp_path: Path, how: str) -> None:
    """Also where no reply has left yet: its cohort would get a second budget."""
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["1"], 8.0, DELTA)
        ledger.charge(order())
    path = tmp_path / "ledger" / "ledger.sqlite"
    path.write_bytes(b"") if how == "empty" else path.unlink()
    for _ in range(2):
        code, line = refusal(lambda: Ledger(tmp_path / "ledger"))
        assert code == "damaged" and "ledger.sqlite is gone" in line
    assert not path.exists() or not path.stat().st_size


def rewritten(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Somebody who knows the format edits the first CHARGE and links every entry after it anew."""
    raw = sqlite3.connect(path)
    raw.executescript("drop trigger no_update; drop trigger no_delete; drop trigger no_replace;")
    rows = raw.execute("select * from entries order by seq").fetchall()
    raw.execute("delete from entries")
    previous, edited = chain.START, False
    for *row, _ in rows:
        if row[1] == "CHARGE" and not edited:
            body = json.loads(row[5])
            change(body)
            row[5], edited = json.dumps(body, sort_keys=True), True
        previous = chain._link(previous, row)
        raw.execute("insert into entries values (?,?,?,?,?,?,?)", (*row, previous))
    raw.commit()
    raw.close()


def test_a_row_edited_with_its_whole_chain_is_betrayed_by_outbox_and_echo(folder: Path) -> None:
    receipt = hashes(folder)[-1]
    rewritten(folder / "ledger.sqlite", lambda body: body.update(sigma=1e6))
    with Ledger(folder) as ledger:  # the links hold
        code, line = refusal(lambda: ledger.preview(order(13)))
        assert code == "rolled_back" and "put the newest one back" in line
    for file in (folder / "outbox").glob("*.out"):
        file.unlink()
    with Ledger(folder) as ledger:
        assert refusal(lambda: ledger.preview(order(13, echo=receipt)))[0] == "rolled_back"


@pytest.mark.parametrize("kept", ["ledger.sqlite", "outbox", "everything"])
def test_a_restored_backup_is_refused_for_every_round(folder: Path, tmp_path: Path, kept: str) -> None:
    """One round after the copy: the ledger alone put back, the outbox alone, or the whole folder."""
    shutil.copytree(folder, tmp_path / "backup")
    with Ledger(folder) as ledger:
        ledger.open_cohort("a", [str(i) for i in range(30)], 8.0, DELTA)
        _, receipt = ledger.answer(order(13), lambda: b"one more")
    if kept == "everything":
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "backup", folder)
    elif kept == "outbox":
        shutil.rmtree(folder / "outbox")
        shutil.copytree(tmp_path / "backup" / "outbox", folder / "outbox")
    else:
        shutil.copy(tmp_path / "backup" / kept, folder / kept)
    with Ledger(folder) as ledger:
        # the outbox alone loses bytes and no charge: only its own round is refused
        want, rounds = ("damaged", (13,)) if kept == "outbox" else ("rolled_back", (1, 13, 14))
        for number in rounds:
            code, _ = refusal(lambda n=number: ledger.answer(order(n, receipt), lambda: pytest.fail("trained")))  # type: ignore[misc]
            assert code == want


# --- two at once -------------------------------------------------------------------------------------------------------

RACE = """
import os, sys, time
from pathlib import Path
from sgps_privacy.errors import Refused
from sgps_privacy.events import Event
from sgps_privacy.ledger import Ledger, Order
folder, diary = Path(sys.argv[1]), os.open(sys.argv[2], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
busy = 0
for number in range(1, 6):
    while True:
        try:
            with Ledger(folder) as ledger:
                ledger.open_cohort("a", ["1"], 8.0, 1e-5)
                def train():
                    os.write(diary, b"train %d\\n" % number)
                    return os.urandom(100)
                payload, receipt = ledger.answer(Order("f", number, "p", "rows", Event(50.0, 1.0, 1), 1.0, "a"), train)
                os.write(diary, f"sent {number} {payload.hex()} {receipt}\\n".encode())
            break
        except Refused as refused:
            if refused.code != "busy":
                raise
            busy += 1
            time.sleep(0.001)
"""


def test_clients_that_race_for_one_ledger_train_each_round_once_and_send_one_payload(tmp_path: Path) -> None:
    book = tmp_path / "diary"
    command = [sys.executable, "-c", RACE, str(tmp_path / "ledger"), str(book)]
    racers = [subprocess.Popen(command, env=ENVIRONMENT) for _ in range(3)]
    assert [racer.wait(120) for racer in racers] == [0, 0, 0]
    lines = book.read_text().splitlines()
    assert sorted(line for line in lines if line.startswith("train")) == [f"train {n}" for n in range(1, 6)]
    assert len([line for line in lines if line.startswith("sent")]) == 15
    assert len({line for line in lines if line.startswith("sent")}) == 5


def test_a_file_that_another_program_holds_is_busy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    other.execute("begin immediate")
    with Ledger(folder) as ledger:
        ledger.chain.db.execute("pragma busy_timeout = 50")
        code, line = refusal(lambda: ledger.charge(order(13)))
    assert code == "busy" and "end it" in line
    other.execute("rollback")
    other.close()
    assert len(hashes(folder)) == 2 * ROUNDS + 1


# --- the clock ---------------------------------------------------------------------------------------------------------


def clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    class Moved(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.now(UTC) + timedelta(seconds=seconds)

    monkeypatch.setattr(chain, "datetime", Moved)


def test_a_clock_set_back_behind_the_last_charge_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(folder) as ledger:
        clock(monkeypatch, -3600)
        for attempt in (
            lambda: ledger.preview(order(13)),
            lambda: ledger.answer(order(13), lambda: pytest.fail("trained")),
        ):
            code, line = refusal(attempt)
            assert code == "plan_time" and "3600 s behind" in line.replace("3599", "3600") and "set it" in line
        clock(monkeypatch, -200)  # an ordinary correction
        assert ledger.preview(order(13)) == "new"
        clock(monkeypatch, 3600)
        assert ledger.preview(order(13)) == "new"


# --- the disk ----------------------------------------------------------------------------------------------------------

SMALL = """
import contextlib, json, os, subprocess, sys
from pathlib import Path
from sgps_privacy import durable
from sgps_privacy.errors import MachineFailure, Refused
from sgps_privacy.events import Event
from sgps_privacy.ledger import Ledger, Order
disk = Path(sys.argv[1])
folder, ballast = disk / "ledger", disk / "ballast"

def order(number):
    return Order("f", number, "p", "rows", Event(80.0, 1.0, 1), 1.0, "a")

def opened():
    ledger = Ledger(folder)
    ledger.open_cohort("a", ["1"], 8.0, 1e-5)
    return ledger

def fill(free):
    ballast.unlink(missing_ok=True)
    disk_now = os.statvfs(disk)
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        for _ in range(disk_now.f_bavail - free):
            file.write(bytes(disk_now.f_frsize))

def answered(ledger, number):
    trained = []
    def train():
        trained.append(1)
        return bytes([number]) * 60_000
    try:
        payload, _ = ledger.answer(order(number), train)
        word, line = "sent", ""
    except Refused as refused:
        word, line = refused.code, refused.detail
    except MachineFailure as error:
        word, line = "failure", str(error)
    kinds = [e["kind"] for e in ledger.history() if e["round"] == number]
    return {"word": word, "line": line, "trained": len(trained), "kinds": kinds, "torn": len(list(folder.rglob("*.tmp")))}
"""
FULL = """
found = {"room": [], "filled": []}
with opened() as ledger:
    found["room"].append(answered(ledger, 1))
    fill(1000)  # four MiB
    found["room"].append(answered(ledger, 2))
    ballast.unlink()
    found["room"].append(answered(ledger, 2))
durable.ROOM = 0  # as if another program took the rest of the disk just now
for free in range(0, 32, 2):
    number = 10 + free
    with opened() as ledger:
        fill(free)
        found["filled"].append(answered(ledger, number))
    ballast.unlink()
    with opened() as ledger:
        found["filled"][-1]["later"] = answered(ledger, number)
print(json.dumps(found))
"""
READ_ONLY = """
found = {}
with opened() as ledger:
    answered(ledger, 1)
subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
for name, attempt in (("old", lambda: Ledger(folder)), ("new", lambda: Ledger(disk / "other"))):
    try:
        attempt()
    except MachineFailure as error:
        found[name] = str(error)
subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
with opened() as ledger:
    found["later"] = [answered(ledger, 1), answered(ledger, 2)]
print(json.dumps(found))
"""


def on_a_small_disk(tmp_path: Path, program: str) -> dict[str, list[dict[str, object]]]:
    """Runs it with a disk of 32 MiB of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare for a disk of its own")
    (tmp_path / "disk").mkdir()
    shell = f'mount -t tmpfs -o size=32m tmpfs {tmp_path}/disk || exit 77; exec {sys.executable} -c "$PROGRAM" {tmp_path}/disk'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell],
        env={**ENVIRONMENT, "PROGRAM": SMALL + program}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this machine does not let a test have a disk of its own")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_a_full_disk_charges_nothing_that_it_cannot_keep(tmp_path: Path) -> None:
    found = on_a_small_disk(tmp_path, FULL)
    first, full, freed = found["room"]
    assert first["word"] == freed["word"] == "sent"
    assert full["word"] == "failure" and full["kinds"] == [] and not full["trained"]
    assert "16 MiB" in str(full["line"]) and "free some space" in str(full["line"])
    ends = set()
    for one in found["filled"]:
        later = one["later"]
        assert isinstance(later, dict)
        assert not one["torn"]
        charged = "no COMMIT" if "no entry was made" in str(one["line"]) else "no outbox"
        end = "sent" if one["word"] == "sent" else charged if one["kinds"] else "uncharged"
        ends.add(end)
        assert bool(one["trained"]) == (end != "uncharged")  # never more trained than charged
        assert later["trained"] == (end == "uncharged")
        if end == "uncharged":
            assert "free some space; no entry was made" in str(one["line"])
            assert later["word"] == "sent"
        elif end == "no outbox":
            assert "the officer forgives it" in str(one["line"])
            assert later["word"] == "round_lost"
        else:
            assert later["word"] == "sent"
    assert {"uncharged", "no outbox", "sent"} <= ends


def test_a_disk_that_fails_is_trouble_that_passes_and_keeps_its_line(tmp_path: Path) -> None:
    """Who waits for a disk catches OSError; the line is all that there is to say."""
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError) as caught:
        Ledger(tmp_path / "file" / "ledger")
    assert isinstance(caught.value, PrivacyError) and caught.value.strerror is None
    assert str(caught.value).endswith("make folder and disk writable for this account")


def test_whatever_step_of_opening_fails_is_one_line_and_the_next_try_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    def opens(folder: Path) -> None:
        with Ledger(folder) as ledger:
            ledger.open_cohort("a", ["1"], 8.0, DELTA)

    for step in itertools.count(1):
        folder, left = tmp_path / str(step), step
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                opens(folder)
                break
            except MachineFailure as error:
                assert str(error) == f"{folder} cannot be written (No space left on device): free some space"
        opens(folder)
    assert step > 4


def test_a_disk_that_turns_read_only_after_a_charge_leaves_the_line_about_the_round(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with Ledger(folder) as ledger:
        charge = ledger.charge(order(13))
        monkeypatch.setattr(os, "fsync", fails)
        monkeypatch.setattr(Path, "unlink", fails)
        with pytest.raises(MachineFailure, match="the round is lost until the officer forgives it"):
            ledger.write_outbox(charge, b"noised")


def test_a_read_only_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    found = on_a_small_disk(tmp_path, READ_ONLY)
    for name in ("old", "new"):
        assert "cannot be written (Read-only file system): make folder and disk writable" in str(found[name])
    first, second = found["later"]
    assert (first["word"], first["trained"]) == ("sent", 0)
    assert (second["word"], second["trained"]) == ("sent", 1)
