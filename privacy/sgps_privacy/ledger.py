"""The site's record of privacy spent: written before anything is noised, kept through crashes, checked against
roll-back.

One round, each arrow durable before the next begins:
    CHARGE(mechanism facts, plan hash, cohort) -> train -> outbox file -> COMMIT(payload hash) -> send
* A CHARGE without an outbox file is spent and lost: the round is not trained again, because "once" must mean once,
  until the site's officer writes a FORGIVE entry for a round of which nothing ever left.
* The same plan again gives the same bytes and costs nothing. Another plan for the same (federation, round) is refused.
* The hash of a COMMIT is the receipt; the coordinator echoes the last one; an echo that the chain does not hold means
  that the file is an old copy.
One process per folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from sgps_privacy import accountant
from sgps_privacy.chain import MEND, Chain, Entry
from sgps_privacy.cohort import Cohort, fingerprint, rehearsed, site_secret
from sgps_privacy.durable import check_room, make_folder, remove_torn, unwritable
from sgps_privacy.errors import MachineFailure, PrivacyError, Refused
from sgps_privacy.events import Event
from sgps_privacy.outbox import Outbox
from sgps_privacy.terms import Terms


@dataclass(frozen=True)
class Order:
    """What the ledger needs of a verified plan.

    federation: fingerprint of the coordinator's key, never a name that it may choose anew. plan_hash: over everything
    that shapes the payload, but not attempt, deadline or participants. kind, event, clip: from the plan's terms. numbers:
    in one noised sum.
    cohort: whose budget pays. echo: the receipt that the coordinator saw last from this site; None before the first.
    """

    federation: str
    round: int
    plan_hash: str
    kind: str
    event: Event
    clip: float
    cohort: str
    echo: str | None = None
    numbers: int = 0

    @classmethod
    def of(
        cls, terms: Terms, *, federation: str, round: int, plan_hash: str, cohort: str, echo: str | None = None,
        numbers: int = 0,
    ) -> Order:  # fmt: skip
        """The order for a plan's terms, already checked against the site's limits."""
        event = Event(terms.sigma, terms.q, terms.steps)
        return cls(federation, round, plan_hash, terms.kind, event, terms.clip, cohort, echo, numbers)


@dataclass(frozen=True)
class Budget:
    """Cap for one cohort: (epsilon, delta) under zero-out."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < math.inf and 0 < self.delta < 1):
            raise PrivacyError(
                f"budget epsilon {self.epsilon!r}, delta {self.delta!r}: need epsilon > 0 and 0 < delta < 1"
            )


class Ledger:
    """Opens a folder (made with mode 0700) and verifies the chain. Raises Refused("busy"), Refused("damaged"), and
    MachineFailure when the folder cannot be written."""

    def __init__(self, folder: Path) -> None:
        try:
            make_folder(folder)
            self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise unwritable(folder, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise Refused("busy", "another process uses the ledger: wait for it, or end it") from None
        try:
            remove_torn(folder)
            self.outbox = Outbox(folder / "outbox")
            path, secret = folder / "ledger.sqlite", folder / "site.secret"
            if secret.exists() and not (path.exists() and path.stat().st_size):  # the secret is the younger of the two
                raise Refused("damaged", f"{path.name} is gone, although {secret.name} is here: {MEND}")
            self.chain = Chain(path)
            try:
                self._secret = self._site_secret(secret)
            except BaseException:
                self.chain.close()
                raise
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, OSError) and not isinstance(error, MachineFailure):
                raise unwritable(folder, error) from error
            raise
        self._site_budgets: dict[str, Budget] = {}

    def _site_secret(self, path: Path) -> bytes:
        known = [entry.facts["secret"] for entry in self.chain.entries("COHORT")]
        if known and not path.exists():
            raise Refused(
                "damaged",
                f"{path.name} is missing: without it a patient of an earlier cohort cannot be recognised: {MEND}",
            )
        secret = site_secret(path)
        if any(name != fingerprint(secret) for name in known):
            raise Refused("damaged", f"{path.name} is not the secret that the cohorts were closed with: {MEND}")
        return secret

    def close(self) -> None:
        """Releases the folder."""
        self.chain.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- cohorts and budgets -----------------------------------------------------------------------------------------
    def open_cohort(self, name: str, patient_ids: Iterable[str], epsilon: float, delta: float) -> Cohort:
        """Closes a new cohort durably, or opens it again with the same patients. The budget is that of the site's file.

        A lower budget than the written one holds at once; a higher one needs `raise_budget`. Raises PrivacyError for
        another list under the same name and for patients of an earlier cohort."""
        budget, ids = Budget(epsilon, delta), list(patient_ids)
        with self.chain.transaction():
            known = {cohort.name: cohort for cohort in self._cohorts()}
            cohort = known.get(name)
            if cohort is None:
                cohort = Cohort.close(name, ids, self._secret, [*known.values()])
                facts = {"cohort": name, "members": sorted(cohort.members), "secret": fingerprint(self._secret)}
                self.chain.append("COHORT", {**facts, "epsilon": budget.epsilon, "delta": budget.delta})
            elif why := cohort.difference(ids, self._secret):
                raise PrivacyError(
                    f"cohort {name!r} is closed with other patients: {why}; put the list back, new patients into a new cohort"
                )
        self._site_budgets[name] = budget
        return cohort

    def rehearse(self, lists: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Cohort -> why `open_cohort` would refuse its list. Nothing is written."""
        return rehearsed(lists, self._secret, self._cohorts())

    def raise_budget(self, cohort: str, epsilon: float, officer: str) -> None:
        """Writes a higher epsilon for `cohort`, in the officer's name. Raises PrivacyError when it is not higher."""
        with self.chain.transaction():
            if not self._written(cohort).epsilon < epsilon < math.inf or not officer.strip():
                least = self._written(cohort).epsilon
                raise PrivacyError(f"cohort {cohort!r}: needs an epsilon above {least:g} and the officer's name")
            self.chain.append("BUDGET", {"cohort": cohort, "epsilon": float(epsilon), "officer": officer})

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
        charges = [entry.facts for entry in self._charges(federation) if entry.facts["cohort"] == cohort]
        return [Event(facts["sigma"], facts["q"], facts["steps"]) for facts in charges]

    def most_numbers(self, cohort: str, federation: str) -> int:
        """Numbers in the largest noised sum that `cohort` was charged for in a federation; 0 before the first."""
        facts = [c.facts for c in self._charges(federation) if c.facts["cohort"] == cohort]
        return max((int(f.get("numbers", 0)) for f in facts), default=0)

    def next_cohort(
        self, federation: str, kind: str, round: int | None = None, *, once: bool = True, event: Event | None = None,
        then: Mapping[str, Event] | None = None, only: str | None = None,
    ) -> str | None:  # fmt: skip
        """Whose turn it is: the cohort that `round` has charged already, else the oldest one opened since start that
        has budget left, enough for `event` where one is named, and that, where a cohort pays `once` for a kind, paid
        for no round of this kind in this federation. None when there is none.

        then: kinds of the rounds that make this one of use, and their price: paid once too, and the cohort must have
        enough for all together. only: no other cohort than this one."""
        if round is not None and (charge := self._find(federation, round, "CHARGE")):
            return str(charge.facts["cohort"])
        ahead = dict(then or {})
        kinds, price = {kind, *ahead}, [*([event] if event else []), *ahead.values()]
        paid = {c.facts["cohort"] for c in self._charges(federation) if once and c.facts["plan_kind"] in kinds}
        for name in [only] if only is not None else self.cohorts():
            if name in self._site_budgets and name not in paid:
                budget, spent = self.budget(name), self.spent(name)
                left = accountant.epsilon(spent, budget.delta) < budget.epsilon
                if left and (not price or accountant.epsilon([*spent, *price], budget.delta) <= budget.epsilon):
                    return name
        return None

    def released(self, federation: str, receipt: str) -> tuple[Mapping[str, Any], bytes] | None:
        """What a receipt stands for: the facts of its CHARGE and the payload, exactly as it left. None when this
        federation has no such receipt. Raises Refused("damaged") when the payload is gone."""
        found = [e for e in self.chain.entries("COMMIT", federation=federation) if e.hash == receipt]
        charges = [c for e in found for c in self._charges(federation) if c.hash == e.facts["charge"]]
        if not charges:
            return None
        payload = self.outbox.read(charges[0].hash)
        if payload is None or hashlib.sha256(payload).hexdigest() != found[0].facts["payload"]:
            raise Refused("damaged", f"the outbox file of round {charges[0].round} is not the one that was sent")
        return charges[0].facts, payload

    def _cohorts(self) -> list[Cohort]:
        return [Cohort(e.facts["cohort"], frozenset(e.facts["members"])) for e in self.chain.entries("COHORT")]

    def _written(self, cohort: str) -> Budget:
        closed = [e.facts for e in self.chain.entries("COHORT") if e.facts["cohort"] == cohort]
        if not closed:
            raise PrivacyError(f"cohort {cohort!r} is not in the ledger: open it first")
        raised = [e.facts["epsilon"] for e in self.chain.entries("BUDGET") if e.facts["cohort"] == cohort]
        return Budget([closed[0]["epsilon"], *raised][-1], closed[0]["delta"])

    # --- the round ---------------------------------------------------------------------------------------------------
    def preview(self, order: Order) -> Literal["new", "resend"]:
        """What `answer` would do, without writing. Raises Refused: rolled_back, round_taken, round_lost, damaged,
        budget, and plan_time when the clock was set back."""
        self.check_echo(order)
        self.chain.check_clock()
        if strays := self.outbox.charges() - {charge.hash for charge in self._charges()}:
            raise Refused(
                "rolled_back",
                f"{len(strays)} files of the outbox have no charge: the ledger is an older copy; put the newest one back",
            )
        charge = self._find(order.federation, order.round, "CHARGE")
        if charge is None:
            self._check_budget(order)
            return "new"
        if charge.facts["plan_hash"] != order.plan_hash:
            raise Refused("round_taken", f"round {order.round} was charged for another plan")
        if self.outbox.read(charge.hash) is None:
            if self._find(order.federation, order.round, "COMMIT"):
                raise Refused("damaged", f"the outbox file of round {order.round} is gone: put it back")
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
        """Hash of the new CHARGE entry; projection and insert are one transaction. Raises Refused("budget"), and
        MachineFailure while the disk has no room for what would be charged for."""
        check_room(self.outbox.folder)
        with self.chain.transaction():
            self._check_budget(order)
            facts = {"plan_hash": order.plan_hash, "plan_kind": order.kind, "clip": order.clip, "cohort": order.cohort}
            facts |= {"numbers": order.numbers, **asdict(order.event)}
            return self._append("CHARGE", order.federation, order.round, facts)

    def write_outbox(self, charge: str, payload: bytes) -> None:
        """Keeps the payload of a charge, durably."""
        self.outbox.write(charge, payload)

    def commit(self, order: Order, charge: str, payload: bytes) -> str:
        """Receipt: hash of the COMMIT entry, which is written if it is not there yet. Raises Refused("damaged")."""
        digest, done = hashlib.sha256(payload).hexdigest(), self._find(order.federation, order.round, "COMMIT")
        if done is None:
            with self.chain.transaction():
                return self._append("COMMIT", order.federation, order.round, {"charge": charge, "payload": digest})
        if done.facts["payload"] != digest:
            raise Refused(
                "damaged", f"the outbox file of round {order.round} is not the one that was sent: put it back"
            )
        return done.hash

    def check_echo(self, order: Order) -> None:
        """The coordinator's last receipt must be in the chain. None is accepted: it may never have received one."""
        receipts = {entry.hash for entry in self.chain.entries("COMMIT", federation=order.federation)}
        if order.echo is not None and order.echo not in receipts:
            raise Refused(
                "rolled_back",
                "the coordinator holds a receipt that this ledger lacks: it is an older copy; put the newest one back",
            )

    def forgive(self, federation: str, round: int, echo_shows_no_receipt: bool, officer: str) -> None:
        """Takes a lost round's charge back, in the officer's name: nothing of it ever left, so a fresh run is the
        only output.

        Raises PrivacyError unless the round is charged, has no outbox file and no COMMIT, and the coordinator's
        signed echo shows no receipt for it."""
        with self.chain.transaction():
            charge = self._find(federation, round, "CHARGE")
            if charge is None:
                raise PrivacyError(f"round {round} has no charge to forgive")
            if self._find(federation, round, "COMMIT") or self.outbox.path(charge.hash).exists():
                raise PrivacyError(f"round {round} has a reply in the outbox: send it again instead")
            if echo_shows_no_receipt is not True or not officer.strip():
                raise PrivacyError(f"round {round}: needs an echo without a receipt for it and the officer's name")
            self._append("FORGIVE", federation, round, {"charge": charge.hash, "officer": officer})

    def _check_budget(self, order: Order) -> None:
        budget = self.budget(order.cohort)
        if not accountant.epsilon([*self.spent(order.cohort), order.event], budget.delta) <= budget.epsilon:
            raise Refused(
                "budget", f"round {order.round} would pass epsilon {budget.epsilon:g} of cohort {order.cohort!r}"
            )

    # --- entries -----------------------------------------------------------------------------------------------------
    def verify(self) -> int:
        """Number of entries. Raises Refused("damaged") when one link does not hold."""
        return self.chain.verify()

    def history(self) -> list[dict[str, Any]]:
        """All entries, oldest first, for the site's own eyes. Keyed patient hashes are replaced by their number."""
        shown = []
        for entry in self.chain.entries():
            facts = {key: value for key, value in entry.facts.items() if key not in ("nonce", "secret")}
            if "members" in facts:
                facts["patients"] = len(facts.pop("members"))
            place = {"seq": entry.seq, "kind": entry.kind, "federation": entry.federation, "round": entry.round}
            shown.append({**place, **facts, "hash": entry.hash})
        return shown

    def _append(self, kind: str, federation: str, round: int, facts: dict[str, Any]) -> str:
        return self.chain.append(kind, facts, federation, round, self._turn(federation, round))

    def _turn(self, federation: str, round: int) -> int:
        """How often a charge of this round was forgiven: entries of earlier turns are history."""
        return len(self.chain.entries("FORGIVE", federation=federation, round=round))

    def _find(self, federation: str, round: int, kind: str) -> Entry | None:
        turn = self._turn(federation, round)
        found = [e for e in self.chain.entries(kind, federation=federation, round=round) if e.turn == turn]
        return found[0] if found else None

    def _charges(self, federation: str | None = None) -> list[Entry]:
        """Charges that were not forgiven."""
        forgiven = {entry.facts["charge"] for entry in self.chain.entries("FORGIVE", federation=federation)}
        return [entry for entry in self.chain.entries("CHARGE", federation=federation) if entry.hash not in forgiven]
