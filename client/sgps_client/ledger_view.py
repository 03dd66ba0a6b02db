"""What `ledger show` draws: what each cohort has spent and has left, by federation and round by round.

Epsilons do not add up: what is drawn of a federation is the epsilon of its rounds alone, and a round reaches from the epsilon of all
rounds before it to that with it.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgps_client.config import Site
from sgps_client.round import open_ledger
from sgps_privacy import accountant, statement
from sgps_privacy.events import Event
from sgps_privacy.ledger import Ledger

WAIT = 5.0  # seconds for a worker that is in the middle of a round
BAR, LEAST_BAR, BESIDE = (
    20,
    6,
    58,
)  # characters of a whole budget, also where there is little room; of the words beside a bar
STATES = {"committed": "green", "ready": "yellow", "lost": "red", "forgiven": "bright_black"}


@dataclass(frozen=True)
class Charge:
    """One charge of a cohort. before, after: epsilon of the cohort over all federations. state: `committed` (sent, or waiting for its moment),
    `ready` (in the outbox, no receipt yet), `lost` (spent, nothing left), `forgiven` (taken back by the officer)."""

    federation: str
    round: int
    kind: str
    sigma: float
    q: float
    steps: int
    clip: float
    state: str
    before: float
    after: float


@dataclass(frozen=True)
class Share:
    """All rounds of one federation with one cohort. epsilon, mu: of these rounds alone."""

    federation: str
    name: str
    rounds: int
    epsilon: float
    mu: float


@dataclass(frozen=True)
class Account:
    """One cohort over all federations. left: epsilon up to the budget."""

    cohort: str
    patients: int
    epsilon: float
    delta: float
    mu: float
    budget: float
    federations: tuple[Share, ...]
    rounds: tuple[Charge, ...]

    @property
    def left(self) -> float:
        return max(0.0, self.budget - self.epsilon)

    def facts(self) -> dict[str, Any]:
        shown = {k: v for k, v in vars(self).items() if k not in ("federations", "rounds")}
        rounds = [{**vars(c), "left": max(0.0, self.budget - c.after)} for c in self.rounds]
        return {**shown, "left": self.left, "federations": [vars(s) for s in self.federations], "rounds": rounds}


@dataclass(frozen=True)
class Overview:
    accounts: tuple[Account, ...]
    entries: tuple[Mapping[str, Any], ...]

    def facts(self) -> dict[str, Any]:
        return {"cohorts": [a.facts() for a in self.accounts], "entries": [dict(e) for e in self.entries]}

    def draw(self, console: Console) -> None:
        """Bars and entries. Colours where the console is a terminal, ASCII where it cannot do better."""
        if not self.accounts:
            console.print("no cohort yet: `sgps-client start` closes the first")
        for account in self.accounts:
            console.print(_heading(account), soft_wrap=True)
            width = min(BAR, max(LEAST_BAR, console.width - BESIDE))
            console.print(_bars(account, width, plain=not console.encoding.lower().startswith("utf")))
        for entry in self.entries:
            console.print(_line(entry), soft_wrap=True)

    def text(self, width: int = 120) -> str:
        """What `draw` writes to a file."""
        out = io.StringIO()
        self.draw(Console(file=out, width=width, highlight=False, markup=False))
        return out.getvalue()


def _heading(a: Account) -> Text:
    patients = f"{a.patients} patient{'s' if a.patients != 1 else ''}"
    spent = f"epsilon {statement.up(a.epsilon)} of {a.budget:g} spent at delta {a.delta:g} (mu {a.mu:.3f}), {_down(a.left)} left"
    return Text(f"cohort {a.cohort}: {patients}, {spent}", "bold")


def _bars(a: Account, width: int, plain: bool) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    for least in (None, width, None, None, None):  # a bar is never cut
        table.add_column(overflow="fold", min_width=least)
    scale = max(a.budget, a.epsilon)
    rest = [""] * 2
    table.add_row(
        "  all rounds",
        _bar(0, a.epsilon, scale, width, "blue", plain),
        f"{statement.up(a.epsilon)} of {a.budget:g}",
        *rest,
    )
    for s in a.federations:
        rounds = f"{s.rounds} round{'s' if s.rounds != 1 else ''}"
        bar = _bar(0, s.epsilon, scale, width, "cyan", plain)
        table.add_row(f"  {_called(s)}", bar, f"{statement.up(s.epsilon)} alone", f"mu {s.mu:.3f}", rounds)
    for c in a.rounds:
        bar = _bar(c.before, c.after, scale, width, STATES[c.state], plain)
        reached = f"{statement.up(c.before)} to {statement.up(c.after)}"
        table.add_row(f"  round {c.round} of {c.federation[:8]}", bar, reached, c.kind, Text(c.state, STATES[c.state]))
    return table


def _called(share: Share) -> str:
    return f"{share.name} ({share.federation[:8]})" if share.name else share.federation[:8]


def _bar(begin: float, end: float, whole: float, width: int, colour: str, plain: bool) -> Text:
    """From `begin` to `end` of `whole`; what is spent is never drawn as nothing."""
    full, empty = ("#", ".") if plain else ("█", "░")
    if whole <= 0 or not math.isfinite(end):
        return Text(full * width, colour)
    first, last = math.floor(width * begin / whole), math.ceil(width * end / whole)
    if end > begin:
        first = min(first, width - 1)
        last = max(last, first + 1)
    else:
        last = first
    return Text.assemble(
        (empty * first, "bright_black"), (full * (last - first), colour), (empty * (width - last), "bright_black")
    )


def _down(epsilon: float) -> str:
    """What is left is never shown as more."""
    return f"{math.floor(epsilon * 1000) / 1000:.3f}"


def _line(entry: Mapping[str, Any]) -> str:
    names = ("cohort", "patients", "epsilon", "delta", "plan_kind", "sigma", "q", "steps", "clip", "officer")
    facts = "  ".join(f"{n} {entry[n]}" for n in names if n in entry)
    where = f"round {entry['round']} of {entry['federation'][:12]}" if entry["federation"] else ""
    return "  ".join(p for p in (f"{entry['seq']:4d}", f"{entry['kind']:7s}", where, facts, entry["hash"][:12]) if p)


def overview(config: Path) -> Overview:
    """Raises Refused("busy") while a round is under way, Refused("damaged") when the chain does not hold."""
    site = Site.load(config)
    with open_ledger(site, WAIT) as ledger:
        entries = ledger.history()
        accounts = tuple(_account(site, ledger, entries, name) for name in ledger.cohorts())
    return Overview(accounts, tuple(entries))


def _account(site: Site, ledger: Ledger, entries: Sequence[Mapping[str, Any]], name: str) -> Account:
    written = ledger.budget(name)
    budget = min([written.epsilon, *(c.budget.epsilon for c in site.config.cohorts if c.name == name)])
    delta = written.delta
    forgiven = {e["charge"] for e in entries if e["kind"] == "FORGIVE"}
    committed = {e["charge"] for e in entries if e["kind"] == "COMMIT"}
    kept, charges, events = ledger.outbox.charges(), list[Charge](), list[Event]()
    shares: dict[str, list[Event]] = {}
    for e in entries:
        if e["kind"] != "CHARGE" or e["cohort"] != name:
            continue
        before = _epsilon(events, delta)
        state = "committed" if e["hash"] in committed else "ready" if e["hash"] in kept else "lost"
        if e["hash"] in forgiven:
            state = "forgiven"
        else:
            events.append(event_of(e))
            shares.setdefault(e["federation"], []).append(events[-1])
        facts = {name: e[name] for name in ("federation", "round", "sigma", "q", "steps", "clip")}
        charges.append(Charge(**facts, kind=e["plan_kind"], state=state, before=before, after=_epsilon(events, delta)))
    own = site.config.federation
    federations = tuple(
        Share(
            f, own.name if f == own.fingerprint else "", len(s), _epsilon(s, delta), accountant.equivalent_mu(s, delta)
        )
        for f, s in shares.items()
    )
    patients = next(int(e["patients"]) for e in entries if e["kind"] == "COHORT" and e["cohort"] == name)
    mu = accountant.equivalent_mu(events, delta) if events else 0.0
    return Account(name, patients, _epsilon(events, delta), delta, mu, budget, federations, tuple(charges))


def event_of(charge: Mapping[str, Any]) -> Event:
    """The mechanism facts of a CHARGE entry."""
    return Event(charge["sigma"], charge["q"], charge["steps"])


def _epsilon(events: Sequence[Event], delta: float) -> float:
    return accountant.epsilon(events, delta) if events else 0.0
