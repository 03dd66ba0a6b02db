"""What the site's privacy officer sees and may write: ledger overview, verification, FORGIVE, higher budgets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgps.errors import RefusedError
from sgps_client.config import Site
from sgps_client.round import open_ledger
from sgps_client.seen import Seen
from sgps_privacy import accountant, statement
from sgps_privacy.errors import Refused
from sgps_privacy.ledger import Ledger

WAIT = 5.0  # seconds for a worker that is in the middle of a round


@dataclass(frozen=True)
class Account:
    """One cohort over all federations. left: epsilon up to the budget."""

    cohort: str
    patients: int
    epsilon: float
    delta: float
    mu: float
    budget: float

    @property
    def left(self) -> float:
        return max(0.0, self.budget - self.epsilon)


@dataclass(frozen=True)
class Overview:
    accounts: tuple[Account, ...]
    entries: tuple[Mapping[str, Any], ...]

    def facts(self) -> dict[str, Any]:
        accounts = [{**vars(a), "left": a.left} for a in self.accounts]
        return {"cohorts": accounts, "entries": [dict(e) for e in self.entries]}

    def text(self) -> str:
        lines = [
            f"cohort {a.cohort}: {a.patients} patients, epsilon {statement.up(a.epsilon)} of {a.budget:g} spent at delta {a.delta:g} (mu {a.mu:.3f})"
            for a in self.accounts
        ]
        return "\n".join(
            [*(lines or ["no cohort yet: `sgps-client start` closes the first"]), "", *map(_line, self.entries)]
        )


def _line(entry: Mapping[str, Any]) -> str:
    names = ("cohort", "patients", "epsilon", "delta", "plan_kind", "sigma", "q", "steps", "clip", "officer")
    facts = "  ".join(f"{n} {entry[n]}" for n in names if n in entry)
    where = f"round {entry['round']} of {entry['federation'][:12]}" if entry["federation"] else ""
    return "  ".join(p for p in (f"{entry['seq']:4d}", f"{entry['kind']:7s}", where, facts, entry["hash"][:12]) if p)


def _open(site: Site) -> Ledger:
    return open_ledger(site, WAIT)


def _budgets(site: Site) -> dict[str, float]:
    return {c.name: c.budget.epsilon for c in site.config.cohorts}


def overview(config: Path) -> Overview:
    """Raises Refused("busy") while a round is under way, Refused("damaged") when the chain does not hold."""
    site = Site.load(config)
    with _open(site) as ledger:
        entries = ledger.history()
        patients = {e["cohort"]: e["patients"] for e in entries if e["kind"] == "COHORT"}
        accounts = []
        for name in ledger.cohorts():
            budget, spent = ledger.budget(name), ledger.spent(name)
            accounts.append(
                Account(
                    cohort=name,
                    patients=patients[name],
                    epsilon=accountant.epsilon(spent, budget.delta) if spent else 0.0,
                    delta=budget.delta,
                    mu=accountant.equivalent_mu(spent, budget.delta) if spent else 0.0,
                    budget=min(budget.epsilon, _budgets(site).get(name, budget.epsilon)),
                )
            )
    return Overview(tuple(accounts), tuple(entries))


def verify(config: Path) -> int:
    """Number of entries. Raises Refused("damaged"), and Refused("rolled_back") when the outbox knows of charges that are not there."""
    with _open(Site.load(config)) as ledger:
        count = ledger.verify()
        charges = {e["hash"] for e in ledger.history() if e["kind"] == "CHARGE"}
        if strays := ledger.outbox.charges() - charges:
            raise Refused(
                "rolled_back", f"{len(strays)} files of the outbox have no charge: the ledger is an older copy"
            )
    return count


def forgive(config: Path, round: int, officer: str) -> None:
    """Writes FORGIVE. The coordinator's echo must be newer than the charge: a plan that came after it, signed, kept by the worker.

    Raises RefusedError when no such plan has come yet, PrivacyError when something of the round may have left.
    """
    site = Site.load(config)
    federation = site.config.federation.fingerprint
    with _open(site) as ledger:
        seen = Seen.read(site)
        if seen.last is None:
            raise RefusedError(
                "no plan has come since", where=f"round {round}", do="start the client and wait for the next plan"
            )
        last = seen.last.open(site.pinned_key())
        issued = seen.charged.get(str(round))
        if last.federation != federation or last.round < round or issued is None or last.issued <= issued:
            do = "start the client and wait for the coordinator's next attempt"
            raise RefusedError(
                "no plan has come since the charge, so the coordinator's echo says nothing",
                where=f"round {round}",
                do=do,
            )
        echo = last.echo.get(site.name)
        receipts = {
            e["hash"]: e["round"] for e in ledger.history() if e["kind"] == "COMMIT" and e["federation"] == federation
        }
        ledger.forgive(federation, round, echo is None or receipts.get(echo, round) != round, officer)


def raise_budget(config: Path, cohort: str, epsilon: float, officer: str) -> None:
    """Writes BUDGET. Raises PrivacyError when it is not higher than the present one."""
    with _open(Site.load(config)) as ledger:
        ledger.raise_budget(cohort, epsilon, officer)
