"""The worker behind `start`: takes orders, answers them, fetches releases, and never gives up by itself.

An order is on disk (`inflight`) from the moment it is pulled until its answer is out, because Flower delivers it once. A worker
that was killed takes its node up again, and the order; whether it trains or sends the outbox again is the ledger's decision.
"""

import contextlib
import fcntl
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgps.errors import NetworkError, SgpsError, SignatureError, StateError
from sgps.files import write_atomic
from sgps.kinds import KINDS
from sgps.release import Release
from sgps_client import flower_link, log, witness
from sgps_client.app import app
from sgps_client.config import Site
from sgps_client.coordinator import Coordinator, Named, Status
from sgps_client.enrolment import load_key
from sgps_client.flower_link import BEAT, Fleet, NodeUnknown, Withdrawn
from sgps_client.records import prepared
from sgps_client.round import RoundFailed, open_cohorts, open_ledger
from sgps_client.store import Store
from sgps_client.tls import tls_context
from sgps_privacy.egress import ACCEPTED
from sgps_privacy.errors import Refused

if TYPE_CHECKING:
    from sgps_client.data import Records

POLL, STATUS_EVERY = 0.3, 2.0  # seconds between asking for orders, and for the coordinator's state
FIRST_WAIT, MOST_WAIT, GROWTH = 0.5, 15.0, 1.6  # back-off after trouble, seconds
BAD_RELEASE = 60.0  # seconds until a release that did not verify is fetched again
MOST_FAILURES = (
    50_000  # tries of one order that fails here: eight days, longer than any order may hold a site (a person's yes)
)


@contextlib.contextmanager
def only_one(site: Site) -> Iterator[None]:
    """One worker for each site folder. Raises StateError when there is one already."""
    site.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(site.state / "worker.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StateError(
                "another `sgps-client start` runs for this site", where=site.folder, do="stop it first"
            ) from error
        yield
    finally:
        os.close(handle)


class Worker:
    """forever: stay when the coordinator says that the run is done."""

    def __init__(self, site: Site, forever: bool = False) -> None:
        self.site, self.forever = site, forever
        self.contributes = site.config.role == "contribute"
        self.store = Store(site)
        self.coordinator = Coordinator(site)
        self.fleet: Fleet | None = None
        if self.contributes:
            self.fleet = Fleet(site.config.federation.url, tls_context(site), load_key(site.tls_key))
        self.inflight, self.node_file = site.state / "inflight", site.state / "node_id"
        self.done_file = site.state / "done"
        self._stop = threading.Event()
        self._ready = self._online = False
        self._failures = 0
        self._pulled = b""
        self._next_status = 0.0
        self._bad: dict[str, float] = {}
        self._witnessed = ""

    def run(self) -> None:
        """Until the run is done and its last release is here, or until KeyboardInterrupt. Every trouble on the way is tried again.

        Raises SgpsError before anything is sent when the site itself cannot start: its list of patients, its ledger.
        """
        if self.contributes and (release := self.store.newest()) is not None:
            self._open_cohorts(release)
        threading.Thread(target=self._beat, daemon=True).start()
        wait = FIRST_WAIT
        try:
            while True:
                try:
                    if self._step():
                        return
                    wait = FIRST_WAIT
                    continue
                except NodeUnknown as error:
                    self._forget_node(error)
                except Withdrawn as error:
                    self._say("withdrawn", f"order dropped: {error}")
                    self.inflight.unlink(missing_ok=True)
                except NetworkError as error:
                    self._lost(error, wait)
                except OSError as error:  # a full disk, a share that is away
                    self._say(
                        "trouble",
                        f"{error.strerror or error} {error.filename or ''}".strip(),
                        bad=True,
                        retry=round(wait, 1),
                    )
                time.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311  not a secret: it keeps sites from calling together
                wait = min(wait * GROWTH, MOST_WAIT)
        finally:
            self._stop.set()
            self._leave()

    def _step(self) -> bool:
        """One look at the coordinator and at most one order. True: all is done."""
        if time.monotonic() >= self._next_status:
            asked = time.time()
            status = self.coordinator.status()
            self._hello(status, *status.clock(asked, time.time()))
            self._remember(status)
            self._fetch(status.latest)
            self._witness(status.latest)
            self._prepare()
            self._next_status = time.monotonic() + STATUS_EVERY
            if status.state == "done" and not self.forever and not self.inflight.exists():
                return self._done(status)
        if self.fleet is None:
            time.sleep(STATUS_EVERY)
            return False
        if not self.fleet.node_id:
            self._attach(self.fleet)
        if not self.inflight.exists():
            self._pulled = self._pulled or self.fleet.next()  # kept until it is on disk, which may be full
            if not self._pulled:
                time.sleep(POLL)
                return False
            write_atomic(self.inflight, self._pulled, 0o600)
            self._pulled = b""
        self._order(self.fleet, self.inflight.read_bytes())
        return False

    def _hello(self, status: Status, ahead: float, off: bool) -> None:
        if status.fingerprint != self.site.config.federation.fingerprint:
            raise NetworkError(
                "is the coordinator of another federation", where=self.coordinator.url, do="check site.yaml"
            )
        if off and self.contributes:  # its registration and its plans would be refused, without a word of clocks
            what = f"this clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
            raise NetworkError(what, where=self.coordinator.url, do="set it by NTP")
        if not self._online:
            self._online = True
            self._say(
                "online",
                f"online at {self.coordinator.url}: federation {status.federation}, {status.state}, round {status.round} of "
                f"{status.rounds}; clocks differ by {abs(ahead):.1f} s",
                federation=status.federation, url=self.coordinator.url, state=status.state, round=status.round, rounds=status.rounds,
            )  # fmt: skip

    def _remember(self, status: Status) -> None:
        """For a later start, when the coordinator may be gone for good."""
        if status.state != "done":
            self.done_file.unlink(missing_ok=True)
        elif not self.done_file.exists():
            write_atomic(self.done_file, f"{status.round} {status.latest.name}".encode(), 0o600)

    def _fetch(self, latest: Named) -> None:
        if self.store.holds(latest) or time.monotonic() < self._bad.get(latest.sha256, 0.0):
            return
        before = self.store.newest()
        try:
            release = self.store.fetch(self.coordinator, latest)
        except SignatureError as error:  # the coordinator's trouble, or an attack: not a reason to leave the federation
            if latest.sha256 not in self._bad:
                self._say(
                    "release_refused", f"release {latest.name} is not used: {error}", bad=True, release=latest.name
                )
            self._bad[latest.sha256] = time.monotonic() + BAD_RELEASE
            return
        self._say("release", f"release {latest.name} fetched and verified", release=latest.name, sha256=release.sha256)
        if before is not None and before.manifest.encoder_sha256 != release.manifest.encoder_sha256:
            self._ready = False  # cohorts that have not paid are read anew, in the new space
            rows = (
                "the rows before came along by a map"
                if release.manifest.carried
                else "rows of another hash are not used"
            )
            self._say(
                "base", f"release {latest.name} has another base network: {rows}; classifiers stay what they were",
                release=latest.name, encoder=release.manifest.encoder_sha256,
            )  # fmt: skip

    def _witness(self, latest: Named) -> None:
        """Once for each release: is the coordinator's record still the one that it was?"""
        if latest.sha256 == self._witnessed:
            return
        try:
            seen = witness.look(self.site, self.coordinator)
            before = "" if seen.since is None else ", those that were there before among them"
            self._say("record", f"the coordinator's record has {seen.lines} lines{before}")
        except (SignatureError, StateError) as error:  # for people to clear up; a site has rules of its own for plans
            self._say("record_doubtful", str(error), bad=True)
        self._witnessed = latest.sha256

    def _prepare(self) -> None:
        """Cohorts that have not paid yet are read and encoded before plans come, so that no reply waits for slow images."""
        release = self.store.newest()
        if not self.contributes or self._ready or release is None or self.inflight.exists():
            return
        try:
            turns = self._open_cohorts(release)
        except (RoundFailed, Refused) as error:
            if self.fleet is None or not self.fleet.node_id:
                raise  # at the start a person is there to mend it
            self._say("trouble", f"the cohorts cannot be opened: {getattr(error, 'detail', '') or error}", bad=True)
            return
        for cohort, reader in turns.items():
            self._say("reading", f"reads and encodes cohort {cohort}; nothing is spent by that", cohort=cohort)
            start = time.monotonic()
            count = sum(record is not None for record in prepared(self.site, release, cohort, reader))
            self._say(
                "ready",
                f"cohort {cohort}: {count} patients read and encoded in {time.monotonic() - start:.0f} s",
                cohort=cohort, patients=count, seconds=round(time.monotonic() - start, 1),
            )  # fmt: skip
        if not turns:
            self._say("ready", "no cohort is next: from here on only releases and repeated replies")
        self._ready = True

    def _open_cohorts(self, release: Release) -> "dict[str, Records]":
        """The cohort whose turn it is and those after it that have not paid in this federation."""
        federation = self.site.config.federation.fingerprint
        with open_ledger(self.site) as ledger:
            readers = open_cohorts(self.site, ledger, release)
            kinds = [KINDS[kind] for kind in self.site.config.limits.kinds]
            turns = {ledger.next_cohort(federation, kind.name, once=kind.once) for kind in kinds} - {None}
            paid = {e["cohort"] for e in ledger.history() if e["kind"] == "CHARGE" and e["federation"] == federation}
        return {n: r for n, r in readers.items() if n in turns or (turns and n not in paid)}

    def _attach(self, fleet: Fleet) -> None:
        if self.node_file.exists():
            text = self.node_file.read_text(encoding="ascii", errors="replace").strip()
            fleet.adopt(int(text) if text.isdigit() else 0)
        else:
            write_atomic(self.node_file, str(fleet.activate()).encode(), 0o600)
        self._say("attached", "registered with the coordinator; waiting for plans")

    def _order(self, fleet: Fleet, raw: bytes) -> None:
        order = fleet.open(raw)
        try:
            reply = flower_link.run_app(app, order, fleet.node_id, {"site": str(self.site.file)})
        except RoundFailed:
            self._failed()
            return
        status = str(reply.content.config_records["reply"]["status"])
        if self._failures and status == "plan_time":  # silence so far: a word now would say that this site was slow
            self._drop()
            return
        fleet.answer(order, reply)
        self._drop()
        self._answered(status)

    def _drop(self) -> None:
        self.inflight.unlink(missing_ok=True)
        self._failures, self._next_status = 0, 0.0

    def _answered(self, status: str) -> None:
        if status == ACCEPTED:
            self._say("answered", f"answered at {time.strftime('%H:%M:%S')} with the noised sum")
        else:
            self._say("answered", f"answered at {time.strftime('%H:%M:%S')} with one word: {status}", code=status)

    def _failed(self) -> None:
        """The app wrote the reason to the log. Silence to the coordinator; the order is tried again until its deadline."""
        self._failures += 1
        if self._failures > MOST_FAILURES:
            self._drop()
        else:
            time.sleep(min(FIRST_WAIT * GROWTH ** min(self._failures, 20), MOST_WAIT))

    def _beat(self) -> None:
        while not self._stop.wait(BEAT * 0.4):
            if self.fleet is not None and self.fleet.node_id:
                with contextlib.suppress(SgpsError):  # the main loop meets the same trouble and deals with it
                    self.fleet.heartbeat()

    def _forget_node(self, error: NodeUnknown) -> None:
        """The orders of the node that is gone can never be answered; the coordinator gives them again."""
        if self.fleet is not None:
            self.fleet.node_id = 0
        self.node_file.unlink(missing_ok=True)
        self.inflight.unlink(missing_ok=True)
        self._say("reconnect", str(error), bad=True)

    def _lost(self, error: NetworkError, wait: float) -> None:
        self._online = False
        self._next_status = 0.0
        known = ""
        if self.done_file.exists():
            number, _, release = self.done_file.read_text(encoding="ascii", errors="replace").partition(" ")
            here = "is here" if release in self.store.names() else "is not here"
            known = f"; when it was last seen, its run was done after round {number}, and release {release} {here}"
        self._say("offline", f"{error}{known}", bad=True, retry=round(wait, 1))

    def _done(self, status: Status) -> bool:
        newest = self.store.newest()
        name = newest.folder.name if newest else "-"
        self._say(
            "done",
            f"the run is done after round {status.round}; newest release: {name}",
            round=status.round,
            release=name,
        )
        return True

    def _leave(self) -> None:
        if self.fleet is not None:
            if self.fleet.node_id and not self.inflight.exists():
                with contextlib.suppress(SgpsError):
                    self.fleet.deactivate()
                    self.node_file.unlink(missing_ok=True)
            self.fleet.close()
        self.coordinator.close()

    def _say(self, event: str, line: str, *, bad: bool = False, **facts: Any) -> None:
        log.current()(event, line, bad=bad, **facts)


def start(site_file: Path, forever: bool) -> None:
    """Takes part in rounds until the run is done. Raises SgpsError when the site cannot start."""
    site = Site.load(site_file)
    with only_one(site):
        Worker(site, forever).run()
