"""`ledger show` draws what is spent and left; `ledger verify` replays every rule and asks two accountants."""

import dataclasses
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import Bench

from sgps_client import ledger_verify, ledger_view, officer, records
from sgps_client import round as rounds
from sgps_client.ledger_verify import verify
from sgps_client.ledger_view import BAR, overview
from sgps_client.round import answer, open_ledger
from sgps_privacy import accountant, chain, engine, statement
from sgps_privacy.errors import Refused
from sgps_privacy.events import Event

ROOT = Path(__file__).resolve().parents[2]
FIRST = {**site_bench.settings("")["cohorts"][0], "budget": {"epsilon": 5.0, "delta": 1e-5}}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two federations over one ledger: a round of the first was sent, one of the second was lost."""
    root = tmp_path_factory.mktemp("ledger")
    found = site_bench.make(root / "north", cohorts=[FIRST])
    other = site_bench.make(root / "other", state="../north/state", cohorts=[FIRST])

    def die(*_: Any) -> bytes:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "_wait", lambda _: None)
        ask(found, 2.0)
        patch.setattr(rounds, "_noised", die)
        with pytest.raises(Killed):
            ask(other, 2.5)
    return found


@pytest.fixture
def bench(template: Bench, tmp_path: Path) -> Bench:
    shutil.copytree(template.folder, tmp_path / "north")
    return dataclasses.replace(template, folder=tmp_path / "north")


def ask(bench: Bench, sigma: float) -> None:
    records.prepared(bench.site, bench.release, "first")
    order = bench.plan(terms=bench.terms(sigma=sigma)).sign(bench.key)
    assert answer(bench.site, order.text, order.signature, bench.start()).status == "accepted"


def drawn(bench: Bench, encoding: str = "utf-8", width: int = 120) -> str:
    out = io.BytesIO()
    file = io.TextIOWrapper(out, encoding=encoding)
    overview(bench.file).draw(Console(file=file, width=width, highlight=False, markup=False))
    file.flush()
    return out.getvalue().decode(encoding)


def test_what_is_spent_and_left_by_cohort_federation_and_round(bench: Bench) -> None:
    (account,) = overview(bench.file).facts()["cohorts"]
    events = [Event(2.0, 1.0, 1), Event(2.5, 1.0, 1)]
    total, first, second = (accountant.epsilon(e, 1e-5) for e in (events, events[:1], events[1:]))
    assert account["epsilon"] == total and account["left"] == 5.0 - total
    assert [(s["name"], s["rounds"], s["epsilon"]) for s in account["federations"]] == [
        ("derm", 1, first),
        ("", 1, second),
    ]
    assert [(c["state"], c["before"], c["after"], c["left"]) for c in account["rounds"]] == [
        ("committed", 0.0, first, 5.0 - first),
        ("lost", first, total, 5.0 - total),
    ]
    assert [e["kind"] for e in overview(bench.file).facts()["entries"]] == ["COHORT", "CHARGE", "COMMIT", "CHARGE"]


def test_bars_are_as_long_as_what_they_stand_for_and_ascii_where_they_must(bench: Bench) -> None:
    for encoding, full, empty in (("utf-8", "█", "░"), ("ascii", "#", ".")):
        text = drawn(bench, encoding)
        bars = [line for line in text.splitlines() if full in line]
        assert len(bars) == 5  # all, two federations, two rounds
        assert all(line.count(full) + sum(map(line.count, empty)) >= BAR for line in bars)
        (account,) = overview(bench.file).accounts
        assert abs(bars[0].count(full) - BAR * account.epsilon / account.budget) <= 1
        assert abs(sum(bar.count(full) for bar in bars[3:]) - bars[0].count(full)) <= 1  # one round after the other
        assert "left" in text.splitlines()[0]
        assert "lost" in bars[4] and "committed" in bars[3]


def test_a_narrow_terminal_loses_no_figure(bench: Bench) -> None:
    text = drawn(bench, width=68)
    for figure in ("0.000", "5", "lost"):
        assert figure in text
    assert all(e["hash"][:12] in text for e in overview(bench.file).entries)


def test_an_empty_ledger_says_so(tmp_path: Path) -> None:
    found = site_bench.make(tmp_path / "north")
    assert "no cohort yet" in overview(found.file).text()
    assert verify(found.file).facts() == {"entries": 0, "ok": True, "problems": [], "accounts": []}


def test_a_round_that_is_forgiven_is_shown_and_not_spent(bench: Bench) -> None:
    with open_ledger(bench.site) as ledger:
        lost = ledger.history()[-1]
        ledger.forgive(lost["federation"], lost["round"], True, "Dr Officer")
    (account,) = overview(bench.file).facts()["cohorts"]
    assert [c["state"] for c in account["rounds"]] == ["committed", "forgiven"]
    assert account["epsilon"] == account["rounds"][1]["before"] == account["rounds"][1]["after"]
    assert verify(bench.file).problems == ()


def test_both_accountants_agree_on_the_facts(bench: Bench) -> None:
    found = verify(bench.file)
    assert found.problems == () and found.exit_code == 0 and found.entries == 4
    assert [o.rounds for o in found.opinions] == [2, 1, 1]
    for o in found.opinions:
        assert o.agree and 0 < o.epsilon_prv - o.epsilon < 0.012 < o.epsilon_rdp - o.epsilon
        assert o.mu == pytest.approx(accountant.gaussian_mu(o.epsilon, 1e-5), rel=1e-4)
        assert o.mu_prv == pytest.approx(o.mu, rel=0.01)


@pytest.mark.parametrize(
    "events", [[(0.6, 1.0, 1)], [(8.5, 1.0, 200)], [(1e4, 1.0, 1)], [(2.0, 0.05, 50), (3.0, 1.0, 1)]]
)
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_the_accountants_agree_where_rounds_differ(events: list[tuple[float, float, int]], delta: float) -> None:
    """Nothing of one is used by the other."""
    found = ledger_verify._opinion("first", None, [Event(*e) for e in events], delta)
    assert found.agree, found.line()
    wrong = ledger_verify._opinion("first", None, [Event(e[0] * 0.9, *e[1:]) for e in events], delta)
    assert wrong.epsilon_prv >= found.epsilon_prv


@pytest.mark.parametrize(
    ("whose", "name", "off"),
    [
        (engine, "prv_epsilon", -0.02),
        (engine, "prv_epsilon", engine.PRV_ERROR + 0.02),
        (statement, "rdp_epsilon", -0.001),
    ],
)
def test_an_accountant_that_differs_is_a_problem(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, whose: Any, name: str, off: float
) -> None:
    """Renyi divergences give an upper bound; the other one may lie above by its own error."""
    monkeypatch.setattr(whose, name, lambda events, delta: accountant.epsilon(events, delta) + off)
    found = verify(bench.file)
    assert len(found.problems) == 3 and found.exit_code == 4
    assert "the accountants differ" in found.problems[0]


# --- a file that was edited by somebody who knows the format -----------------------------------------------------------


def rewritten(bench: Bench, change: Callable[[str, dict[str, Any]], None]) -> None:
    """Changes the entries, links them anew, points each COMMIT to the new hash and renames the outbox's files: all hashes hold."""
    with open_ledger(bench.site) as ledger:
        path, box = bench.site.state / "ledger.sqlite", ledger.outbox
    raw = sqlite3.connect(path)
    for name in ("no_update", "no_delete", "no_replace"):
        raw.execute(f"drop trigger {name}")
    rows = raw.execute("select * from entries order by seq").fetchall()
    raw.execute("delete from entries")
    previous, new = chain.START, dict[str, str]()
    for *row, old in rows:
        body = json.loads(row[5])
        change(row[1], body)
        body = {k: new.get(v, v) if k == "charge" else v for k, v in body.items()}
        row[5] = json.dumps(body, sort_keys=True)
        previous = new[old] = chain._link(previous, row)
        raw.execute("insert into entries values (?,?,?,?,?,?,?)", (*row, previous))
    raw.commit()
    raw.close()
    for old in box.charges():
        box.path(old).rename(box.path(new[old]))


@pytest.mark.parametrize(
    ("kind", "field", "value", "word", "code"),
    [
        ("CHARGE", "sigma", 20.0, "states sigma 2.0, charged 20.0", 4),
        ("CHARGE", "steps", 2, "states steps 1, charged 2", 4),
        ("CHARGE", "plan_hash", "0" * 64, "states plan_hash", 4),
        ("CHARGE", "clip", 0.5, "states clip 1.0, charged 0.5", 4),
        ("COHORT", "epsilon", 1.5, "has spent epsilon", 4),
        ("COMMIT", "payload", "0" * 64, "is not the one that was committed", 7),
    ],
)
def test_an_edit_with_all_its_hashes_is_found(
    bench: Bench, kind: str, field: str, value: Any, word: str, code: int
) -> None:
    rewritten(bench, lambda k, body: body.update({field: value}) if k == kind else None)
    found = verify(bench.file)
    assert any(word in p for p in found.problems), found.problems
    assert found.exit_code == code
    rewritten(bench, lambda *_: None)


def test_hashes_that_hold_alone_are_no_problem(bench: Bench) -> None:
    rewritten(bench, lambda *_: None)
    assert verify(bench.file).problems == ()


def test_a_forgiveness_of_what_has_left_is_found(bench: Bench) -> None:
    with open_ledger(bench.site) as ledger, ledger.chain.transaction():
        sent = next(e for e in ledger.history() if e["kind"] == "CHARGE")
        ledger.chain.append("FORGIVE", {"charge": sent["hash"], "officer": "x"}, sent["federation"], sent["round"])
    found = verify(bench.file)
    assert any("which is not charged or has left" in p for p in found.problems) and found.exit_code == 7


def test_a_budget_that_was_raised_before_a_charge_holds_for_it(bench: Bench) -> None:
    with open_ledger(bench.site) as ledger:
        ledger.raise_budget("first", 15.0, "Dr Officer")
        sent = next(e for e in ledger.history() if e["kind"] == "CHARGE")
        facts = {n: sent[n] for n in ("plan_hash", "plan_kind", "clip", "cohort", "numbers", "q", "steps")}
        with ledger.chain.transaction():
            ledger.chain.append("CHARGE", {**facts, "sigma": 0.6}, sent["federation"], 2)
    found = verify(bench.file)
    assert found.problems == () and 5.0 < found.opinions[0].epsilon < 15.0


def test_a_second_commit_of_one_charge_is_found(bench: Bench) -> None:
    with open_ledger(bench.site) as ledger, ledger.chain.transaction():
        sent = next(e for e in ledger.history() if e["kind"] == "COMMIT")
        facts = {"charge": sent["charge"], "payload": sent["payload"]}
        ledger.chain.append("COMMIT", facts, sent["federation"], sent["round"], turn=1)
    found = verify(bench.file)
    assert found.problems == ("entry 5 commits round 1 without a charge of its own",) and found.exit_code == 7


def test_a_missing_or_exchanged_outbox_file_is_found(bench: Bench) -> None:
    (file,) = (bench.site.state / "outbox").glob("*.out")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert "does not match its digest" in verify(bench.file).problems[0]
    file.unlink()
    found = verify(bench.file)
    assert "is gone" in found.problems[0] and found.exit_code == 7
    file.write_bytes(whole)
    (file.parent / f"{'0' * 64}.out").write_bytes(whole)
    with pytest.raises(Refused) as caught:
        verify(bench.file)
    assert caught.value.code == "rolled_back"


def client(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(ROOT / part) for part in ("sgps", "privacy", "client", "server"))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "sgps_client.cli", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_the_commands_print_lines_and_json_and_end_with_their_codes(bench: Bench) -> None:
    shown = client("ledger", "show", "--config", bench.file, PYTHONIOENCODING="ascii")
    assert shown.returncode == 0 and "#" in shown.stdout and "\x1b" not in shown.stdout
    as_json = json.loads(client("ledger", "show", "--config", bench.file, "--json").stdout)
    assert as_json["cohorts"][0]["rounds"][0]["state"] == "committed"
    done = client("ledger", "verify", "--config", bench.file)
    assert done.returncode == 0 and "Opacus PRV" in done.stdout and not done.stderr
    rewritten(bench, lambda k, body: body.update(sigma=20.0) if k == "CHARGE" else None)
    done = client("ledger", "verify", "--config", bench.file, "--json")
    assert done.returncode == 4 and not json.loads(done.stdout)["ok"]
    ledger = bench.site.state / "ledger.sqlite"
    ledger.write_bytes(ledger.read_bytes()[:5000])
    done = client("ledger", "verify", "--config", bench.file)
    assert done.returncode == 7 and done.stderr.count("\n") == 1 and "put the newest copy" in done.stderr


def test_only_the_officer_writes(bench: Bench) -> None:
    """What shows and what verifies leave the file as it was."""
    before = (bench.site.state / "ledger.sqlite").read_bytes()
    overview(bench.file).text()
    verify(bench.file)
    assert (bench.site.state / "ledger.sqlite").read_bytes() == before
    officer.raise_budget(bench.file, "first", 6.0, "Dr Officer")
    assert (bench.site.state / "ledger.sqlite").read_bytes() != before
    assert ledger_view.overview(bench.file).accounts[0].budget == 5.0  # site.yaml holds it down
