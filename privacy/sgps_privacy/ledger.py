"""The site's record of privacy spent: written before anything is noised, kept through crashes, checked against roll-back.

One round, each arrow durable before the next begins:
    CHARGE(mechanism facts, plan hash, cohort) -> train -> outbox file -> COMMIT(payload hash) -> send
* A CHARGE without an outbox file is spent and lost: the round is not trained again, because "once" must mean once, until
  the site's officer writes a FORGIVE entry for a round of which nothing ever left.
* The same plan again gives the same bytes and costs nothing. Another plan for the same (federation, round) is refused.
* Entries are chained by SHA-256 and hold a random nonce, so a hash confirms no guess. The hash of a COMMIT is the receipt;
  the coordinator echoes the last one; an echo that the chain does not hold means that the file is an old copy.

SQLite with journal_mode=DELETE and synchronous=EXTRA: a transaction returns after file and folder are synced. FULL would leave
the folder out, and a power loss could bring the journal back and undo a CHARGE. One process per folder.
"""
from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from sgps_privacy import accountant
from sgps_privacy.cohort import Cohort, fingerprint, site_secret
from sgps_privacy.durable import remove_torn
from sgps_privacy.errors import PrivacyError, Refused
from sgps_privacy.events import Event
from sgps_privacy.outbox import Outbox
from sgps_privacy.terms import Terms

START = "0" * 64
SCHEMA = """
create table if not exists entries (seq integer primary key, kind text not null, federation text not null,
    round integer not null, turn integer not null, body text not null, hash text not null unique) strict;
create unique index if not exists once on entries (federation, round, turn, kind) where kind in ('CHARGE', 'COMMIT', 'FORGIVE');
create trigger if not exists no_update before update on entries begin select raise(abort, 'append only'); end;
create trigger if not exists no_delete before delete on entries begin select raise(abort, 'append only'); end;
create trigger if not exists no_replace before insert on entries
    when new.seq is not (select coalesce(max(seq), 0) + 1 from entries) begin select raise(abort, 'append only'); end;
"""


@dataclass(frozen=True)
class Order:
    """What the ledger needs of a verified plan.

    federation: fingerprint of the coordinator's key, never a name that it may choose anew. plan_hash: over everything that
    shapes the payload, but not attempt, deadline or participants. kind, event, clip: from the plan's terms. cohort: whose
    budget pays. echo: the receipt that the coordinator saw last from this site; None before the first.
    """

    federation: str
    round: int
    plan_hash: str
    kind: str
    event: Event
    clip: float
    cohort: str
    echo: str | None = None

    @classmethod
    def of(cls, terms: Terms, *, federation: str, round: int, plan_hash: str, cohort: str, echo: str | None = None) -> Order:
        """The order for a plan's terms, already checked against the site's limits."""
        return cls(federation, round, plan_hash, terms.kind, Event(terms.sigma, terms.q, terms.steps), terms.clip, cohort, echo)


@dataclass(frozen=True)
class Budget:
    """Cap for one cohort: (epsilon, delta) under zero-out."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < math.inf and 0 < self.delta < 1):
            raise PrivacyError(f"budget epsilon {self.epsilon!r}, delta {self.delta!r}: need epsilon > 0 and 0 < delta < 1")


@dataclass(frozen=True)
class _Entry:
    facts: dict[str, Any]
    hash: str


class Ledger:
    """Opens a folder (made with mode 0700) and verifies the chain. Raises Refused("busy") and Refused("damaged")."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise Refused("busy", "another process uses the ledger") from None
        try:
            remove_torn(folder)
            self.outbox = Outbox(folder / "outbox")
            self._open(folder / "ledger.sqlite")
            self._secret = self._site_secret(folder / "site.secret")
        except BaseException:
            os.close(self._lock)
            raise
        self._site_budgets: dict[str, Budget] = {}

    def _open(self, path: Path) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        try:
            self.db = sqlite3.connect(path, isolation_level=None)
            self.db.execute("pragma journal_mode=delete")
            self.db.execute("pragma synchronous=extra")
            self.db.executescript(SCHEMA)
            self.verify()
        except sqlite3.DatabaseError as error:
            raise Refused("damaged", f"{path.name}: {error}") from None

    def _site_secret(self, path: Path) -> bytes:
        known = [entry.facts["secret"] for entry in self._entries("COHORT")]
        if known and not path.exists():
            raise Refused("damaged", f"{path.name} is missing: without it a patient of an earlier cohort cannot be recognised")
        secret = site_secret(path)
        if any(name != fingerprint(secret) for name in known):
            raise Refused("damaged", f"{path.name} is not the secret that the cohorts were closed with")
        return secret

    def close(self) -> None:
        """Releases the folder."""
        self.db.close()
        os.close(self._lock)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- cohorts and budgets -----------------------------------------------------------------------------------------
    def open_cohort(self, name: str, patient_ids: Iterable[str], epsilon: float, delta: float) -> Cohort:
        """Closes a new cohort durably, or opens it again with the same patients. The budget is that of the site's file.

        A lower budget than the written one holds at once; a higher one needs `raise_budget`. Raises PrivacyError for another
        list under the same name and for patients of an earlier cohort.
        """
        budget, ids = Budget(epsilon, delta), list(patient_ids)
        with self._transaction():
            known = {cohort.name: cohort for cohort in self._cohorts()}
            cohort = known.get(name)
            if cohort is None:
                cohort = Cohort.close(name, ids, self._secret, [*known.values()])
                self._append("COHORT", "", 0, 0, {"cohort": name, "members": sorted(cohort.members), "epsilon": budget.epsilon,
                                                  "delta": budget.delta, "secret": fingerprint(self._secret)})
            elif not cohort.holds(ids, self._secret):
                raise PrivacyError(f"cohort {name!r} is closed with other patients: put new patients into a new cohort")
        self._site_budgets[name] = budget
        return cohort

    def raise_budget(self, cohort: str, epsilon: float, officer: str) -> None:
        """Writes a higher epsilon for `cohort`, in the officer's name. Raises PrivacyError when it is not higher."""
        with self._transaction():
            if not self._written(cohort).epsilon < epsilon < math.inf or not officer.strip():
                raise PrivacyError(f"cohort {cohort!r}: needs an epsilon above {self._written(cohort).epsilon:g} and the officer's name")
            self._append("BUDGET", "", 0, 0, {"cohort": cohort, "epsilon": float(epsilon), "officer": officer})

    def budget(self, cohort: str) -> Budget:
        """What `cohort` may spend in all: the lower of the written budget and that of the site's file."""
        written = self._written(cohort)
        site = self._site_budgets.get(cohort, written)
        return Budget(min(written.epsilon, site.epsilon), min(written.delta, site.delta))

    def cohorts(self) -> list[str]:
        """Names of all cohorts, oldest first."""
        return [cohort.name for cohort in self._cohorts()]

    def spent(self, cohort: str, federation: str | None = None) -> list[Event]:
        """All charges of `cohort` that were not forgiven, whatever became of them; of one federation if it is named."""
        return [Event(c.facts["sigma"], c.facts["q"], c.facts["steps"]) for c in self._charges(federation) if c.facts["cohort"] == cohort]

    def next_cohort(self, federation: str, kind: str, round: int | None = None) -> str | None:
        """Whose turn it is: the cohort that `round` has charged already, else the oldest one opened since start that paid for
        no round of this kind in this federation and has budget left. None when there is none."""
        if round is not None and (charge := self._find(federation, round, "CHARGE")):
            return str(charge.facts["cohort"])
        paid = {c.facts["cohort"] for c in self._charges(federation) if c.facts["plan_kind"] == kind}
        for name in self.cohorts():
            if name in self._site_budgets and name not in paid:
                budget = self.budget(name)
                if accountant.epsilon(self.spent(name), budget.delta) < budget.epsilon:
                    return name
        return None

    def _cohorts(self) -> list[Cohort]:
        return [Cohort(e.facts["cohort"], frozenset(e.facts["members"])) for e in self._entries("COHORT")]

    def _written(self, cohort: str) -> Budget:
        closed = [e.facts for e in self._entries("COHORT") if e.facts["cohort"] == cohort]
        if not closed:
            raise PrivacyError(f"cohort {cohort!r} is not in the ledger: open it first")
        raised = [e.facts["epsilon"] for e in self._entries("BUDGET") if e.facts["cohort"] == cohort]
        return Budget([closed[0]["epsilon"], *raised][-1], closed[0]["delta"])

    # --- the round ---------------------------------------------------------------------------------------------------
    def preview(self, order: Order) -> Literal["new", "resend"]:
        """What `answer` would do, without writing. Raises Refused: rolled_back, round_taken, round_lost, damaged, budget."""
        self.check_echo(order)
        if strays := self.outbox.charges() - {charge.hash for charge in self._charges()}:
            raise Refused("rolled_back", f"{len(strays)} files of the outbox have no charge: the ledger is an older copy")
        charge = self._find(order.federation, order.round, "CHARGE")
        if charge is None:
            self._check_budget(order)
            return "new"
        if charge.facts["plan_hash"] != order.plan_hash:
            raise Refused("round_taken", f"round {order.round} was charged for another plan")
        if self.outbox.read(charge.hash) is None:
            if self._find(order.federation, order.round, "COMMIT"):
                raise Refused("damaged", f"the outbox file of round {order.round} is gone")
            raise Refused("round_lost", f"round {order.round} was charged and then interrupted")
        return "resend"

    def answer(self, order: Order, train: Callable[[], bytes]) -> tuple[bytes, str]:
        """(payload, receipt). `train` runs at most once in the life of the ledger, after the charge is durable.

        Raises Refused before `train` is called. What `train` raises goes through, and the round is then lost.
        """
        if self.preview(order) == "new":
            self.write_outbox(self.charge(order), train())
        charge = self._find(order.federation, order.round, "CHARGE")
        payload = None if charge is None else self.outbox.read(charge.hash)
        if charge is None or payload is None:
            raise Refused("round_lost", f"round {order.round} was charged and then interrupted")
        return payload, self.commit(order, charge.hash, payload)

    def charge(self, order: Order) -> str:
        """Hash of the new CHARGE entry; projection and insert are one transaction. Raises Refused("budget")."""
        with self._transaction():
            self._check_budget(order)
            turn = self._turn(order.federation, order.round)
            return self._append("CHARGE", order.federation, order.round, turn, {
                "plan_hash": order.plan_hash, "plan_kind": order.kind, "sigma": order.event.sigma, "q": order.event.q,
                "steps": order.event.steps, "clip": order.clip, "cohort": order.cohort})

    def write_outbox(self, charge: str, payload: bytes) -> None:
        """Keeps the payload of a charge, durably."""
        self.outbox.write(charge, payload)

    def commit(self, order: Order, charge: str, payload: bytes) -> str:
        """Receipt: hash of the COMMIT entry, which is written if it is not there yet. Raises Refused("damaged")."""
        digest, done = hashlib.sha256(payload).hexdigest(), self._find(order.federation, order.round, "COMMIT")
        if done is None:
            with self._transaction():
                turn = self._turn(order.federation, order.round)
                return self._append("COMMIT", order.federation, order.round, turn, {"charge": charge, "payload": digest})
        if done.facts["payload"] != digest:
            raise Refused("damaged", f"the outbox file of round {order.round} is not the one that was sent")
        return done.hash

    def check_echo(self, order: Order) -> None:
        """The coordinator's last receipt must be in the chain. None is accepted: it may never have received one."""
        if order.echo is not None:
            query = "select 1 from entries where hash=? and federation=? and kind='COMMIT'"
            if self.db.execute(query, (order.echo, order.federation)).fetchone() is None:
                raise Refused("rolled_back", "the coordinator holds a receipt that this ledger does not: it is an older copy")

    def forgive(self, federation: str, round: int, echo_shows_no_receipt: bool, officer: str) -> None:
        """Takes a lost round's charge back, in the officer's name: nothing of it ever left, so a fresh run is the only output.

        Raises PrivacyError unless the round is charged, has no outbox file and no COMMIT, and the coordinator's signed echo
        shows no receipt for it.
        """
        with self._transaction():
            charge = self._find(federation, round, "CHARGE")
            if charge is None:
                raise PrivacyError(f"round {round} has no charge to forgive")
            if self._find(federation, round, "COMMIT") or self.outbox.path(charge.hash).exists():
                raise PrivacyError(f"round {round} has a reply in the outbox: send it again instead")
            if echo_shows_no_receipt is not True or not officer.strip():
                raise PrivacyError(f"round {round}: needs an echo without a receipt for it and the officer's name")
            self._append("FORGIVE", federation, round, self._turn(federation, round), {"charge": charge.hash, "officer": officer})

    def _check_budget(self, order: Order) -> None:
        budget = self.budget(order.cohort)
        if not accountant.epsilon([*self.spent(order.cohort), order.event], budget.delta) <= budget.epsilon:
            raise Refused("budget", f"round {order.round} would pass epsilon {budget.epsilon:g} of cohort {order.cohort!r}")

    # --- entries -----------------------------------------------------------------------------------------------------
    def verify(self) -> int:
        """Number of entries. Raises Refused("damaged") when one link does not hold."""
        previous, count = START, 0
        for *row, hashed in self.db.execute("select seq, kind, federation, round, turn, body, hash from entries order by seq"):
            count += 1
            if row[0] != count or _link(previous, row) != hashed:
                raise Refused("damaged", f"entry {count} of the ledger does not follow from the one before")
            previous = hashed
        return count

    def history(self) -> list[dict[str, Any]]:
        """All entries, oldest first, for the site's own eyes. Keyed patient hashes are replaced by their number."""
        entries = []
        query = "select seq, kind, federation, round, body, hash from entries order by seq"
        for seq, kind, federation, round_, body, hashed in self.db.execute(query):
            facts = {key: value for key, value in json.loads(body).items() if key not in ("nonce", "secret")}
            if "members" in facts:
                facts["patients"] = len(facts.pop("members"))
            entries.append({"seq": seq, "kind": kind, "federation": federation, "round": round_, **facts, "hash": hashed})
        return entries

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.db.execute("begin immediate")
        try:
            yield
            self.db.execute("commit")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("rollback")
            raise

    def _turn(self, federation: str, round: int) -> int:
        """How often a charge of this round was forgiven: entries of earlier turns are history."""
        query = "select count(*) from entries where federation=? and round=? and kind='FORGIVE'"
        return int(self.db.execute(query, (federation, round)).fetchone()[0])

    def _find(self, federation: str, round: int, kind: str) -> _Entry | None:
        query = "select body, hash from entries where federation=? and round=? and turn=? and kind=?"
        row = self.db.execute(query, (federation, round, self._turn(federation, round), kind)).fetchone()
        return None if row is None else _Entry(json.loads(row[0]), row[1])

    def _entries(self, kind: str) -> list[_Entry]:
        rows = self.db.execute("select body, hash from entries where kind=? order by seq", (kind,))
        return [_Entry(json.loads(body), hashed) for body, hashed in rows]

    def _charges(self, federation: str | None = None) -> list[_Entry]:
        query = ("select body, hash from entries c where kind='CHARGE' and (?1 is null or federation=?1) and not exists "
                 "(select 1 from entries f where f.kind='FORGIVE' and f.federation=c.federation and f.round=c.round and f.turn=c.turn)"
                 " order by seq")
        return [_Entry(json.loads(body), hashed) for body, hashed in self.db.execute(query, (federation,))]

    def _append(self, kind: str, federation: str, round: int, turn: int, facts: dict[str, Any]) -> str:
        last = self.db.execute("select seq, hash from entries order by seq desc limit 1").fetchone() or (0, START)
        body = json.dumps({**facts, "nonce": secrets.token_hex(16)}, sort_keys=True, allow_nan=False)
        row = [last[0] + 1, kind, federation, round, turn, body]
        hashed = _link(last[1], row)
        self.db.execute("insert into entries values (?,?,?,?,?,?,?)", (*row, hashed))
        return hashed


def _link(previous: str, row: list[Any]) -> str:
    return hashlib.sha256(json.dumps([previous, *row]).encode()).hexdigest()
