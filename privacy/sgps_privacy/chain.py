"""Append-only entries, each chained to the one before by SHA-256, in SQLite.

Each body holds a random nonce, so that the hash of an entry confirms no guess about it. journal_mode=DELETE and
synchronous=EXTRA: a transaction returns after file and folder are synced. FULL would leave the folder out, and a
power loss could bring the journal back and undo an entry that was acted upon."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sgps_privacy.errors import MachineFailure, Refused

START = "0" * 64
CLOCK_SLACK = 300.0  # seconds that the clock may have been set back since the last charge
MEND = (
    "put the newest copy of the whole folder back, if no round was charged since it was made; else its cohorts are spent: "
    "docs/how-to/deploy.md, Backup"
)
_DISK = {
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_READONLY: "make it writable for this account",
    sqlite3.SQLITE_IOERR: "look after the disk",
    sqlite3.SQLITE_CANTOPEN: "make folder and disk writable for this account",
}
SCHEMA = """
create table if not exists entries (seq integer primary key, kind text not null, federation text not null,
    round integer not null, turn integer not null, body text not null, hash text not null unique) strict;
create unique index if not exists once on entries (federation, round, turn, kind)
    where kind in ('CHARGE', 'COMMIT', 'FORGIVE');
create trigger if not exists no_update before update on entries begin select raise(abort, 'append only'); end;
create trigger if not exists no_delete before delete on entries begin select raise(abort, 'append only'); end;
create trigger if not exists no_replace before insert on entries
    when new.seq is not (select coalesce(max(seq), 0) + 1 from entries) begin select raise(abort, 'append only'); end;
"""


@dataclass(frozen=True)
class Entry:
    """kind: CHARGE, COMMIT, FORGIVE, COHORT or BUDGET. turn: how often the round had been forgiven before."""

    seq: int
    kind: str
    federation: str
    round: int
    turn: int
    facts: dict[str, Any]
    hash: str


class Chain:
    """The entries in one file, made with mode 0600. Verified when opened, every page of it: raises Refused("damaged").

    A disk that is full or read-only is no damage: MachineFailure, and nothing is written."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self.db = sqlite3.connect(path, isolation_level=None)
        try:
            self.db.execute("pragma journal_mode=delete")
            self.db.execute("pragma synchronous=extra")
            self.db.executescript(SCHEMA)
            self.verify()
        except sqlite3.Error as error:
            self.db.close()
            raise self._failure(error) from None
        except BaseException:
            self.db.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and durable at its end. Alone with the file from its beginning."""
        try:
            self.db.execute("begin immediate")
            yield
            self.db.execute("commit")
        except BaseException as error:
            with suppress(sqlite3.Error):  # SQLite rolled back by itself, or the journal does it at the next start
                self.db.execute("rollback")
            if isinstance(error, sqlite3.OperationalError):
                raise self._failure(error) from None
            raise

    def _failure(self, error: sqlite3.Error) -> MachineFailure | Refused:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # of the first kind
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Refused("busy", f"{self._name} is in use by another program: end it and try again")
        if remedy := _DISK.get(code):
            return MachineFailure(f"{self._name} cannot be written ({error}): {remedy}; no entry was made")
        return Refused("damaged", f"{self._name}: {error}: {MEND}")

    def append(self, kind: str, facts: dict[str, Any], federation: str = "", round: int = 0, turn: int = 0) -> str:
        """Hash of the new entry. To be called inside a transaction."""
        last = self.db.execute("select seq, hash from entries order by seq desc limit 1").fetchone() or (0, START)
        written = {"written": datetime.now(UTC).isoformat(timespec="seconds"), "nonce": secrets.token_hex(16)}
        body = json.dumps({**facts, **written}, sort_keys=True, allow_nan=False)
        row = [last[0] + 1, kind, federation, round, turn, body]
        hashed = _link(last[1], row)
        self.db.execute("insert into entries values (?,?,?,?,?,?,?)", (*row, hashed))
        return hashed

    def entries(self, *kinds: str, federation: str | None = None, round: int | None = None) -> list[Entry]:
        """Entries of these kinds (all if none is named), of one federation and round if named, oldest first."""
        query = (
            "select * from entries where (?1 = '[]' or kind in (select value from json_each(?1)))"
            " and (?2 is null or federation = ?2) and (?3 is null or round = ?3) order by seq"
        )
        rows = self.db.execute(query, (json.dumps(kinds), federation, round))
        return [
            Entry(seq, kind, federation_, round_, turn, json.loads(body), hashed)
            for seq, kind, federation_, round_, turn, body, hashed in rows
        ]

    def verify(self) -> int:
        """Number of entries. Raises Refused("damaged") when one link does not hold."""
        (found,) = self.db.execute("pragma integrity_check(1)").fetchone()
        if found != "ok":
            raise Refused("damaged", f"{self._name}: {' '.join(found.split())}: {MEND}")
        previous, count = START, 0
        for *row, hashed in self.db.execute("select * from entries order by seq"):
            count += 1
            if row[0] != count or _link(previous, row) != hashed:
                raise Refused("damaged", f"{self._name}: entry {count} does not follow from the one before: {MEND}")
            previous = hashed
        return count

    def check_clock(self) -> None:
        """Raises Refused("plan_time") when this machine's clock is behind the newest charge or commit: what time the plan
        was made for cannot be told."""
        for entry in self.entries("CHARGE", "COMMIT")[-1:]:
            behind = (datetime.fromisoformat(entry.facts["written"]) - datetime.now(UTC)).total_seconds()
            if behind > CLOCK_SLACK:
                raise Refused(
                    "plan_time", f"this machine's clock is {behind:.0f} s behind the ledger's last charge: set it"
                )


def _link(previous: str, row: list[Any]) -> str:
    return hashlib.sha256(json.dumps([previous, *row]).encode()).hexdigest()
