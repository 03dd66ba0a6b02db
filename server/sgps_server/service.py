"""`sgps-server` itself: open both ports, run the rounds, go on serving the last release."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

from sgps.signing import fingerprint, load_private
from sgps_server import releases
from sgps_server.audit import Audit, Heads
from sgps_server.audit import verify as verify_audit
from sgps_server.config import Federation, Folder, host_of, locked
from sgps_server.door import Door
from sgps_server.flower_link import Link, Roster, build_app
from sgps_server.gate import Gate
from sgps_server.peers import Porter
from sgps_server.pki import Authority, server_hosts, server_needs_renewal
from sgps_server.progress import Progress
from sgps_server.registry import Registry
from sgps_server.release_port import ReleasePort, caller
from sgps_server.release_service import ReleaseService
from sgps_server.rounds import Rounds, Stopped
from sgps_server.status import Board


def serve(folder: Folder, settings: Federation, report: Progress, linger: float | None) -> int:
    """Run until all rounds are done, then serve for `linger` seconds (None: until a signal). Returns the exit code: 0, or 130 when
    a signal came before the rounds were done. Raises StateError when another process holds the folder.
    """
    stop = threading.Event()
    with locked(folder.state / "lock"), _signals(stop):
        key = load_private(folder.keys / "plan.key")
        mark = fingerprint(key.public_key())
        verify_audit(folder.audit, releases.anchors(folder.releases, key.public_key()))
        _renew(folder, settings, report)
        audit, registry = Audit(folder.audit), Registry(folder.registry)
        board = Board(folder, settings.name, mark, settings.rounds)
        app, state = build_app()
        roster, link = Roster(state), Link(state)
        rounds = Rounds(folder, settings, key, link, roster, registry, audit, board, report, stop)
        porter = Porter(registry, audit, report)
        audit.add("start", done=rounds.done, release=releases.latest(folder.releases).sha256)
        service = ReleaseService(
            folder.releases, Heads(folder.audit), key, board.snapshot,
            may=lambda context: not porter.objection(caller(context)),
            fetched=lambda context, name: report("fetched", site=getattr(caller(context), "site", "?"), release=name),
        )  # fmt: skip
        with contextlib.ExitStack() as ports:
            ports.callback(Door(Gate(app, porter, roster.admit), folder, settings.listen).close)
            ports.callback(ReleasePort(service, porter, folder, settings.releases_listen, board.alive).close)
            ports.callback(link.close)
            report(
                "listening",
                federation=settings.name,
                url=settings.url,
                releases=settings.releases_url,
                fingerprint=mark,
            )
            return _rounds(folder, rounds, audit, report, linger, stop)


def _rounds(
    folder: Folder, rounds: Rounds, audit: Audit, report: Progress, linger: float | None, stop: threading.Event
) -> int:
    try:
        rounds.run()
        name = releases.latest(folder.releases).name
        audit.add("done", rounds=rounds.done, release=name)
        report("done", rounds=rounds.done, release=name)
        _linger(rounds, report, name, linger, stop)
        report("ended", release=name)
        return 0
    except Stopped:
        report("stopped")
        return 130


def _linger(rounds: Rounds, report: Progress, name: str, linger: float | None, stop: threading.Event) -> None:
    """Sites fetch the last release after the last round, some of them days later."""
    if linger is None:
        report("serving", release=name)
    elif linger > 0:
        report("lingering", release=name, seconds=linger)
    end = None if linger is None else time.monotonic() + linger
    while not stop.is_set() and (end is None or time.monotonic() < end):
        rounds.look()
        stop.wait(0.2)


def _renew(folder: Folder, settings: Federation, report: Progress) -> None:
    """A new server certificate before the old one ends, or when an address in federation.yaml changed."""
    hosts = server_hosts([host_of(settings.url), host_of(settings.releases_url)], settings.listen.host)
    if server_needs_renewal(folder.keys, hosts):
        Authority.open(folder.ca).server(folder.keys, hosts)
        report("renewed")


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
