"""The round loop: wait, order, collect, pool, release. A killed coordinator goes on where it was.

Order of a reply: checked -> contribution on disk -> audit. Order of a round's end: marked as closing -> release on disk -> checkpoint.
Each step can be repeated, so a kill between any two loses nothing.
"""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sgps.errors import StateError
from sgps.memory import Array
from sgps.plan import Plan, SignedPlan
from sgps.release import Release
from sgps_privacy.terms import Terms
from sgps_server import releases
from sgps_server.audit import Audit, read
from sgps_server.checkpoint import Checkpoint, Open, Record
from sgps_server.config import Federation, Folder
from sgps_server.flower_link import Link, Roster, lost
from sgps_server.kinds import CONDUCT, kind_before, kind_of, separable, terms_of
from sgps_server.plans import PlanOffice, accepted_code
from sgps_server.registry import Registry
from sgps_server.replies import Rejected
from sgps_server.status import Board
from sgps_server.strategy import RoundStrategy

POLL, LOOK = 0.1, 0.5  # seconds between looks for replies, and at who is there
REMIND = 60.0  # seconds after which a wait is reported again
PAUSE = 2.0  # seconds between two attempts
PASSING = {"busy", "plan_time", "error", "unreadable"}  # codes that may be gone at the next attempt


class Stopped(Exception):
    """The operator asked to stop."""


class Report(Protocol):
    def __call__(self, event: str, **fields: Any) -> None: ...


class Rounds:
    """All rounds of one federation, in the calling thread. stop: set by a signal; every wait looks at it and raises Stopped."""

    def __init__(
        self, folder: Folder, settings: Federation, key: Ed25519PrivateKey, link: Link, roster: Roster, registry: Registry,
        audit: Audit, board: Board, report: Report, stop: threading.Event,
    ) -> None:  # fmt: skip
        self._folder, self._settings, self._key, self._link, self._roster = folder, settings, key, link, roster
        self._registry, self._audit, self._board, self._report, self._stop = registry, audit, board, report, stop
        self._checkpoint = Checkpoint(folder.state)
        release = Release.open(folder.releases / releases.name_of(self._checkpoint.state.done), key=key.public_key())
        self._office = PlanOffice(settings, key)
        self._strategy = RoundStrategy(
            self._plan, self._contributors, release, settings.most_patients, self._checkpoint.contributions
        )
        self._centres: dict[
            str, str
        ] = {}  # site -> receipt of its mean, where records of the open round are centred by it
        self._online: set[str] = set()
        self._no: dict[
            str, str
        ] = {}  # site -> code with which it refused this round, or its reply was rejected: for good
        self._looked = 0.0
        board.set(round=self._checkpoint.state.done, release=release.folder.name)

    @property
    def done(self) -> int:
        return self._checkpoint.state.done

    def run(self) -> None:
        """Rounds until all are done. Raises Stopped, or StateError when a round fails too often."""
        if self._checkpoint.state.open:
            o = self._checkpoint.state.open
            self._report("resumed", done=self.done, round=o.round, attempt=o.attempt)
            told = {(e["round"], e["site"]) for e in read(self._audit.path) if e["event"] == "contribution"}
            for record in self._checkpoint.state.accepted:  # a kill may have come before its line
                if record.round == o.round and (record.round, record.site) not in told:
                    self._note(record, o.attempt)
        while self.done < self._settings.rounds:
            self._round(self.done + 1)
        self._board.set(state="done", round=self.done, rounds=max(self.done, self._settings.rounds), waiting_for=[])

    def _round(self, number: int) -> None:
        self._open(number)
        self._no = {}
        # Asked by a process before this one, or silent: they may have paid, so they are asked once more, although a quorum is here.
        owed = set(self._opened().sites)
        again = set(owed)
        for _ in range(self._settings.attempts):
            if self._opened().closing:
                break
            needed = bool(owed - set(self._contributed(number))) or not self._enough(number)
            silent = self._attempt(number) if needed and self._wait_for_sites(number, owed) else set()
            owed = silent - again
            again |= owed
            if not owed and self._closed(number):
                break
            self._hopeless(number)
            self._pause(PAUSE)
        if not self._opened().closing and not self._closed(number):
            raise self._failed(number, f"after {self._settings.attempts} attempts")
        self._close(number)

    def _closed(self, number: int) -> bool:
        """Begin to close the round when a quorum has contributed. Who withdraws after this is in its
        release, so that a crash on the way to it changes nothing."""
        gone = tuple(sorted(self._registry.entries().withdrawn))
        counted = {r.site for r in self._counted(gone) if r.round == number}
        if len(counted) < self._settings.quorum:
            return False
        self._checkpoint.save(open=self._opened().model_copy(update={"closing": True, "gone": gone}))
        return True

    def _hopeless(self, number: int) -> None:
        """A site that refused would refuse again, and one whose reply was rejected would send the same bytes: neither is asked again.
        Raises StateError when the others are too few."""
        can = {n for n, s in self._registry.sites().items() if s.role == "contribute" and self._may(n)}
        if len(can | set(self._contributed(number))) < self._settings.quorum:
            raise self._failed(number, "and cannot get more")

    def _failed(self, number: int, how: str) -> StateError:
        have, no = len(self._contributed(number)), ", ".join(f"{n}: {c}" for n, c in sorted(self._no.items()))
        return StateError(
            f"round {number} has {have} of {self._settings.quorum} contributions {how}"
            + (f"; no from {no}" if no else ""),
            where=self._folder.root,
            do="see `sgps-server status` and the log; start again to try again",
        )

    def _open(self, number: int) -> None:
        state, settings = self._checkpoint.state, self._settings
        before = kind_before(state.terms, number)
        kind, code = kind_of(settings, number, before), accepted_code(settings)
        terms = terms_of(settings, kind, before, self._strategy.release).to_mapping()
        if state.open is None:
            if (made := self._folder.releases / releases.name_of(number)).exists():
                raise StateError(
                    "was written by a command that was interrupted",
                    where=made,
                    do="give `sgps-server releases repool`, or `releases carry`, again",
                )
            opened = Open(round=number, attempt=0, terms=terms, code=code, quorum=settings.quorum)
            self._checkpoint.save(open=opened, terms={**state.terms, number: terms})
        elif (state.open.terms, state.open.code, state.open.quorum) != (terms, code, settings.quorum):
            self._report("terms_kept", round=number)
        self._centres = {}
        if self._opened().terms["kind"] == "rows" and before == "site_mean":
            self._centres = {r.site: r.receipt for r in state.accepted if r.round == number - 1}

    def _opened(self) -> Open:
        if self._checkpoint.state.open is None:
            raise StateError("no round is open", where=self._folder.state, do="start again")
        return self._checkpoint.state.open

    def _counted(self, gone: Collection[str] | None = None) -> list[Record]:
        """Accepted contributions, without those of sites that withdrew: until now, or before the open round began to close."""
        state = self._checkpoint.state
        if gone is None:
            closing = state.open is not None and state.open.closing
            gone = state.open.gone if closing and state.open else self._registry.entries().withdrawn
        return [r for r in state.accepted if r.site not in gone or not separable(state.terms[r.round])]

    def _contributed(self, number: int) -> list[str]:
        return sorted(r.site for r in self._counted() if r.round == number)

    def _enough(self, number: int) -> bool:
        return len(self._contributed(number)) >= self._settings.quorum

    def _may(self, site: str) -> bool:
        """Whether an enrolled contributor can contribute to the open round: it has not refused, and where records are centred, it has
        given its mean."""
        return site not in self._no and (not self._centres or site in self._centres)

    def _plan(self, number: int, sites: Sequence[str]) -> tuple[Plan, SignedPlan, Mapping[str, Array]]:
        """The next attempt's plan, journalled before it exists. Called by the strategy. Raises StateError when no release could hold all
        its answers."""
        o, keys = self._opened(), self._registry.sites()
        ahead = [number, number + 1] if o.terms["kind"] == "site_mean" else [number]  # the next one needs the means
        asked = {name: keys[name].key for name in sites if name in keys}
        releases.check_room(self._strategy.release, ahead, asked, self._counted(), self._checkpoint.state.terms)
        attempt = o.attempt + 1
        self._checkpoint.save(open=o.model_copy(update={"attempt": attempt, "sites": tuple(sites)}))
        terms = Terms.from_mapping(o.terms)
        start = CONDUCT[terms.kind].start(self._strategy.release, terms)
        plan, signed = self._office.plan(
            number,
            attempt,
            terms,
            start,
            o.code,
            sites,
            self._checkpoint.state.receipts,
            release=self._strategy.release,
            centres=self._centres,
            quorum=o.quorum,
        )
        self._audit.add("issued", round=number, attempt=attempt, plan=plan.sha256(), sites=list(plan.sites))
        return plan, signed, start

    def _contributors(self) -> dict[int, tuple[str, str]]:
        """Node id -> (site, key) of enrolled sites that may contribute to the open round."""
        sites = self._registry.sites()
        return {
            node: (name, sites[name].key)
            for node, name in self._roster.names().items()
            if name in sites and sites[name].role == "contribute" and self._may(name)
        }

    def look(self) -> set[str]:
        """Contributing sites that are online. Brings roster and board up to date and tells of changes."""
        if time.monotonic() - self._looked < LOOK:
            return self._online
        self._looked = time.monotonic()
        sites = self._registry.sites()
        self._roster.sync({name: site.key for name, site in sites.items()})
        names = self._roster.names()
        here = {names[n] for n in self._link.get_node_ids() if n in names}
        for name in sorted(here - self._online):
            self._report("online", site=name)
        for name in sorted(self._online - here):
            self._report("offline", site=name)
        self._online = here
        self._board.set(sites={name: "online" if name in here else "offline" for name in sorted(sites)})
        return here

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _wait_for_sites(self, number: int, owed: set[str]) -> bool:
        """Until all `owed` sites, or else `wait_for` sites, are here; after `patience` a quorum is enough. True: a site can be asked.
        False: none has come, and the round has its quorum without. Otherwise it waits for ever, and says for whom."""
        began, told, said = time.monotonic(), 0.0, None
        have = set(self._contributed(number))
        self._board.set(state="waiting", round=number)
        while True:
            here, may = self.look(), {name for name, _ in self._contributors().values()}
            ready = have | (here & may)
            late = time.monotonic() - began > self._settings.patience
            full = owed & may <= ready and len(ready) >= (self._settings.quorum if owed else self._settings.wanted)
            if (full or (late and len(ready) >= self._settings.quorum)) and ready - have:
                break
            if (late or not owed & may - have) and self._enough(number):
                return False
            missing = sorted((owed & may or may) - ready)
            self._board.set(waiting_for=missing)
            if missing != said or time.monotonic() - told > REMIND:
                told, said = time.monotonic(), missing
                least = self._settings.quorum if late else self._settings.wanted
                self._report(
                    "waiting",
                    round=number,
                    missing=max(least - len(ready), len(owed & may - ready)),
                    waiting_for=missing,
                )
            self._pause(POLL)
        self._board.set(state="running", waiting_for=[])
        return True

    def _attempt(self, number: int) -> set[str]:
        """One plan to all who are here and have not contributed. Ends when all have answered, are lost, or it is too late. Returns those
        who are here and said nothing."""
        messages = self._strategy.orders(number, self._link)
        plan = self._strategy.plan
        if plan is None or not messages:
            return set()
        names = self._roster.names()
        self._report(
            "round_started", round=number, rounds=self._settings.rounds, attempt=plan.attempt, sites=list(plan.sites),
            answer_in=plan.answer_at - plan.issued, deadline_in=plan.deadline - plan.issued,
        )  # fmt: skip
        orders = dict(zip(self._link.push_messages(messages), [m.metadata.dst_node_id for m in messages], strict=True))
        waiting = orders  # order -> node
        gone: dict[int, float] = {}  # node -> when it was lost
        while (waiting or gone) and time.time() < plan.deadline:
            for order, reply in self._link.collect(list(waiting)):
                node = waiting.pop(order)
                if reply is not None and lost(reply):
                    gone[node] = time.monotonic()
                    self._report("lost", round=number, site=names[node], patience=self._settings.patience)
                else:
                    self._take(number, names[node], reply)
            here = self.look()
            for node, since in list(gone.items()):
                if names[node] in here and node in self._contributors():  # not one that got a new key meanwhile
                    del gone[node]
                    (order,) = self._link.push_messages([self._strategy.order(node)])
                    waiting[order] = node
                    self._report("again", round=number, site=names[node])
                elif time.monotonic() - since > self._settings.patience:
                    del gone[node]
            self._board.set(waiting_for=sorted(names[n] for n in (*waiting.values(), *gone)))
            self._pause(POLL)
        for order in waiting:
            self._link.withdraw(order)
        have = self._contributed(number)
        silent = sorted(names[n] for n in waiting.values())
        for site in silent:
            self._audit.add("silent", round=number, attempt=plan.attempt, site=site)
        if len(have) < self._settings.quorum:
            self._report(
                "attempt_failed",
                round=number,
                attempt=plan.attempt,
                contributions=len(have),
                quorum=self._settings.quorum,
                silent=silent,
            )
        return {*silent}

    def _take(self, number: int, site: str, reply: Any) -> None:
        """One reply: keep it, or say why not. Nothing that a site sends ends the round."""
        attempt = self._opened().attempt
        try:
            a = self._strategy.accept(reply)
        except Rejected as error:
            if error.receipt:
                self._checkpoint.receipt(site, error.receipt)
            if error.code not in PASSING:
                self._no[site] = error.code
            event = "refusal" if error.refusal else "rejected"
            told = {"site_code": error.site_code} if error.site_code else {}
            self._audit.add(event, round=number, attempt=attempt, site=site, code=error.code, **told)
            self._report(event, round=number, site=site, code=error.code)
            if told:
                self._report("other_code", site=site, **told)
            return
        record = self._checkpoint.accept(
            number,
            site,
            a.sent,
            receipt=a.receipt,
            statement=a.statement,
            signature=a.signature,
            key=a.key,
        )
        self._note(record, attempt)
        self._report("reply", round=number, site=site, receipt=a.receipt)

    def _note(self, r: Record, attempt: int) -> None:
        self._audit.add("contribution", round=r.round, attempt=attempt, site=r.site, receipt=r.receipt, arrays=r.sha256)

    def _close(self, number: int) -> None:
        sites, counted = self._contributed(number), self._counted()
        kept = {(r.round, r.site) for r in counted}
        self._strategy.pooled = {k: sent for k, sent in self._strategy.pooled.items() if k in kept}
        self._strategy.aggregate_train(number, ())
        self._report("pooled", round=number, sites=sites)
        anchor = self._audit.add("pooled", round=number, sites=sites)
        state = self._checkpoint.state
        if self._strategy.outcome is None:
            raise StateError(
                f"round {number} closes without a contribution",
                where=self._folder.state,
                do="restore the folder from the backup",
            )
        release = releases.following(
            self._folder.releases, number, self._strategy.outcome, counted, state.terms, anchor, self._key
        )
        self._strategy.release = release
        self._checkpoint.save(done=number, open=None)
        self._audit.add("release", release=release.folder.name, sha256=release.sha256)
        self._report("release", release=release.folder.name, sha256=release.sha256, round=number)
        self._board.set(round=number, release=release.folder.name)
