"""A coordinator that dies while a round closes, and a site that withdraws before it starts again. Real files, keys and contributions;
a fault raised in place of the kill."""

import json
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import fake_site
import tiny_release

from sgps.files import sha256_file
from sgps.memory import COUNTS, ROWS, Contribution, pool
from sgps.release import MANIFEST, Release
from sgps.signing import fingerprint, load_private
from sgps_server import audit, enrolment, releases
from sgps_server.audit import Audit
from sgps_server.checkpoint import Checkpoint, read_state
from sgps_server.config import Federation, Folder
from sgps_server.registry import Registry
from sgps_server.rounds import Rounds
from sgps_server.status import Board

SITES = ("north", "south", "west")


class Killed(BaseException):
    pass


class Line:
    """Link and roster: every enrolled site is here and answers at once."""

    def __init__(self, folder: Folder) -> None:
        self.sites: dict[int, fake_site.FakeSite] = {}
        for node, name in enumerate(SITES, 100):
            self.sites[node] = fake_site.FakeSite(folder.root.parent / name, "none", patients=12)
            self.sites[node].api.close()
        self.asked: list[str] = []
        self._enrolled, self._replies = set[str](), dict[str, Message]()

    def sync(self, keys: dict[str, str]) -> None:
        self._enrolled = {*keys}

    def names(self) -> dict[int, str]:
        return {n: s.identity.site for n, s in self.sites.items() if s.identity.site in self._enrolled}

    def get_node_ids(self) -> Iterable[int]:
        return [*self.names()]

    def push_messages(self, messages: list[Message]) -> list[str]:
        for order in messages:
            site = self.sites[order.metadata.dst_node_id]
            self.asked.append(site.identity.site)
            plan = json.loads(str(order.content["plan"]["text"]))
            reply = Message(site.reply(plan, order), dst_node_id=1, message_type="train")
            reply.metadata.__dict__["_src_node_id"] = order.metadata.dst_node_id
            self._replies[str(len(self.asked))] = reply
        return [*self._replies][-len(messages) :]

    def collect(self, orders: list[str]) -> list[tuple[str, Message]]:
        return [(order, self._replies[order]) for order in orders]

    def withdraw(self, order: str) -> None:
        """Nothing is left to withdraw: all have answered."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    from flwr.supercore.task_identity import TaskIdentity  # noqa: TID251  `Message(...)` asks it for its source

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    source = tiny_release.make(tmp_path / "release")
    shipped = Release.open(source, sha256=sha256_file(source / MANIFEST))
    enrolment.init(tmp_path / "centre", "derm", "https://localhost:8443", shipped)
    found = Folder(tmp_path / "centre")
    for name in SITES:
        request = enrolment.read_request(fake_site.request(tmp_path / name, name))
        enrolment.approve(found, request, tmp_path / name / "site.kit")
    return found


def run(folder: Folder, rounds: int = 1) -> Line:
    """One life of the coordinator, to the end of that many rounds."""
    settings = Federation.model_validate(
        {
            "name": "derm", "url": "https://localhost:8443", "listen": {"host": "localhost", "port": 8443}, "rounds": rounds,
            "epsilon": 3.0, "delta": 1e-5, "quorum": 1, "wait_for": 1, "patience": 5, "answer_after": 1, "deadline_after": 60,
        }
    )  # fmt: skip
    key, line = load_private(folder.keys / "plan.key"), Line(folder)
    board = Board(folder, "derm", fingerprint(key.public_key()), rounds)
    parts: tuple[Any, Any] = (line, line)
    registry, record = Registry(folder.registry), Audit(folder.audit)
    Rounds(folder, settings, key, *parts, registry, record, board, lambda *_, **__: None, threading.Event()).run()
    return line


def opened(folder: Folder, number: int) -> Release:
    key = load_private(folder.keys / "plan.key").public_key()
    return Release.open(folder.releases / releases.name_of(number), key=key)


def holds(folder: Folder, number: int, sites: Iterable[str]) -> str:
    """Release `number` is that of `sites`, in rounds, statements, rows and counts, and the audit chain fits. Returns the hash of its
    manifest."""
    release, pairs = opened(folder, number), [(n, s) for n in range(1, number + 1) for s in sorted(sites)]
    assert [(r.round, s) for r in release.manifest.rounds for s in r.sites] == pairs
    stated = release.manifest.statements.items()
    assert sorted((int(e["round"]), s) for s, entries in stated for e in entries) == pairs
    kept = Checkpoint(folder.state).contributions
    parts = [kept[pair] for pair in pairs]
    memory = release.memory()
    again = pool(
        memory.coordinates,
        memory.ids,
        [Contribution(p.arrays[ROWS], p.arrays[COUNTS], p.terms.sigma) for p in parts],
    )
    assert np.array_equal(memory.total, again.total) and np.array_equal(memory.count, again.count)
    audit.verify(folder.audit, releases.anchors(folder.releases, load_private(folder.keys / "plan.key").public_key()))
    return release.sha256


def dies(monkeypatch: pytest.MonkeyPatch, folder: Folder, owner: Any, name: str, when: Callable[..., bool]) -> None:
    """A life of the coordinator that ends where `owner.name` is called and `when` says so of its arguments."""
    real = getattr(owner, name)

    def fault(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fault)
        with pytest.raises(Killed):
            run(folder)


def test_who_withdraws_after_a_round_began_to_close_is_in_its_release_and_not_in_the_next(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies(monkeypatch, folder, releases, "write", lambda *_: True)
    closing = read_state(folder.state).open
    assert closing is not None and closing.closing and closing.gone == ()
    assert releases.names(folder.releases) == ["0000"]
    assert enrolment.withdraw(folder, "north") == (1,)
    line = run(folder)
    assert line.asked == []
    holds(folder, 1, SITES)
    assert run(folder, 2).asked == ["south", "west"]
    holds(folder, 2, ("south", "west"))


def test_a_release_that_was_written_before_the_crash_stands_whoever_withdrew_since(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies(monkeypatch, folder, Checkpoint, "save", lambda _, **changes: "done" in changes)
    assert read_state(folder.state).done == 0
    before = holds(folder, 1, SITES)
    enrolment.withdraw(folder, "north")
    assert run(folder).asked == []
    assert holds(folder, 1, SITES) == before
    run(folder, 2)
    holds(folder, 2, ("south", "west"))


@pytest.mark.parametrize("owner", [releases, Checkpoint])
def test_of_two_that_withdraw_only_the_one_before_closing_is_left_out_whenever_the_crash_comes(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, owner: Any
) -> None:
    """The closing record, not the registry of the moment, says whose release it is."""
    dies(monkeypatch, folder, Checkpoint, "save", lambda _, **changes: getattr(changes.get("open"), "closing", False))
    assert not (o := read_state(folder.state).open) or not o.closing
    assert {r.site for r in read_state(folder.state).accepted} == {*SITES}
    enrolment.withdraw(folder, "north")
    if owner is releases:
        dies(monkeypatch, folder, owner, "write", lambda *_: True)
    else:
        dies(monkeypatch, folder, owner, "save", lambda _, **changes: "done" in changes)
    closing = read_state(folder.state).open
    assert closing is not None and closing.gone == ("north",)
    enrolment.withdraw(folder, "west")
    assert run(folder).asked == []
    holds(folder, 1, ("south", "west"))
    assert run(folder, 2).asked == ["south"]
    holds(folder, 2, ("south",))
