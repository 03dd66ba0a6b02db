"""`approve: manual`: a person says yes to a plan before a record is read. The yes covers every attempt of the same round, and can be
taken back until the ledger has charged it (`officer.revoke`)."""

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sgps.errors import InputError, StateError
from sgps.files import write_atomic
from sgps.plan import Plan
from sgps_client.config import Site
from sgps_client.store import Store
from sgps_privacy import statement

FILE, LOCK = "approvals.json", "approvals.lock"
SHORTEST = 8  # hex digits of a plan's hash that a person must type


@dataclass(frozen=True)
class Asked:
    """A plan that passed every rule, whose patients it asks for, and what it would cost them.

    epsilon, mu: in this federation, with this plan. patients: of the cohort, each named once by `unit`. before, after: epsilon of the
    cohort over all federations; budget: what it may spend in all. officer: who said yes; empty while nobody did.
    revoked: who took the yes back."""

    plan: str
    round: int
    kind: str
    cohort: str
    sigma: float
    epsilon: float
    mu: float
    delta: float
    officer: str = ""
    patients: int = 0  # a list of an earlier version has none of these
    unit: str = ""
    before: float = 0.0
    after: float = 0.0
    budget: float = 0.0
    revoked: str = ""

    @property
    def approved(self) -> bool:
        return bool(self.officer and not self.revoked)

    def line(self, done: int = 0) -> str:
        """done: the last round that is known to be over (`over`)."""
        yes = f"approved by {self.officer}" if self.officer else ""
        yes += f", taken back by {self.revoked}" if self.revoked else ""
        waits = "its round is over" if self.round <= done else "" if self.approved else "waits for approval"
        state = "; ".join(part for part in (yes, waits) if part)
        who, cost = f"cohort {self.cohort}", ""
        if self.patients:
            who += f": {self.patients} patient{'s' * (self.patients != 1)} ({self.unit})"
            cost = f", over all federations from {statement.up(self.before)} to {statement.up(self.after)} of {self.budget:g}"
        return (
            f"{self.plan[:12]}  round {self.round} ({self.kind})  {who}  noise {self.sigma:g}  "
            f"epsilon {statement.up(self.epsilon)} in this federation at delta {self.delta:g} (mu {self.mu:.3f}){cost}  {state}"
        )


def asked(state: Path) -> list[Asked]:
    """All plans that were ever put to a person, oldest first."""
    try:
        return [Asked(**entry) for entry in json.loads((state / FILE).read_bytes())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise StateError("is damaged", where=state / FILE, do="remove it: every plan is asked for again") from error


def over(site: Site) -> int:
    """The last round that is over as far as this site knows: a release has the number of the round that made it."""
    release = Store(site).newest()
    return int(release.folder.name) if release is not None and release.folder.name.isdigit() else 0


def _write(state: Path, entries: list[Asked]) -> None:
    write_atomic(state / FILE, json.dumps([vars(entry) for entry in entries]).encode(), 0o600)


@contextmanager
def _alone(site: Site) -> Iterator[None]:
    """The worker and the officer's commands write the list one after another."""
    with (site.state / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _found(site: Site, plan: Plan, cohort: str) -> list[Asked]:
    return [entry for entry in asked(site.state) if (entry.plan, entry.cohort) == (plan.sha256(), cohort)]


def given(site: Site, plan: Plan, cohort: str, facts: Mapping[str, Any], cost: Mapping[str, Any]) -> bool:
    """Whether the plan may be carried out; a plan that nobody was asked about yet is put on the list.

    facts: the privacy statement. cost: the fields of `Asked` from `patients` to `budget`."""
    if site.config.approve == "automatic":
        return True
    with _alone(site):
        found = _found(site, plan, cohort)
        if not found:
            figures = {key: facts[key] for key in ("sigma", "epsilon", "mu", "delta")}
            new = Asked(plan.sha256(), plan.round, plan.kind, cohort, **figures, **cost)
            _write(site.state, [*asked(site.state), new])
    return any(entry.approved for entry in found)


@contextmanager
def standing(site: Site, plan: Plan, cohort: str) -> Iterator[bool]:
    """Whether the yes still stands after the records were read, which may take minutes. Inside, nobody can take it back: the ledger
    charges here."""
    if site.config.approve == "automatic":
        yield True
        return
    with _alone(site):
        yield any(entry.approved for entry in _found(site, plan, cohort))


def _named(entries: list[Asked], prefix: str, officer: str) -> list[Asked]:
    """The one plan whose hash begins with `prefix`, once for each cohort that it was put for, the last one last. Raises
    InputError when it names none, or several, or nobody answers for it."""
    if not officer.strip():
        raise InputError("is empty", where="--officer", do="give the name of the officer who answers for the plan")
    found = [entry for entry in entries if len(prefix) >= SHORTEST and entry.plan.startswith(prefix.lower())]
    if (plans := len({entry.plan for entry in found})) != 1:
        what = f"names {plans} plans; one is needed, by at least {SHORTEST} digits"
        raise InputError(what, where=prefix or "plan", do="sgps-client plans list")
    return found


def approve(site: Site, prefix: str, officer: str) -> Asked:
    """Says yes to the one plan whose hash begins with `prefix`. Raises InputError when it names none, or several, when nobody answers, or
    when its round is over: then the yes would count for nothing."""
    with changing(site, prefix, officer) as ([*_, found], put):
        if found.round <= (done := over(site)):
            what = f"is of round {found.round}, which is over: release {done:04d} is here"
            raise InputError(what, where=found.plan[:12], do="wait for the next round, which asks anew")
        return put(found, replace(found, officer=officer.strip(), revoked=""))


@contextmanager
def changing(site: Site, prefix: str, officer: str) -> Iterator[tuple[list[Asked], Callable[[Asked, Asked], Asked]]]:
    """The one plan whose hash begins with `prefix`, once for each cohort that it was put for, the last one last, and what puts another
    entry in the place of one; meanwhile nothing is charged for it. Raises InputError as `approve` does."""
    _named(asked(site.state), prefix, officer)  # then the folder is there, too
    with _alone(site):
        entries = asked(site.state)
        found = _named(entries, prefix, officer)

        def put(old: Asked, new: Asked) -> Asked:
            _write(site.state, [new if entry == old else entry for entry in entries])
            return new

        yield found, put
