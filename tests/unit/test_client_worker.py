"""The worker without a network: what it keeps on disk, what it says, when it gives way and when it goes on."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import Bench

from sgps.errors import NetworkError, StateError
from sgps.release import Carry, Release
from sgps_client import flower_link, log, witness, worker
from sgps_client.coordinator import Named, Status
from sgps_client.flower_link import NodeUnknown, Withdrawn
from sgps_client.round import RoundFailed
from sgps_client.worker import Worker


class Reports(log.Report):
    def __init__(self) -> None:
        super().__init__(None)
        self.said: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, line: str, /, *, bad: bool = False, **facts: Any) -> None:
        self.said.append((event, {"line": line, **facts}))

    def events(self) -> list[str]:
        return [event for event, _ in self.said]


class Link:
    """Stands where `Fleet` stands. Orders are handed out once, as Flower does."""

    def __init__(self, orders: list[Any]) -> None:
        self.node_id, self.orders, self.answered, self.calls = 0, orders, list[Any](), list[str]()
        self.fails: dict[str, list[Exception]] = {}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.fails.get(name):
            raise self.fails[name].pop(0)

    def activate(self) -> int:
        self._call("activate")
        self.node_id = 7
        return 7

    def adopt(self, node_id: int) -> None:
        self._call("adopt")
        self.node_id = node_id

    def heartbeat(self) -> None: ...

    def deactivate(self) -> None:
        self._call("deactivate")
        self.node_id = 0

    def next(self) -> bytes:
        self._call("next")
        return self.orders.pop(0) if self.orders else b""

    def open(self, raw: bytes) -> bytes:
        self._call("open")
        return raw

    def answer(self, order: Any, reply: Any) -> None:
        self._call("answer")
        self.answered.append((order, reply))

    def close(self) -> None: ...


def reply(status: str) -> Any:
    return SimpleNamespace(content=SimpleNamespace(config_records={"reply": {"status": status}}))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return site_bench.make(tmp_path / "north")


class Run:
    """A worker whose coordinator answers from memory."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, orders: list[Any], replies: list[Any]) -> None:
        self.link, self.report, self.state = Link(orders), Reports(), "running"
        self.worker = Worker(bench.site)
        assert self.worker.fleet is not None
        self.worker.fleet.close()
        self.worker.fleet = self.link  # type: ignore[assignment]
        self.worker.coordinator.close()
        self.latest = Named(name="0000", sha256=self.worker.store.newest().sha256)  # type: ignore[union-attr]
        monkeypatch.setattr(witness, "look", lambda *_: witness.Seen(3, None))
        self.worker.coordinator = SimpleNamespace(  # type: ignore[assignment]
            url="https://localhost:9",
            status=self.status,
            close=lambda: None,
        )
        self.mark, self.replies = bench.mark, replies
        monkeypatch.setattr(flower_link, "run_app", self.app)
        for name, value in {"POLL": 0.01, "STATUS_EVERY": 0.0, "FIRST_WAIT": 0.01, "MOST_WAIT": 0.02}.items():
            monkeypatch.setattr(worker, name, value)
        monkeypatch.setattr(worker, "prepared", lambda *_: [None])

    def status(self) -> Status:
        done = self.state == "done" or not (self.link.orders or self.replies)
        return Status(
            federation="derm", fingerprint=self.mark, state="done" if done else "running", round=1, rounds=1, time=time.time(), latest=self.latest,
        )  # fmt: skip

    def app(self, *_: Any) -> Any:
        found = self.replies.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    def go(self) -> None:
        with log.reporting(self.report):
            self.worker.run()


def test_an_order_is_answered_and_the_site_says_goodbye(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(bench, monkeypatch, [b"order"], [reply("accepted")])
    run.go()
    assert run.link.answered == [(b"order", run.link.answered[0][1])]
    assert run.report.events()[:4] == ["online", "record", "reading", "ready"]
    assert "answered" in run.report.events()
    assert run.report.events()[-1] == "done"
    assert run.link.calls[-1] == "deactivate"
    assert not run.worker.inflight.exists()
    assert not run.worker.node_file.exists()


def test_an_order_is_on_disk_until_its_answer_is_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(bench, monkeypatch, [b"order"], [KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert run.worker.inflight.read_bytes() == b"order"
    assert run.worker.node_file.read_text() == "7"  # it does not say goodbye: the order belongs to this node
    again = Run(bench, monkeypatch, [], [reply("accepted")])
    again.state = "done"  # the order comes before the end
    again.go()
    assert again.link.calls[0] == "adopt"
    assert [order for order, _ in again.link.answered] == [b"order"]


def test_an_answer_that_does_not_get_through_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(bench, monkeypatch, [b"order"], [reply("accepted"), reply("accepted")])
    run.link.fails["answer"] = [NetworkError("the upload was cut")]
    run.go()
    assert len(run.link.answered) == 1
    assert "offline" in run.report.events()


def test_a_coordinator_that_is_gone_after_its_run_was_done_is_called_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Run(bench, monkeypatch, [], [])
    first.state = "done"
    first.go()
    later = Run(bench, monkeypatch, [], [])
    real, away = later.status, [1]

    def status() -> Status:
        if away:
            away.pop()
            raise NetworkError("nobody listens")
        return real()

    later.worker.coordinator.status = status  # type: ignore[method-assign]
    later.go()
    said = [facts["line"] for event, facts in later.report.said if event == "offline"]
    assert said == ["nobody listens; when it was last seen, its run was done after round 1, and release 0000 is here"]

    more = Run(bench, monkeypatch, [b"order"], [reply("accepted"), reply("accepted")])  # new rounds followed
    more.link.fails["answer"] = [NetworkError("the upload was cut")]
    more.go()
    assert [facts["line"] for event, facts in more.report.said if event == "offline"] == ["the upload was cut"]


def test_a_void_node_is_registered_again_and_its_order_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(bench, monkeypatch, [b"first", b"second"], [reply("accepted"), reply("accepted")])
    run.link.fails["answer"] = [NodeUnknown("401")]
    run.go()
    assert [order for order, _ in run.link.answered] == [b"second"]
    assert run.link.calls.count("activate") == 2
    assert "reconnect" in run.report.events()


def test_a_withdrawn_order_is_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(bench, monkeypatch, [b"first", b"second"], [reply("accepted")])
    run.link.fails["open"] = [Withdrawn("withdrawn")]
    run.go()
    assert [order for order, _ in run.link.answered] == [b"second"]


def test_a_failure_here_is_silence_and_stays_silence_after_the_deadline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(bench, monkeypatch, [b"order"], [RoundFailed("x"), RoundFailed("x"), reply("plan_time")])
    run.go()
    assert run.link.answered == []
    assert not run.worker.inflight.exists()
    again = Run(bench, monkeypatch, [b"order"], [reply("plan_time")])
    again.go()
    assert len(again.link.answered) == 1  # an old plan that was never worked on is refused as any other


def test_a_failure_of_one_order_says_nothing_of_the_next(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = [RoundFailed("x"), reply("plan_time"), reply("plan_time")]
    run = Run(bench, monkeypatch, [b"first", b"second"], replies)
    run.go()
    assert [order for order, _ in run.link.answered] == [b"second"]


def test_an_order_that_waits_for_a_person_for_days_is_tried_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(bench, monkeypatch, [b"order"], [*[RoundFailed("waits for approval")] * 2000, reply("accepted")])
    monkeypatch.setattr(worker, "MOST_WAIT", 0.0)
    run.go()
    assert len(run.link.answered) == 1


def test_an_order_survives_a_disk_that_is_full_for_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(bench, monkeypatch, [b"order"], [reply("accepted")])
    real, left = worker.write_atomic, [2]

    def full(path: Path, data: bytes, mode: int = 0o644) -> None:
        if path.name == "inflight" and left[0]:
            left[0] -= 1
            raise OSError(28, "No space left on device", str(path))
        real(path, data, mode)

    monkeypatch.setattr(worker, "write_atomic", full)
    run.go()
    assert [order for order, _ in run.link.answered] == [b"order"]
    assert run.report.events().count("trouble") == 2


def test_another_federations_coordinator_gets_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(bench, monkeypatch, [b"order"], [reply("accepted")])
    run.mark = "b" * 64
    left = [3]

    def sleep(_: float) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(worker.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert run.link.calls == []
    assert "another federation" in run.report.said[0][1]["line"]


@pytest.mark.parametrize(("ahead", "words"), [(3600.0, "3600.0 s ahead of"), (-3600.0, "3600.0 s behind")])
def test_a_clock_that_is_off_is_told_and_nothing_is_asked_before_it_is_set(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ahead: float, words: str
) -> None:
    run = Run(bench, monkeypatch, [b"order"], [reply("accepted")])
    real, wrong = run.status, [ahead, ahead]

    def status() -> Status:
        if not wrong:
            return real()
        assert not run.link.calls
        return real().model_copy(update={"time": time.time() - wrong.pop()})

    run.worker.coordinator.status = status  # type: ignore[method-assign]
    run.go()
    assert run.report.events()[:3] == ["offline", "offline", "online"]
    first = run.report.said[0][1]["line"]
    assert words in first and "set it by NTP" in first
    assert "answered" in run.report.events()


@pytest.mark.parametrize(
    ("theirs", "asked", "heard", "off"),
    [
        (100.0, 100.0, 100.1, False),
        (100.0, 104.9, 105.0, False),
        (100.0, 106.0, 106.1, True),
        (100.0, 104.0, 130.0, False),  # a slow answer says little: it may have been given at once
        (1000.0, 701.0, 701.1, False),
        (1000.0, 690.0, 699.0, True),
    ],
)
def test_a_clock_is_off_only_where_a_slow_line_cannot_explain_it(
    theirs: float, asked: float, heard: float, off: bool
) -> None:
    status = Status(
        federation="derm", fingerprint="a" * 64, state="running", round=1, rounds=1, time=theirs, latest=Named(name="0000", sha256="a" * 64)
    )  # fmt: skip
    assert status.clock(asked, heard) == (pytest.approx((asked + heard) / 2 - theirs), off)


def test_a_site_that_only_receives_goes_on_with_a_clock_that_is_off(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(bench, monkeypatch, [], [])
    with pytest.raises(NetworkError, match="set it by NTP"):
        run.worker._hello(run.status(), 3600.0, True)
    run.worker.contributes = False
    with log.reporting(run.report):
        run.worker._hello(run.status(), 3600.0, True)
    assert run.report.events() == ["online"]


def test_only_one_worker_for_a_folder(bench: Bench) -> None:
    with worker.only_one(bench.site), pytest.raises(StateError, match="another"), worker.only_one(bench.site):
        pass


@pytest.mark.parametrize("carried", [True, False])
def test_a_new_base_network_is_told_and_the_cohort_is_read_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, carried: bool
) -> None:
    facts = {"before": "a" * 64, "after": "b" * 64, "last": 0, "map_sha256": "c" * 64, "figures": {}}
    changes = {"carried": (Carry.model_validate(facts),)} if carried else {}
    run = Run(bench, monkeypatch, [b"order"], [reply("accepted")])

    def fetch(*_: Any) -> Release:
        target = bench.folder / "releases" / "0001"
        site_bench.make_release(target, bench.key, fingerprint=bench.mark, encoder_sha256="b" * 64, **changes)
        return run.worker.store.open("0001")

    def app(*_: Any) -> Any:
        run.latest = Named(name="0001", sha256="d" * 64)
        return run.replies.pop(0)

    monkeypatch.setattr(run.worker.store, "fetch", fetch)
    monkeypatch.setattr(flower_link, "run_app", app)
    run.go()
    assert run.report.events().count("reading") == 2
    (line,) = [fields["line"] for event, fields in run.report.said if event == "base"]
    assert ("came along by a map" if carried else "rows of another hash are not used") in line
