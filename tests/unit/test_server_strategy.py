"""RoundStrategy as an ordinary Flower strategy, driven by Flower's own `Strategy.start` over a grid of sites in this process."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import fake_site
import tiny_release

from sgps.files import sha256_file
from sgps.memory import COUNTS, ROWS, Contribution, pool
from sgps.plan import Plan
from sgps.release import MANIFEST, MEMORY, Release
from sgps.signing import load_private
from sgps_privacy.terms import Terms
from sgps_server import enrolment
from sgps_server.app import open_strategy
from sgps_server.config import Folder
from sgps_server.kinds import Sent
from sgps_server.plans import PlanOffice
from sgps_server.replies import Accepted, Rejected, check
from sgps_server.strategy import RoundStrategy, decode, records, to_record

SITES = ("north", "south")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    work = tmp_path_factory.mktemp("strategy")
    source = tiny_release.make(work / "release")
    release = Release.open(source, sha256=sha256_file(source / MANIFEST))
    enrolment.init(work / "centre", "derm", "https://localhost:8443", release)
    found = Folder(work / "centre")
    for name in SITES:
        request = enrolment.read_request(fake_site.request(work / name, name))
        enrolment.approve(found, request, work / name / "site.kit")
    return found


UNUSED = "a strategy asks who is there, then sends and receives"


class LocalGrid(Grid):
    """Sites of this process at the other end: each answers its order at once. Node ids say nothing of names."""

    def __init__(self, sites: dict[int, fake_site.FakeSite]) -> None:
        self.sites, self.sent = sites, 0

    def set_run(self, run: object) -> None:
        raise AssertionError(UNUSED)

    @property
    def run(self) -> object:  # type: ignore[override]
        raise AssertionError(UNUSED)

    def create_message(self, *_: object, **__: object) -> Message:
        raise AssertionError(UNUSED)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.sites)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise AssertionError(UNUSED)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise AssertionError(UNUSED)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        import json

        replies = []
        for message in messages:
            self.sent += 1
            plan = json.loads(str(message.content["plan"]["text"]))
            replies.append(answer(message, self.sites[message.metadata.dst_node_id].reply(plan, message)))
        return replies


def answer(order: Message, content: RecordDict) -> Message:
    reply = Message(content, dst_node_id=1, message_type="train")
    reply.metadata.__dict__["_src_node_id"] = order.metadata.dst_node_id
    return reply


def sites(folder: Folder, *faults: str) -> dict[int, fake_site.FakeSite]:
    found = {}
    for node, (name, fault) in enumerate(zip(SITES, faults, strict=True), 100):
        home = folder.root.parent / name
        for old in (home / "outbox").glob("*"):
            old.unlink()
        found[node] = fake_site.FakeSite(home, fault, patients=12)
        found[node].api.close()
    return found


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Message(...)` asks Flower's process-wide task identity for its source."""
    from flwr.supercore.task_identity import TaskIdentity  # noqa: TID251

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.mark.usefixtures("task")
def test_flowers_own_loop_drives_the_strategy_and_the_memory_is_the_pool_of_what_was_sent(folder: Folder) -> None:
    strategy, grid = open_strategy(folder), LocalGrid(sites(folder, "none", "none"))
    result = strategy.start(grid, strategy.start_arrays, num_rounds=2, timeout=5)
    assert grid.sent == 4
    assert set(strategy.pooled) == {(r, s) for r in (1, 2) for s in SITES}
    empty = strategy.release.memory()
    sent = [strategy.pooled[k] for k in sorted(strategy.pooled)]
    parts = [Contribution(s.arrays[ROWS], s.arrays[COUNTS], s.terms.sigma) for s in sent]
    expected = pool(empty.coordinates, empty.ids, parts)
    assert strategy.outcome is not None and list(strategy.outcome.files) == [MEMORY]
    assert np.array_equal(result.arrays["memory.total"].numpy(), expected.total)
    assert dict(result.train_metrics_clientapp[2]) == {"replies": 2}


@pytest.mark.usefixtures("task")
def test_a_spoiled_reply_is_left_out_of_the_pool(folder: Folder) -> None:
    strategy = open_strategy(folder)
    strategy.start(LocalGrid(sites(folder, "none", "nan")), strategy.start_arrays, num_rounds=1, timeout=5)
    assert set(strategy.pooled) == {(1, "north")}


@pytest.mark.usefixtures("task")
def test_events_are_those_of_earlier_rounds_and_of_this_one_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round's own terms are counted apart, so what others have sent of it must not count once more."""
    told: list[tuple[int, int]] = []

    def watched(site: str, key: str, plan: Plan, *rest: Any) -> Accepted:
        told.append((plan.round, len([*rest[-1]])))
        return check(site, key, plan, *rest)

    monkeypatch.setattr("sgps_server.strategy.check", watched)
    strategy = open_strategy(folder)
    strategy.start(LocalGrid(sites(folder, "none", "none")), strategy.start_arrays, num_rounds=2, timeout=5)
    assert told == [(1, 0), (1, 0), (2, 1), (2, 1)]


@pytest.mark.usefixtures("task")
def test_a_sound_reply_of_a_site_that_was_not_asked_does_not_count(folder: Folder) -> None:
    strategy, here = open_strategy(folder), sites(folder, "none", "none")
    strategy.issue(1, ["south"])
    south, north = (LocalGrid(here).send_and_receive([strategy.order(node)]) for node in (101, 100))
    assert strategy.accept(*south).site == "south"
    with pytest.raises(Rejected, match="not_a_participant"):
        strategy.accept(*north)
    assert set(strategy.pooled) == {(1, "south")}


@pytest.mark.usefixtures("task")
def test_a_round_without_a_contribution_gives_nothing(folder: Folder) -> None:
    strategy = open_strategy(folder)
    strategy.start(LocalGrid(sites(folder, "budget", "nan")), strategy.start_arrays, num_rounds=1, timeout=5)
    assert strategy.aggregate_train(1, ()) == (None, None)


def content(**arrays: np.ndarray) -> RecordDict:
    return RecordDict({"arrays": to_record(arrays), "reply": ConfigRecord({"weight": 1})})


def test_untrusted_records_are_measured_before_they_are_decoded() -> None:
    shapes = {"x": (3,)}

    def read(found: RecordDict) -> tuple[list[float], dict[str, str | int]]:
        record, fields = records(found)
        return decode(record, shapes)["x"].tolist(), fields

    assert read(content(x=np.ones(3, np.float32))) == ([1, 1, 1], {"weight": 1})
    bad = {
        "names": content(y=np.ones(3, np.float32)),
        "shape": content(x=np.ones(10_000, np.float32)),
        "records": RecordDict({"arrays": ArrayRecord(), "metrics": ConfigRecord()}),
        "fields": RecordDict({"arrays": ArrayRecord(), "reply": ConfigRecord({"loss": 0.5})}),
    }
    broken = content(x=np.ones(3, np.float32))
    broken["arrays"]["x"].data = b"not an array"
    bad["unreadable"] = broken
    for word, record in bad.items():
        with pytest.raises(Rejected) as caught:
            read(record)
        assert caught.value.code == word


def test_pickled_bytes_are_never_loaded() -> None:
    """NumPy's object arrays are pickles."""
    import io

    data = io.BytesIO()
    np.save(data, np.array([{"a": 1}, 2, 3], dtype=object), allow_pickle=True)
    record = content(x=np.ones(3, np.float32))
    record["arrays"]["x"].data = data.getvalue()
    with pytest.raises(Rejected, match="unreadable"):
        decode(records(record)[0], {"x": (3,)})


@pytest.mark.usefixtures("task")
def test_orders_go_to_known_contributors_that_have_not_answered(folder: Folder) -> None:
    release = Release.open(folder.releases / "0000", sha256=sha256_file(folder.releases / "0000" / MANIFEST))
    inner = open_strategy(folder)
    zeros = {ROWS: np.zeros((3, 4), np.float32), COUNTS: np.zeros(3, np.float32)}
    asked: list[list[str]] = []

    def plan(round: int, names: Iterable[str]) -> object:
        asked.append(list(names))
        return inner._make_plan(round, list(names))

    done = {(1, "north"): Sent(Terms("rows", 1.0, 1.0, 1, (1.0,), ((ROWS, COUNTS),), 1), zeros)}
    strategy = RoundStrategy(plan, lambda: {7: ("north", "k"), 8: ("south", "k"), 9: ("west", "k")}, release, 10, done)  # type: ignore[arg-type]

    class Two(LocalGrid):
        def get_node_ids(self) -> Iterable[int]:
            return [7, 8, 1234]

    assert [m.metadata.dst_node_id for m in strategy.orders(1, Two({}))] == [8]
    assert asked == [["south"]]


def test_a_plan_tells_a_site_no_receipt_of_one_that_is_not_asked(folder: Folder) -> None:
    key = load_private(folder.keys / "plan.key")
    release = Release.open(folder.releases / "0000", key=key.public_key())
    terms, start = Terms("rows", 1.0, 1.0, 1, (1.0,), ((ROWS, COUNTS),), 1), {ROWS: np.zeros((3, 4), np.float32)}
    receipts = {"north": "a" * 64, "south": "b" * 64}
    plan, _ = PlanOffice(folder.settings(), key).plan(
        1, 1, terms, start, ["c" * 64], ["south"], receipts, release=release, centres={}, quorum=1
    )
    assert (plan.sites, plan.echo) == (("south",), {"south": "b" * 64})
