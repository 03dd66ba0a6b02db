"""The round loop over real files, keys and contributions: a coordinator that dies while a round closes, a site that withdraws before
it starts again, a site that is late. A fault is raised in place of the kill."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode  # noqa: TID251  as Flower makes it for a node that is gone
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import local_rounds
from local_rounds import SITES, run

from sgps.errors import InputError, StateError
from sgps.memory import COUNTS, ROWS, Contribution, pool
from sgps.release import GENERATOR, MANIFEST, Release
from sgps.signing import load_private
from sgps_privacy import egress
from sgps_server import audit, enrolment, releases, repool, rounds
from sgps_server.checkpoint import Checkpoint, read_state
from sgps_server.cli import app
from sgps_server.config import Folder
from sgps_server.replies import MOST_TEXT


class Killed(BaseException):
    pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    from flwr.supercore.task_identity import TaskIdentity  # noqa: TID251  `Message(...)` asks it for its source

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return local_rounds.make(tmp_path)


def opened(folder: Folder, number: int) -> Release:
    key = load_private(folder.keys / "plan.key").public_key()
    return Release.open(folder.releases / releases.name_of(number), key=key)


def holds(folder: Folder, number: int, sites: Iterable[str], rounds: Iterable[int] = ()) -> str:
    """Release `number` is that of `sites`, in rounds, statements, rows and counts, and the audit chain fits. rounds: that were run, where
    that is not all. Returns the hash of its manifest."""
    release = opened(folder, number)
    pairs = [(n, s) for n in [*rounds] or range(1, number + 1) for s in sorted(sites)]
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


def test_a_contribution_whose_line_in_the_record_a_kill_prevented_gets_it_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = ("contribution", "south")
    dies(monkeypatch, folder, audit.Audit, "add", lambda _, event, **f: (event, f.get("site")) == last)
    assert [r.site for r in read_state(folder.state).accepted] == ["north", "south"]
    run(folder)
    lines = [e for e in audit.read(folder.audit) if e["event"] == "contribution"]
    stored = {r.site: (r.receipt, r.sha256) for r in read_state(folder.state).accepted}
    assert sorted(e["site"] for e in lines) == sorted(SITES)
    assert {e["site"]: (e["receipt"], e["arrays"]) for e in lines} == stored


def test_a_release_that_a_kill_left_half_written_is_cleared_away(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # a kill clears nothing away
        dies(monkeypatch, folder, Path, "rename", lambda *_: True)
    assert [p.name.startswith(".0001.") for p in sorted(folder.releases.iterdir())] == [True, False]
    run(folder)
    assert [p.name for p in sorted(folder.releases.iterdir())] == ["0000", "0001"]


def test_a_release_of_which_the_checkpoint_knows_nothing_is_not_taken(folder: Folder) -> None:
    """The next release would be without those who paid for this one."""
    run(folder)
    (folder.state / "checkpoint.json").unlink()
    with pytest.raises(StateError, match="repool"):
        run(folder, 2)
    with pytest.raises(StateError, match="the checkpoint does not have"):
        repool.repool(folder)
    assert read_state(folder.state).done == 0


def test_a_site_that_said_nothing_is_asked_once_more_although_a_quorum_is_here(folder: Folder) -> None:
    """Its sum may be paid for and late: the next attempt gets the same bytes."""
    times = {"answer_after": 0.2, "deadline_after": 0.6}
    line = local_rounds.Line(folder, silent=lambda site, attempt: site == "west" and attempt == 1)
    run(folder, 1, line, **times)
    assert line.asked == [*SITES, "west"]
    holds(folder, 1, SITES)
    dumb = local_rounds.Line(folder, silent=lambda site, _: site == "west")
    run(folder, 2, dumb, **times)
    assert dumb.asked == [*SITES, "west"]
    assert [r.sites for r in opened(folder, 2).manifest.rounds] == [SITES, ("north", "south")]


def test_the_next_release_without_a_site_that_withdrew_needs_no_round(folder: Folder) -> None:
    run(folder)
    with pytest.raises(InputError, match="release 0001 holds nothing that can be taken out"):
        repool.repool(folder)
    enrolment.withdraw(folder, "north")
    said = CliRunner().invoke(app, ["releases", "repool", "--json", "--config", str(folder.config)])
    sha256 = holds(folder, 2, ("south", "west"), [1])
    assert json.loads(said.output) == {"name": "0002", "sha256": sha256, "without": ["north"]}
    shown = json.loads(CliRunner().invoke(app, ["status", "--json", "--config", str(folder.config)]).output)
    assert (shown["rounds_done"], shown["rounds"]) == (2, 2)  # federation.yaml still says one
    assert opened(folder, 1).manifest.rounds[0].sites == SITES  # what is out stays as it is
    assert opened(folder, 2).manifest.files[GENERATOR] == opened(folder, 1).manifest.files[GENERATOR]
    with pytest.raises(InputError, match="release 0002 holds nothing"):
        repool.repool(folder)
    assert run(folder, 3).asked == ["south", "west"]
    holds(folder, 3, ("south", "west"), [1, 3])
    for name in ("south", "west"):
        enrolment.withdraw(folder, name)
    assert not repool.repool(folder).release.memory().count.any()


@pytest.mark.parametrize("written", [False, True])
def test_a_crash_on_the_way_to_it_is_healed_by_the_same_command_whoever_withdrew_since(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    run(folder)
    enrolment.withdraw(folder, "north")

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*((Checkpoint, "save", die) if written else (releases, "write", die)))
        with pytest.raises(Killed):
            repool.repool(folder)
    assert read_state(folder.state).done == 1
    if written:
        with pytest.raises(StateError, match="interrupted"):  # before anybody is asked and pays
            run(folder, 2)
    enrolment.withdraw(folder, "west")
    assert repool.repool(folder).without == (("north",) if written else ("north", "west"))
    holds(folder, 2, ("south", "west") if written else ("south",), [1])
    if written:
        assert repool.repool(folder).without == ("west",)
        holds(folder, 3, ("south",), [1])


def test_a_round_that_is_open_comes_first(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    dies(monkeypatch, folder, releases, "write", lambda *_: True)
    enrolment.withdraw(folder, "north")
    with pytest.raises(StateError, match="round 1 is open"):
        repool.repool(folder)
    run(folder)
    checkpoint = Checkpoint(folder.state)
    checkpoint.save(terms={1: {**checkpoint.state.terms[1], "kind": "site_mean"}})
    with pytest.raises(StateError, match="took the means"):
        repool.repool(folder)
    assert releases.names(folder.releases) == ["0000", "0001"]


class Renewed(local_rounds.Line):
    """`west` is lost with its order; when it is back it has a new key, and so another node."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder)
        self._lost: dict[str, Message] = {}

    def _push(self, order: Message) -> str:
        assert order.metadata.dst_node_id in self.sites, "an order for a node that is no more"
        node, name = order.metadata.dst_node_id, super()._push(order)
        if node == 102:
            order.metadata.__dict__["_message_id"] = name
            self._lost[name] = Message(Error(ErrorCode.NODE_UNAVAILABLE), reply_to=order)
        return name

    def collect(self, orders: list[str]) -> list[tuple[str, Message]]:
        for order in self._lost.keys() & {*orders}:
            self.sites[202] = self.sites.pop(102)
            return [(order, self._lost.pop(order))]
        return super().collect(orders)


def test_a_site_that_comes_back_with_a_new_key_is_asked_in_the_next_attempt(folder: Folder) -> None:
    line = run(folder, 1, Renewed(folder), quorum=3, wait_for=3, patience=0.3)
    assert line.asked == [*SITES, "west"]
    holds(folder, 1, SITES)


class Refusing(local_rounds.Line):
    """`west` answers its first order with a word."""

    def __init__(self, folder: Folder, word: str) -> None:
        super().__init__(folder)
        self._word = word

    def _push(self, order: Message) -> str:
        name, site = super()._push(order), self.sites[order.metadata.dst_node_id]
        if self._word and site.identity.site == "west":
            reply = Message(site.record(*egress.refuse(self._word).parts()), dst_node_id=1, message_type="train")
            reply.metadata.__dict__["_src_node_id"] = order.metadata.dst_node_id
            self._replies[name], self._word = reply, ""
        return name


def test_a_word_that_may_pass_is_asked_again_and_a_no_is_not(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PAUSE", 0.0)
    three = {"quorum": 3, "wait_for": 3}
    line = Refusing(folder, "budget")
    with pytest.raises(StateError, match="cannot get more; no from west: budget"):
        run(folder, 1, line, **three)
    assert line.asked == [*SITES]
    again = Refusing(folder, "busy")  # a new life asks again; the others have given
    run(folder, 1, again, **three)
    assert again.asked == ["west", "west"]
    holds(folder, 1, SITES)


def test_who_withdraws_is_not_told_that_a_change_of_the_generator_is_taken_out(folder: Folder) -> None:
    run(folder)
    checkpoint = Checkpoint(folder.state)
    checkpoint.save(terms={1: {**checkpoint.state.terms[1], "kind": "episodes"}})
    assert enrolment.withdraw(folder, "north") == ()


@pytest.mark.parametrize(("means", "room"), [(False, 3), (True, 5)])
def test_a_round_whose_answers_no_release_could_hold_is_refused_before_anybody_pays(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, means: bool, room: int
) -> None:
    """A round of means needs room for the round that uses them, too."""
    run(folder)
    size = (folder.releases / "0001" / MANIFEST).stat().st_size
    for module in ("sgps.release", "sgps_server.releases"):
        monkeypatch.setattr(f"{module}.MANIFEST_LIMIT", size + room * MOST_TEXT)
    line, number = local_rounds.Line(folder), 3 if means else 2
    with pytest.raises(StateError, match=r"round 2 with 3 sites could .* bytes, .* are read - .*new federation"):
        run(folder, number, line, centre_sites=means)
    assert line.asked == []
    if means:
        return
    enrolment.revoke(folder, "west")
    assert run(folder, 2).asked == ["north", "south"]
    assert releases.names(folder.releases) == ["0000", "0001", "0002"]


def test_what_a_site_gave_to_the_generator_stays_in_the_history_when_it_withdraws(folder: Folder) -> None:
    """Later rounds start from it, so the release must go on to say whose it is, and at what price."""
    run(folder)
    checkpoint = Checkpoint(folder.state)
    checkpoint.save(terms={1: {**checkpoint.state.terms[1], "kind": "episodes"}})
    enrolment.withdraw(folder, "north")
    run(folder, 2)
    assert [r.sites for r in opened(folder, 2).manifest.rounds] == [SITES, ("south", "west")]


def test_an_open_round_keeps_its_terms_whatever_the_settings_say_meanwhile(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites that have paid send the same bytes again, and the release states one price."""
    last = ("contribution", "south")
    dies(monkeypatch, folder, audit.Audit, "add", lambda _, event, **f: (event, f.get("site")) == last)
    run(folder, epsilon=1.0, quorum=3, wait_for=3)
    state = read_state(folder.state)
    assert [(r.site, r.sigma) for r in state.accepted] == [(s, state.terms[1]["sigma"]) for s in SITES]
