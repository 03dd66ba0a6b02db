"""Budgets, retries, forgiveness, tampering and roll-back."""

from __future__ import annotations

import math
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import sgps_privacy
from sgps_privacy.accountant import calibrate, epsilon
from sgps_privacy.errors import PrivacyError, Refused
from sgps_privacy.events import Event
from sgps_privacy.ledger import Budget, Ledger, Order
from sgps_privacy.terms import Terms

DELTA = 1e-5
ROWS = Terms("rows", 1.391, 1.0, 1, (1.0,), (("memory.rows",),), 1)


def order(number: int = 1, federation: str = "f", sigma: float = 5.0, cohort: str = "a", **rest: object) -> Order:
    plan = str(rest.pop("plan", f"plan {number}"))
    facts = replace(ROWS, kind="episodes", sigma=sigma, q=rest.pop("q", 1.0), steps=rest.pop("steps", 1))  # type: ignore[arg-type]
    return Order.of(
        facts, federation=federation, round=number, plan_hash=plan, cohort=cohort, echo=rest.pop("echo", None)
    )  # type: ignore[arg-type]


def unused() -> bytes:
    raise AssertionError("trained")


def code(attempt: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        attempt()
    return caught.value.code


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger") as opened:
        opened.open_cohort("a", ["1", "2"], 3.0, DELTA)
        yield opened


def test_an_order_is_charged_with_the_facts_that_the_engine_runs_with() -> None:
    terms = Terms("episodes", 2.685, 0.5, 20, (0.6, 0.8), (("w",), ("b",)), 64)
    made = Order.of(terms, federation="f", round=1, plan_hash="p", cohort="a")
    assert (made.kind, made.event, made.clip) == ("episodes", Event(2.685, 0.5, 20), pytest.approx(1.0))


def test_the_charge_is_durable_before_training_begins(ledger: Ledger, tmp_path: Path) -> None:
    def train() -> bytes:
        raw = sqlite3.connect(f"file:{tmp_path / 'ledger/ledger.sqlite'}?mode=ro", uri=True)
        kinds = [kind for (kind,) in raw.execute("select kind from entries order by seq")]
        raw.close()
        assert kinds == ["COHORT", "CHARGE"]
        return b"x"

    ledger.answer(order(), train)


def test_the_same_plan_again_gets_the_same_bytes_and_costs_nothing(ledger: Ledger) -> None:
    assert ledger.preview(order()) == "new"
    first = ledger.answer(order(), lambda: b"noised")
    assert ledger.preview(order()) == "resend"
    assert ledger.answer(order(), unused) == first == (b"noised", first[1])
    assert ledger.spent("a") == [Event(5.0, 1.0, 1)]


def test_a_preview_writes_nothing(ledger: Ledger) -> None:
    ledger.preview(order())
    assert ledger.verify() == 1


def test_another_plan_for_the_same_round_is_refused(ledger: Ledger) -> None:
    ledger.answer(order(), lambda: b"noised")
    assert code(lambda: ledger.preview(order(plan="other"))) == "round_taken"
    assert code(lambda: ledger.answer(order(plan="other"), unused)) == "round_taken"


def test_a_round_whose_training_fails_is_lost_and_stays_spent(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError):
        ledger.answer(order(), lambda: bytes(1 // 0))
    assert code(lambda: ledger.preview(order())) == "round_lost"
    assert code(lambda: ledger.answer(order(), unused)) == "round_lost"
    assert len(ledger.spent("a")) == 1


# --- budget ------------------------------------------------------------------------------------------------------------


def test_the_last_round_that_fits_is_answered_and_the_next_refused(ledger: Ledger) -> None:
    sigma = calibrate(3.0, DELTA, 4)
    for number in range(1, 5):
        ledger.answer(order(number, sigma=sigma), lambda: b"x")
    assert epsilon(ledger.spent("a"), DELTA) <= 3.0
    assert code(lambda: ledger.preview(order(5, sigma=sigma))) == "budget"
    assert code(lambda: ledger.charge(order(5, sigma=sigma))) == "budget"
    assert code(lambda: ledger.answer(order(5, sigma=sigma), unused)) == "budget"
    assert ledger.answer(order(4, sigma=sigma), unused)[0] == b"x"  # a retry is free, also at the end


def test_a_round_is_refused_whose_noise_is_a_four_hundredth_too_small(ledger: Ledger) -> None:
    assert code(lambda: ledger.preview(order(sigma=0.9975 * calibrate(3.0, DELTA, 1)))) == "budget"


def test_every_step_of_a_round_is_spent(ledger: Ledger) -> None:
    ledger.answer(order(1, sigma=50.0, q=0.5, steps=20), lambda: b"x")
    assert ledger.spent("a") == [Event(50.0, 0.5, 20)]


def test_two_federations_share_one_budget(ledger: Ledger) -> None:
    sigma = calibrate(3.0, DELTA, 2)
    ledger.answer(order(1, "f", sigma), lambda: b"x")
    ledger.answer(order(1, "g", sigma), lambda: b"y")
    assert code(lambda: ledger.preview(order(2, "g", sigma))) == "budget"
    assert len(ledger.spent("a")) == 2 and len(ledger.spent("a", "g")) == 1


def test_sampled_and_full_batch_rounds_share_one_budget(ledger: Ledger) -> None:
    ledger.answer(order(1, sigma=2.0), lambda: b"x")
    assert epsilon([Event(2.0, 0.2, 20)], DELTA) < 3.0
    assert code(lambda: ledger.preview(order(2, sigma=2.0, q=0.2, steps=20))) == "budget"
    ledger.answer(order(2, sigma=2.0, q=0.05, steps=5), lambda: b"y")


def test_each_cohort_has_its_own_budget(ledger: Ledger) -> None:
    ledger.open_cohort("b", ["3"], 3.0, DELTA)
    sigma = calibrate(3.0, DELTA, 1)
    ledger.answer(order(1, sigma=sigma), lambda: b"x")
    assert code(lambda: ledger.preview(order(2, sigma=sigma))) == "budget"
    ledger.answer(order(2, sigma=sigma, cohort="b"), lambda: b"y")


def test_a_lower_budget_in_the_sites_file_holds_at_once_and_a_higher_one_needs_the_officer(tmp_path: Path) -> None:
    sigma = calibrate(3.0, DELTA, 1)
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["1"], 3.0, DELTA)
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["1"], 1.0, 1e-6)
        assert ledger.budget("a") == Budget(1.0, 1e-6)
        assert code(lambda: ledger.preview(order(sigma=sigma))) == "budget"
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["1"], 8.0, 1e-4)
        assert ledger.budget("a") == Budget(3.0, DELTA)
        assert code(lambda: ledger.preview(order(sigma=sigma / 2))) == "budget"
        ledger.raise_budget("a", 8.0, "Dr Datenschutz")
        assert ledger.budget("a") == Budget(8.0, DELTA)
        assert ledger.preview(order(sigma=sigma / 2)) == "new"
        assert ledger.history()[-1]["officer"] == "Dr Datenschutz"
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["1"], 5.0, DELTA)
        assert ledger.budget("a").epsilon == 5.0


def test_a_budget_that_was_raised_twice_is_the_newest(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["1"], 3.0, DELTA)
        for higher in (4.0, 5.0):
            ledger.raise_budget("a", higher, "Dr Datenschutz")
    with Ledger(tmp_path / "ledger") as ledger:
        assert ledger.budget("a").epsilon == 5.0


@pytest.mark.parametrize(("eps", "officer"), [(3.0, "x"), (2.0, "x"), (math.nan, "x"), (math.inf, "x"), (4.0, " ")])
def test_a_budget_is_raised_by_name_and_only_upwards(ledger: Ledger, eps: float, officer: str) -> None:
    with pytest.raises(PrivacyError):
        ledger.raise_budget("a", eps, officer)
    assert ledger.verify() == 1


@pytest.mark.parametrize(("eps", "delta"), [(0.0, DELTA), (math.nan, DELTA), (math.inf, DELTA), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan)])  # fmt: skip
def test_a_cohort_without_a_sound_budget_is_not_opened(ledger: Ledger, eps: float, delta: float) -> None:
    with pytest.raises(PrivacyError):
        ledger.open_cohort("b", ["3"], eps, delta)


def test_an_unknown_cohort_is_a_mistake_of_the_caller(ledger: Ledger) -> None:
    with pytest.raises(PrivacyError, match="open it first"):
        ledger.preview(order(cohort="z"))


def test_the_next_cohort_is_the_oldest_that_has_not_paid_for_this_kind(ledger: Ledger) -> None:
    ledger.open_cohort("b", ["3"], 3.0, DELTA)
    rows = [Order.of(ROWS, federation="f", round=n, plan_hash=str(n), cohort=c) for n, c in ((1, "a"), (2, "b"))]
    assert ledger.next_cohort("f", "rows", 1) == "a"
    ledger.answer(rows[0], lambda: b"x")
    assert ledger.next_cohort("f", "rows", 1) == "a"  # a retry of round 1
    assert ledger.next_cohort("f", "rows", 2) == "b"
    ledger.answer(rows[1], lambda: b"y")
    assert ledger.next_cohort("f", "rows") is None
    assert ledger.next_cohort("f", "rows", 2) == "b"
    assert ledger.next_cohort("g", "rows") == "a"  # the budget, not the helper, ends it there


def test_a_cohort_without_budget_or_not_opened_has_no_next_turn(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["1"], 3.0, DELTA)
        ledger.open_cohort("b", ["2"], 3.0, DELTA)
        ledger.answer(order(1), lambda: b"x")
    with Ledger(tmp_path / "ledger") as ledger:
        assert ledger.next_cohort("f", "rows") is None
        ledger.open_cohort("a", ["1"], 0.1, DELTA)
        assert ledger.next_cohort("f", "rows") is None
        ledger.open_cohort("b", ["2"], 3.0, DELTA)
        assert ledger.next_cohort("f", "rows") == "b"


def test_a_kind_that_a_cohort_may_pay_for_again_takes_the_oldest_that_can_pay(ledger: Ledger) -> None:
    ledger.open_cohort("b", ["3"], 3.0, DELTA)
    event = Event(2.0, 1.0, 1)
    turns = []
    for number in range(1, 6):
        cohort = ledger.next_cohort("f", "episodes", number, once=False, event=event)
        turns.append(cohort)
        if cohort is not None:
            ledger.answer(order(number, sigma=2.0, cohort=cohort), lambda: b"x")
    assert turns == ["a", "a", "b", "b", None]  # epsilon 1.99, then 2.94, each
    assert ledger.next_cohort("f", "episodes", once=False) == "a"  # something is left, for a cheaper plan


def test_a_round_that_is_of_use_with_another_only_takes_a_cohort_that_can_pay_for_both(ledger: Ledger) -> None:
    """Cohort a, at epsilon 3, can pay for either."""
    mean, rows = Event(2.0, 1.0, 1), Event(1.5, 1.0, 1)
    for event in (mean, rows):
        assert epsilon([event], DELTA) < 3.0 < epsilon([mean, rows], DELTA)
    ledger.open_cohort("b", ["3"], 9.0, DELTA)
    assert ledger.next_cohort("f", "site_mean", event=mean) == "a"
    assert ledger.next_cohort("f", "site_mean", event=mean, then={"rows": rows}) == "b"
    paid = Order.of(ROWS, federation="f", round=1, plan_hash="p", cohort="b")
    ledger.answer(paid, lambda: b"x")
    assert ledger.next_cohort("f", "site_mean", event=mean, then={"rows": rows}) is None
    assert ledger.next_cohort("f", "site_mean", event=mean, only="b") == "b"
    assert ledger.next_cohort("f", "rows", event=rows, only="b") is None


def test_a_receipt_stands_for_the_charge_and_the_very_bytes(ledger: Ledger) -> None:
    payload, receipt = ledger.answer(order(1), lambda: b"noised")
    facts, found = ledger.released("f", receipt) or ({}, b"")
    assert (found, facts["plan_kind"], facts["cohort"], facts["sigma"]) == (payload, "episodes", "a", 5.0)
    assert ledger.released("g", receipt) is None and ledger.released("f", "a" * 64) is None
    charge = next(iter(ledger.outbox.charges()))
    assert ledger.released("f", charge) is None  # a CHARGE is no receipt
    ledger.outbox.write(charge, b"another")
    assert code(lambda: ledger.released("f", receipt)) == "damaged"
    ledger.outbox.path(charge).unlink()
    assert code(lambda: ledger.released("f", receipt)) == "damaged"


def test_the_largest_sum_of_a_cohort_in_a_federation_is_known(ledger: Ledger) -> None:
    assert ledger.most_numbers("a", "f") == 0
    for number, numbers in ((1, 65), (2, 4420), (3, 195)):
        ledger.answer(replace(order(number), numbers=numbers), lambda: b"x")
    assert ledger.most_numbers("a", "f") == 4420
    assert ledger.most_numbers("a", "g") == ledger.most_numbers("b", "f") == 0


# --- forgiveness -------------------------------------------------------------------------------------------------------


def lose(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError):
        ledger.answer(order(), lambda: bytes(1 // 0))


def test_a_forgiven_round_is_unspent_and_may_run_once_more(ledger: Ledger) -> None:
    lose(ledger)
    ledger.forgive("f", 1, True, "Dr Datenschutz")
    assert ledger.spent("a") == [] and ledger.preview(order()) == "new"
    assert ledger.answer(order(), lambda: b"fresh")[0] == b"fresh"
    assert len(ledger.spent("a")) == 1
    assert [e["kind"] for e in ledger.history()] == ["COHORT", "CHARGE", "FORGIVE", "CHARGE", "COMMIT"]
    assert ledger.answer(order(), unused)[0] == b"fresh"


def test_a_round_can_be_lost_and_forgiven_twice(ledger: Ledger) -> None:
    for _ in range(2):
        lose(ledger)
        ledger.forgive("f", 1, True, "x")
    assert ledger.spent("a") == []
    lose(ledger)
    assert len(ledger.spent("a")) == 1 and code(lambda: ledger.preview(order())) == "round_lost"


@pytest.mark.parametrize(("echo", "officer"), [(False, "x"), (1, "x"), (True, ""), (True, "  ")])
def test_forgiveness_needs_the_echo_and_a_name(ledger: Ledger, echo: bool, officer: str) -> None:
    lose(ledger)
    with pytest.raises(PrivacyError):
        ledger.forgive("f", 1, echo, officer)
    assert len(ledger.spent("a")) == 1


def test_nothing_is_forgiven_that_may_have_left(ledger: Ledger) -> None:
    with pytest.raises(PrivacyError, match="no charge"):
        ledger.forgive("f", 1, True, "x")
    charge = ledger.charge(order())
    ledger.write_outbox(charge, b"ready")
    with pytest.raises(PrivacyError, match="outbox"):
        ledger.forgive("f", 1, True, "x")
    ledger.answer(order(), unused)
    ledger.outbox.path(charge).unlink()
    with pytest.raises(PrivacyError, match="outbox"):
        ledger.forgive("f", 1, True, "x")


def test_the_file_of_a_forgiven_round_that_comes_back_stops_the_site(ledger: Ledger) -> None:
    charge = ledger.charge(order())
    ledger.forgive("f", 1, True, "x")
    ledger.write_outbox(charge, b"it was there after all")
    assert code(lambda: ledger.preview(order())) == "rolled_back"


# --- tampering and roll-back -------------------------------------------------------------------------------------------


def test_the_receipt_of_another_federation_or_of_no_commit_is_no_echo(ledger: Ledger) -> None:
    _, receipt = ledger.answer(order(), lambda: b"x")
    assert ledger.preview(order(2, echo=receipt)) == "new"
    assert code(lambda: ledger.preview(order(2, "g", echo=receipt))) == "rolled_back"
    assert code(lambda: ledger.preview(order(2, echo="0" * 64))) == "rolled_back"
    assert code(lambda: ledger.preview(order(2, echo=ledger.history()[1]["hash"]))) == "rolled_back"


def test_a_restored_backup_is_noticed(tmp_path: Path) -> None:
    folder, backup = tmp_path / "ledger", tmp_path / "backup"
    with Ledger(folder) as ledger:
        ledger.open_cohort("a", ["1"], 3.0, DELTA)
        ledger.answer(order(1), lambda: b"one")
    shutil.copytree(folder, backup)
    with Ledger(folder) as ledger:
        _, receipt = ledger.answer(order(2), lambda: b"two")
    with Ledger(backup) as whole:  # the echo betrays it
        assert code(lambda: whole.answer(order(3, echo=receipt), unused)) == "rolled_back"
    shutil.copy(backup / "ledger.sqlite", folder / "ledger.sqlite")  # the outbox betrays it, for every round
    with Ledger(folder) as part:
        for number in (1, 2, 3):
            assert code(lambda n=number: part.answer(order(n), unused)) == "rolled_back"  # type: ignore[misc]


def test_rows_cannot_be_changed_removed_or_replaced(ledger: Ledger) -> None:
    ledger.answer(order(), lambda: b"x")
    for statement in (
        "update entries set round=7",
        "delete from entries",
        "insert or replace into entries select 2, 'CHARGE', 'f', 1, 0, '{}', 'h'",
        "insert into entries select 9, 'CHARGE', 'f', 9, 0, '{}', 'h'",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            ledger.chain.db.execute(statement)
    assert ledger.verify() == 3


@pytest.mark.parametrize(
    "statement",
    ["update entries set body=replace(body, '5.0', '99.5')", "update entries set round=7 where seq=2",
     "delete from entries where seq=2", "update entries set federation='g' where seq=2", "update entries set turn=1 where seq=2",
     "update entries set kind='FORGIVE' where seq=2", "update entries set hash='00' where seq=3"],
)  # fmt: skip
def test_a_changed_chain_is_damaged(tmp_path: Path, statement: str) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["1"], 3.0, DELTA)
        ledger.answer(order(), lambda: b"x")
    raw = sqlite3.connect(tmp_path / "ledger/ledger.sqlite")
    raw.executescript(f"drop trigger no_update; drop trigger no_delete; {statement}")
    raw.close()
    assert code(lambda: Ledger(tmp_path / "ledger")) == "damaged"


def test_a_file_that_is_no_database_is_damaged_and_the_lock_is_free_again(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger/ledger.sqlite").write_bytes(b"x" * 5000)
    for _ in range(2):
        assert code(lambda: Ledger(tmp_path / "ledger")) == "damaged"


def test_a_changed_or_missing_outbox_file_is_damaged(ledger: Ledger) -> None:
    ledger.answer(order(), lambda: b"noised")
    path = next(ledger.outbox.folder.glob("*.out"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert code(lambda: ledger.preview(order())) == "damaged"
    other = ledger.outbox.path("0" * 64)
    ledger.outbox.write("0" * 64, b"other")
    path.write_bytes(other.read_bytes())  # its own digest holds, the committed one does not
    other.unlink()
    assert code(lambda: ledger.answer(order(), unused)) == "damaged"
    path.unlink()
    assert code(lambda: ledger.preview(order())) == "damaged"


def test_a_lost_or_exchanged_site_secret_is_noticed(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["1"], 3.0, DELTA)
    secret = tmp_path / "ledger/site.secret"
    genuine = secret.read_bytes()
    secret.write_bytes(b"t" * 32)
    assert code(lambda: Ledger(tmp_path / "ledger")) == "damaged"
    secret.unlink()
    assert code(lambda: Ledger(tmp_path / "ledger")) == "damaged"
    assert not secret.exists()  # a new secret would let every patient in again
    secret.touch(mode=0o600)
    secret.write_bytes(genuine)
    Ledger(tmp_path / "ledger").close()


def test_torn_files_are_removed_at_the_start(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger").close()
    torn = [tmp_path / "ledger/site.tmp", tmp_path / "ledger/outbox/x.tmp"]
    for path in torn:
        path.write_bytes(b"half")
    Ledger(tmp_path / "ledger").close()
    assert not any(path.exists() for path in torn)


def test_one_process_at_a_time(ledger: Ledger, tmp_path: Path) -> None:
    assert code(lambda: Ledger(tmp_path / "ledger")) == "busy"
    program = (
        f"from pathlib import Path; from sgps_privacy.ledger import Ledger; Ledger(Path({str(tmp_path / 'ledger')!r}))"
    )
    environment = {"PYTHONPATH": str(Path(sgps_privacy.__path__[0]).parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode != 0 and "Refused: busy" in done.stderr


def test_the_folder_is_for_its_owner_only(ledger: Ledger, tmp_path: Path) -> None:
    ledger.answer(order(), lambda: b"x")
    folder = tmp_path / "ledger"
    for path in (folder, folder / "outbox"):
        assert path.stat().st_mode & 0o077 == 0
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        assert path.stat().st_mode & 0o077 == 0, path.name


def test_transactions_sync_file_and_folder(ledger: Ledger) -> None:
    assert ledger.chain.db.execute("pragma journal_mode").fetchone() == ("delete",)
    assert ledger.chain.db.execute("pragma synchronous").fetchone() == (3,)


def test_history_shows_facts_and_hides_nonces_and_patients(ledger: Ledger) -> None:
    ledger.answer(order(), lambda: b"x")
    cohort, charge, commit = ledger.history()
    assert cohort["patients"] == 2 and cohort["epsilon"] == 3.0 and "members" not in cohort
    assert (charge["sigma"], charge["q"], charge["steps"], charge["clip"], charge["plan_kind"]) == (
        5.0,
        1.0,
        1,
        1.0,
        "episodes",
    )
    assert commit["charge"] == charge["hash"]
    assert not any("nonce" in entry or "secret" in entry for entry in (cohort, charge, commit))


def test_two_equal_charges_have_different_hashes(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x") as ledger:
        ledger.open_cohort("a", ["1"], 3.0, DELTA)
    shutil.copytree(tmp_path / "x", tmp_path / "y")  # the same chain so far: only the nonce can tell the charges apart
    hashes = set()
    for name in "xy":
        with Ledger(tmp_path / name) as ledger:
            hashes.add(ledger.charge(order()))
    assert len(hashes) == 2
