"""`sgps-client plans`: what a person sees of a plan before anything is read, and what a yes is."""

import json
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import Bench

from sgps.errors import RefusedError
from sgps_client import app, approval, cli, log, officer
from sgps_client import round as rounds
from sgps_client.round import RoundFailed, answer
from sgps_privacy.egress import Reply


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return site_bench.make(tmp_path / "north", approve="manual")


@pytest.fixture
def plans(bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sgps-client", "plans", *words, "--config", str(bench.file)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return command


def order(bench: Bench, **changes: Any) -> Reply:
    signed = bench.plan(**changes).sign(bench.key)
    return answer(bench.site, signed.text, signed.signature, bench.start(), wait=False)


def put(bench: Bench, **changes: Any) -> str:
    """A plan arrives; nobody has said yes. Returns its hash."""
    with pytest.raises(RoundFailed, match="waits for approval"):
        order(bench, **changes)
    return bench.plan(**changes).sha256()


def test_a_person_sees_whose_patients_and_what_they_pay_and_says_yes(bench: Bench, plans: Any) -> None:
    assert plans("list") == (0, "no plan has been put to a person\n", "")
    name = put(bench)
    line = (
        f"{name[:12]}  round 1 (rows)  cohort first: 5 patients (patient_id)  noise 1.391  epsilon 3.000 in this federation at delta "
        "1e-05 (mu 0.719), over all federations from 0.000 to 3.000 of 3  "
    )
    assert plans("list") == (0, f"{line}waits for approval\n", "")
    (facts,) = json.loads(plans("list", "--json")[1])["plans"]
    assert (facts["plan"], facts["patients"], facts["budget"], facts["officer"]) == (name, 5, 3.0, "")
    assert plans("approve", name[:12], "--officer", "Dr Officer") == (0, f"{line}approved by Dr Officer\n", "")
    assert plans("list")[1].endswith("approved by Dr Officer\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("0" * 12, "--officer", "Dr Officer"), "names 0 plans; one is needed"),
        (("", "--officer", "Dr Officer"), "names 0 plans; one is needed"),
        (("{plan}", "--officer", " "), "--officer: is empty - give the name of the officer"),
        (("{plan}",), "Missing option '--officer'"),
    ],
)
def test_a_yes_names_one_plan_and_an_officer(bench: Bench, plans: Any, words: tuple[str, ...], said: str) -> None:
    name = put(bench)
    code, out, err = plans("approve", *(word.format(plan=name) for word in words))
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
    assert plans("list")[1].endswith("waits for approval\n")


def test_a_plan_whose_round_is_over_is_called_so_and_takes_no_yes(bench: Bench, plans: Any) -> None:
    name = put(bench)
    site_bench.make_release(bench.folder / "releases" / "0001", bench.key)
    assert plans("list")[1].endswith("of 3  its round is over\n")
    assert json.loads(plans("list", "--json")[1])["plans"][0]["over"] is True
    code, out, err = plans("approve", name[:12], "--officer", "Dr Officer")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"{name[:12]}: is of round 1, which is over: release 0001 is here - wait for the next round" in err
    assert json.loads((bench.site.state / approval.FILE).read_text())[0]["officer"] == ""


def test_a_yes_after_answer_at_is_called_so_and_holds_for_the_next_attempt(bench: Bench, plans: Any) -> None:
    past = {"issued": time.time() - 2, "answer_at": time.time() - 1}
    name = put(bench, **past)
    assert plans("approve", name[:12], "--officer", "Dr Officer")[0] == 0
    with pytest.raises(RoundFailed, match=r"approved, but answer_at has passed; nothing was charged - .*next attempt"):
        order(bench, **past)
    assert order(bench, attempt=2).status == "accepted"


def test_what_a_waiting_plan_says_at_every_try_is_said_once(bench: Bench) -> None:
    said: list[str] = []
    times = {"issued": time.time(), "answer_at": time.time() + 60, "deadline": time.time() + 120}
    with log.reporting(log.Report(None, said.append)):
        for attempt in (1, 1, 1, 2, 2):
            with pytest.raises(RoundFailed) as failed:
                order(bench, attempt=attempt, **times)
            app._tell(failed.value)
    first = ["plan received", "nothing is spent yet", "waits for approval"]
    assert len(said) == 4 and all(word in line for word, line in zip([*first, "plan received"], said, strict=True))


def test_a_list_of_an_earlier_version_is_read(bench: Bench, plans: Any) -> None:
    name = put(bench)
    (entry,) = json.loads((bench.site.state / approval.FILE).read_text())
    old = {key: entry[key] for key in ("plan", "round", "kind", "cohort", "sigma", "epsilon", "mu", "delta", "officer")}
    (bench.site.state / approval.FILE).write_text(json.dumps([old]))
    code, out, _ = plans("approve", name[:8], "--officer", "Dr Officer")
    assert code == 0 and "cohort first  noise 1.391" in out
    (bench.site.state / approval.FILE).write_text("[{}]")
    code, _, err = plans("list")
    assert code == 7 and "approvals.json: is damaged - remove it: every plan is asked for again" in err


WHO = ("--officer", "Dr Officer")


def charges(bench: Bench) -> list[dict[str, Any]]:
    with rounds.open_ledger(bench.site) as ledger:
        return [entry for entry in ledger.history() if entry["kind"] == "CHARGE"]


def test_a_yes_is_taken_back_and_given_again(bench: Bench, plans: Any) -> None:
    name = put(bench)
    code, out, err = plans("revoke", name[:12], *WHO)
    assert (code, out) == (5, "") and f"{name[:12]}: is not approved - " in err and err.count("\n") == 1
    plans("approve", name[:12], *WHO)
    code, out, _ = plans("revoke", name[:12], "--officer", "Dr Other")
    end = "  approved by Dr Officer, taken back by Dr Other; waits for approval\n"
    assert code == 0 and out.endswith(end) and plans("list")[1].endswith(end)
    assert put(bench, attempt=2) == name and charges(bench) == []
    (facts,) = json.loads(plans("list", "--json")[1])["plans"]
    assert (facts["officer"], facts["revoked"]) == ("Dr Officer", "Dr Other")
    assert plans("approve", name[:12], *WHO)[1].endswith("  approved by Dr Officer\n")
    assert order(bench, attempt=3).status == "accepted"


def test_a_yes_is_taken_back_while_the_records_are_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    name, real = put(bench), rounds.prepared
    approval.approve(bench.site, name, "Dr Officer")

    def reading(*args: Any) -> Any:
        officer.revoke(bench.file, name, "Dr Officer")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "prepared", reading)
        with pytest.raises(
            RoundFailed, match="approval was taken back while the records were read; nothing was charged"
        ):
            order(bench)
    assert charges(bench) == []
    put(bench)


def test_a_yes_that_was_charged_is_not_taken_back(bench: Bench, plans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, real = put(bench), rounds._noised
    approval.approve(bench.site, name, "Dr Officer")
    tried: list[Future[Any]] = []
    with ThreadPoolExecutor() as other:

        def noised(*args: Any) -> bytes:  # between CHARGE and COMMIT
            tried.append(other.submit(officer.revoke, bench.file, name, "Dr Officer"))
            return real(*args)

        monkeypatch.setattr(rounds, "_noised", noised)
        assert order(bench).status == "accepted"
        assert isinstance(tried[0].exception(), RefusedError)
    code, out, err = plans("revoke", name[:12], *WHO)
    assert (code, out) == (5, "") and err.count("\n") == 1
    assert f"{name[:12]}: is charged to cohort first already, and its noised sum may have left - " in err
    assert order(bench, attempt=2).status == "accepted"


def test_a_yes_is_taken_back_where_the_charge_failed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    name = put(bench)
    approval.approve(bench.site, name, "Dr Officer")
    with monkeypatch.context() as patch:
        patch.setattr(rounds.Ledger, "charge", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        with pytest.raises(OSError, match="no room"):
            order(bench)
    assert officer.revoke(bench.file, name, "Dr Officer").revoked == "Dr Officer"
    put(bench)


def test_a_yes_is_to_the_cohort_that_it_names(bench: Bench, plans: Any) -> None:
    """The round turns to another cohort: it is asked for anew, and the officer answers for the one that was asked for last."""
    name = put(bench)
    plans("approve", name, *WHO)
    facts = {"sigma": 1.391, "epsilon": 3.0, "mu": 0.719, "delta": 1e-5}
    for _ in range(2):
        assert not approval.given(bench.site, bench.plan(), "second", facts, {})
    assert [(entry.cohort, entry.approved) for entry in approval.asked(bench.site.state)] == [
        ("first", True),
        ("second", False),
    ]
    assert "cohort second  noise" in plans("approve", name[:8], *WHO)[1]
    assert approval.given(bench.site, bench.plan(), "second", facts, {})
    for cohort in ("second", "first"):
        assert f"cohort {cohort}" in plans("revoke", name[:8], *WHO)[1]
        assert not approval.given(bench.site, bench.plan(), cohort, facts, {})
    assert plans("revoke", name[:8], *WHO)[0] == 5


def test_where_nobody_is_asked_nothing_is_taken_back(bench: Bench, plans: Any) -> None:
    name = put(bench)
    plans("approve", name, *WHO)
    bench.write(approve="automatic")
    code, out, err = plans("revoke", name, *WHO)
    assert (code, out) == (3, "") and "approve: automatic, so plans are carried out without a person's yes - " in err


def test_a_lost_round_is_taken_back_once_it_is_forgiven(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    name = put(bench)
    approval.approve(bench.site, name, "Dr Officer")
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_noised", lambda *_: (_ for _ in ()).throw(OSError("no power")))
        with pytest.raises(OSError, match="no power"):
            order(bench)
    with pytest.raises(RefusedError, match="is charged to cohort first already"):
        officer.revoke(bench.file, name, "Dr Officer")
    with rounds.open_ledger(bench.site) as ledger:
        ledger.forgive(bench.mark, 1, True, "Dr Officer")
    assert officer.revoke(bench.file, name, "Dr Officer").revoked == "Dr Officer"
    put(bench, attempt=2)
