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
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sgps_privacy.errors import Refused

START = "0" * 64
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
    """The entries in one file, made with mode 0600. Verified when opened; raises Refused("damaged")."""

    def __init__(self, path: Path) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self.db = sqlite3.connect(path, isolation_level=None)
        try:
            self.db.execute("pragma journal_mode=delete")
            self.db.execute("pragma synchronous=extra")
            self.db.executescript(SCHEMA)
            self.verify()
        except (sqlite3.DatabaseError, Refused) as error:
            self.db.close()
            raise Refused("damaged", f"{path.name}: {getattr(error, 'detail', error)}") from None

    def close(self) -> None:
        """Closes the file."""
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and durable at its end. Alone with the file from its beginning."""
        self.db.execute("begin immediate")
        try:
            yield
            self.db.execute("commit")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("rollback")
            raise

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
        previous, count = START, 0
        for *row, hashed in self.db.execute("select * from entries order by seq"):
            count += 1
            if row[0] != count or _link(previous, row) != hashed:
                raise Refused("damaged", f"entry {count} does not follow from the one before")
            previous = hashed
        return count


def _link(previous: str, row: list[Any]) -> str:
    return hashlib.sha256(json.dumps([previous, *row]).encode()).hexdigest()
