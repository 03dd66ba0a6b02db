"""What `ledger verify` finds: the chain, the order of its entries, the outbox, and epsilon and mu from the facts, twice.

The entries are replayed from the first one, as somebody would who has only the file: whoever edited it together with its hashes must
also have kept every rule. Accountant of record is dp-accounting; the second opinion is Opacus's, which shares no code with it.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgps_client.config import Site
from sgps_client.ledger_view import WAIT, event_of
from sgps_client.round import open_ledger
from sgps_privacy import accountant, egress, statement
from sgps_privacy.errors import PrivacyError, Refused
from sgps_privacy.events import Event
from sgps_privacy.outbox import Outbox

AGREE = 0.01  # of epsilon, absolute, beyond the error that Opacus's accountant allows itself
SAME = 1e-6  # relative, of figures that one accountant gives twice
FILES, FIGURES = 7, 4  # exit codes


@dataclass(frozen=True)
class Opinion:
    """Epsilon and mu of one cohort over all federations (federation None) or in one. mu: published. prv: Opacus's epsilon and the mu
    of the Gaussian with it. rdp: dp-accounting by Renyi divergences, an upper bound."""

    cohort: str
    federation: str | None
    rounds: int
    delta: float
    epsilon: float
    mu: float
    epsilon_prv: float
    mu_prv: float
    epsilon_rdp: float

    @property
    def agree(self) -> bool:
        from sgps_privacy.engine import PRV_ERROR

        low, high = self.epsilon - AGREE, self.epsilon + PRV_ERROR + AGREE
        return low <= self.epsilon_prv <= high and self.epsilon * (1 - SAME) <= self.epsilon_rdp

    def line(self) -> str:
        where = "over all federations" if self.federation is None else f"in federation {self.federation[:12]}"
        rounds = f"{self.rounds} round{'s' if self.rounds != 1 else ''}"
        return (
            f"cohort {self.cohort} {where}, {rounds}: epsilon {self.epsilon:.4f}, mu {self.mu:.4f} (dp-accounting); epsilon "
            f"{self.epsilon_prv:.4f}, mu {self.mu_prv:.4f} (Opacus PRV, above by up to 0.01); {self.epsilon_rdp:.4f} (Renyi)"
        )


@dataclass(frozen=True)
class Verdict:
    """problems: lines for a person, those about files first. exit_code: 0 without any."""

    entries: int
    opinions: tuple[Opinion, ...]
    file_problems: tuple[str, ...]
    figure_problems: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        return (*self.file_problems, *self.figure_problems)

    @property
    def exit_code(self) -> int:
        return FILES if self.file_problems else FIGURES if self.figure_problems else 0

    def facts(self) -> dict[str, Any]:
        return {
            "entries": self.entries, "ok": not self.problems, "problems": [*self.problems],
            "accounts": [{**vars(o), "agree": o.agree} for o in self.opinions],
        }  # fmt: skip

    def text(self) -> str:
        lines = [f"{self.entries} entries; every one follows from the one before", *(o.line() for o in self.opinions)]
        return "\n".join([*lines, *(f"PROBLEM  {p}" for p in self.problems)])


def verify(config: Path) -> Verdict:
    """Raises Refused("damaged") where the chain is broken, and Refused("rolled_back") when the outbox knows of charges that are not
    there."""
    with open_ledger(Site.load(config), WAIT) as ledger:
        count, entries, outbox = ledger.verify(), ledger.history(), ledger.outbox
        charges = {e["hash"] for e in entries if e["kind"] == "CHARGE"}
        if strays := outbox.charges() - charges:
            do = "the ledger is an older copy; put the newest one back"
            raise Refused("rolled_back", f"{len(strays)} files of the outbox have no charge: {do}")
        replay = _Replay(outbox)
        for entry in entries:
            replay.take(entry)
        return Verdict(count, tuple(replay.opinions()), tuple(replay.files), tuple(replay.figures))


class _Replay:
    """The ledger's rules, entry by entry."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._budgets: dict[str, tuple[float, float]] = {}  # cohort -> epsilon, delta
        self._standing: dict[str, Mapping[str, Any]] = {}  # hash of CHARGE -> entry, those not forgiven, oldest first
        self._committed: set[str] = set()
        self.files: list[str] = []
        self.figures: list[str] = []

    def take(self, e: Mapping[str, Any]) -> None:
        match e["kind"]:
            case "COHORT":
                self._budgets[e["cohort"]] = (e["epsilon"], e["delta"])
            case "BUDGET":
                self._budgets[e["cohort"]] = (e["epsilon"], self._budgets[e["cohort"]][1])
            case "CHARGE":
                self._charge(e)
            case "COMMIT":
                self._commit(e)
            case "FORGIVE":
                if e["charge"] not in self._standing or e["charge"] in self._committed:
                    self.files.append(f"entry {e['seq']} forgives round {e['round']}, which is not charged or has left")
                self._standing.pop(e["charge"], None)

    def _events(self, cohort: str, federation: str | None = None) -> list[Event]:
        charges = [c for c in self._standing.values() if c["cohort"] == cohort]
        return [event_of(c) for c in charges if federation in (None, c["federation"])]

    def _charge(self, e: Mapping[str, Any]) -> None:
        twin = [c for c in self._standing.values() if (c["federation"], c["round"]) == (e["federation"], e["round"])]
        if twin:
            self.files.append(f"entry {e['seq']} charges round {e['round']} of {e['federation'][:12]} a second time")
        self._standing[e["hash"]] = e
        epsilon, delta = self._budgets[e["cohort"]]
        spent = accountant.epsilon(self._events(e["cohort"]), delta)
        if not spent <= epsilon * (1 + SAME):
            self.figures.append(
                f"entry {e['seq']}: with round {e['round']} cohort {e['cohort']} has spent epsilon {spent:.4f} of {epsilon:g}"
            )

    def _commit(self, e: Mapping[str, Any]) -> None:
        charge = self._standing.get(e["charge"])
        if charge is None or e["charge"] in self._committed:
            self.files.append(f"entry {e['seq']} commits round {e['round']} without a charge of its own")
            return
        self._committed.add(e["charge"])
        where = f"outbox file of round {e['round']} of {e['federation'][:12]}"
        try:
            payload = self._outbox.read(e["charge"])
            if payload is None:
                self.files.append(f"{where} is gone: a lost reply could not be sent again; put it back")
            elif hashlib.sha256(payload).hexdigest() != e["payload"]:
                self.files.append(f"{where} is not the one that was committed; put it back")
            else:
                self.figures += [
                    f"{where}: {wrong}" for wrong in self._stated(charge, egress.decode(payload).statement)
                ]
        except (Refused, PrivacyError) as error:
            self.files.append(f"{where}: {getattr(error, 'detail', '') or error}")

    def _stated(self, charge: Mapping[str, Any], stated: Mapping[str, Any]) -> list[str]:
        """What the statement that left says otherwise than the charge."""
        facts = {n: charge[n] for n in ("sigma", "q", "steps", "clip", "plan_hash")} | {"kind": charge["plan_kind"]}
        wrong = [
            f"states {name} {stated[name]}, charged {value}" for name, value in facts.items() if stated[name] != value
        ]
        events = self._events(charge["cohort"], charge["federation"])
        if sorted(map(_key, statement.read_events(stated))) != sorted(map(_key, events)):
            wrong.append(f"states {len(stated['events'])} events; the ledger holds others")
        figures = {
            "epsilon": accountant.epsilon(events, stated["delta"]),
            "mu": accountant.equivalent_mu(events, stated["delta"]),
        }
        for name, value in figures.items():
            if not math.isclose(stated[name], value, rel_tol=1e-3):
                wrong.append(f"states {name} {stated[name]:.4f}; the facts give {value:.4f}")
        return wrong

    def opinions(self) -> list[Opinion]:
        """Of each cohort that has spent something; where the accountants differ, a problem."""
        found = []
        for cohort, (_, delta) in self._budgets.items():
            federations = dict.fromkeys(c["federation"] for c in self._standing.values() if c["cohort"] == cohort)
            for federation in (None, *federations) if federations else ():
                found.append(_opinion(cohort, federation, self._events(cohort, federation), delta))
                if not found[-1].agree:
                    self.figures.append(f"the accountants differ: {found[-1].line()}")
        return found


def _key(event: Event) -> tuple[float, float, int]:
    return event.sigma, event.q, event.steps


def _opinion(cohort: str, federation: str | None, events: Sequence[Event], delta: float) -> Opinion:
    from sgps_privacy.engine import prv_epsilon  # loads torch

    prv = prv_epsilon(events, delta)
    return Opinion(
        cohort=cohort, federation=federation, rounds=len(events), delta=delta, epsilon=accountant.epsilon(events, delta),
        mu=accountant.equivalent_mu(events, delta), epsilon_prv=prv, mu_prv=accountant.gaussian_mu(prv, delta),
        epsilon_rdp=statement.rdp_epsilon(events, delta),
    )  # fmt: skip
