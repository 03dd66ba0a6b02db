"""Rounds of the coordinator without sockets: real files, keys, plans and contributions; sites of this process that answer at once."""

import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fake_site
import tiny_release
from flwr.app import Message

from sgps.files import sha256_file
from sgps.release import MANIFEST, Release
from sgps.signing import fingerprint, load_private
from sgps_server import enrolment
from sgps_server.audit import Audit
from sgps_server.config import Federation, Folder
from sgps_server.registry import Registry
from sgps_server.rounds import Rounds
from sgps_server.status import Board

SITES = ("north", "south", "west")


class Line:
    """Link and roster: every enrolled site is here. silent: (site, attempt) -> whether it says nothing."""

    def __init__(self, folder: Folder, silent: Callable[[str, int], bool] = lambda *_: False) -> None:
        self.sites: dict[int, fake_site.FakeSite] = {}
        for node, name in enumerate(SITES, 100):
            self.sites[node] = fake_site.FakeSite(folder.root.parent / name, "none", patients=12)
            self.sites[node].api.close()
        self.asked: list[str] = []
        self._silent, self._enrolled, self._replies = silent, set[str](), dict[str, Message | None]()

    def sync(self, keys: dict[str, str]) -> None:
        self._enrolled = {*keys}

    def names(self) -> dict[int, str]:
        return {n: s.identity.site for n, s in self.sites.items() if s.identity.site in self._enrolled}

    def get_node_ids(self) -> Iterable[int]:
        return [*self.names()]

    def push_messages(self, messages: list[Message]) -> list[str]:
        return [self._push(order) for order in messages]

    def _push(self, order: Message) -> str:
        site = self.sites[order.metadata.dst_node_id]
        self.asked.append(name := site.identity.site)
        plan = json.loads(str(order.content["plan"]["text"]))
        reply = Message(site.reply(plan, order), dst_node_id=1, message_type="train")
        reply.metadata.__dict__["_src_node_id"] = order.metadata.dst_node_id
        self._replies[str(len(self.asked))] = None if self._silent(name, plan["attempt"]) else reply
        return str(len(self.asked))

    def collect(self, orders: list[str]) -> list[tuple[str, Message]]:
        return [(order, reply) for order in orders if (reply := self._replies[order]) is not None]

    def withdraw(self, order: str) -> None:
        """An order that nobody answered."""


def make(work: Path) -> Folder:
    """A federation folder at work/centre with three enrolled sites."""
    source = tiny_release.make(work / "release")
    shipped = Release.open(source, sha256=sha256_file(source / MANIFEST))
    enrolment.init(work / "centre", "derm", "https://localhost:8443", shipped)
    found = Folder(work / "centre")
    for name in SITES:
        request = enrolment.read_request(fake_site.request(work / name, name))
        enrolment.approve(found, request, work / name / "site.kit")
    return found


def run(folder: Folder, rounds: int = 1, line: Line | None = None, **changes: Any) -> Line:
    """One life of the coordinator, to the end of that many rounds."""
    settings = Federation.model_validate(
        {
            "name": "derm", "url": "https://localhost:8443", "listen": {"host": "localhost", "port": 8443}, "rounds": rounds,
            "epsilon": 3.0, "delta": 1e-5, "quorum": 1, "wait_for": 1, "patience": 5, "answer_after": 1, "deadline_after": 60,
            **changes,
        }
    )  # fmt: skip
    key, line = load_private(folder.keys / "plan.key"), line or Line(folder)
    board = Board(folder, "derm", fingerprint(key.public_key()), rounds)
    parts: tuple[Any, Any] = (line, line)
    registry, record = Registry(folder.registry), Audit(folder.audit)
    Rounds(folder, settings, key, *parts, registry, record, board, lambda *_, **__: None, threading.Event()).run()
    return line
