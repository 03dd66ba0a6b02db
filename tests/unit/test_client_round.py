"""One round at a site: what is refused before a record is read, what is charged once, and what never leaves."""

import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import Bench

from sgps.errors import InputError, RefusedError
from sgps.memory import COUNTS, ROWS, record
from sgps.plan import arrays_sha256
from sgps.signing import public_pem
from sgps_client import approval, kinds, officer, records, rules
from sgps_client import round as rounds
from sgps_client.enrolment import load_key
from sgps_client.round import RoundFailed, answer, open_ledger
from sgps_client.store import Store
from sgps_privacy import egress
from sgps_privacy.errors import PrivacyError

REAL_WAIT = rounds._wait


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A site whose cohort has been read, as the worker does before it waits for plans. Nobody waits for `answer_at`, but for the
    tests of it."""
    monkeypatch.setattr(rounds, "_wait", lambda _: None)
    found = site_bench.make(tmp_path / "north")
    records.prepared(found.site, found.release, "first")
    return found


def ask(bench: Bench, plan: Any = None, arrays: Any = None) -> egress.Reply:
    signed = (plan or bench.plan()).sign(bench.key)
    return answer(bench.site, signed.text, signed.signature, bench.start() if arrays is None else arrays)


def rows(bench: Bench) -> list[Any]:
    """The records of the first cohort in a `rows` round."""
    return kinds.records("rows", bench.release, records.prepared(bench.site, bench.release, "first"))


def all_entries(bench: Bench) -> list[dict[str, Any]]:
    with open_ledger(bench.site) as ledger:
        return list(ledger.history())


def entries(bench: Bench, kind: str) -> list[dict[str, Any]]:
    return [e for e in all_entries(bench) if e["kind"] == kind]


@pytest.fixture
def no_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is read fails the test."""
    bench.wait = 0.0

    def read(*_: Any) -> None:
        pytest.fail("a record was read")

    monkeypatch.setattr(rounds, "prepared", read)


def test_a_round_is_charged_once_and_answers_with_the_noised_sum(bench: Bench) -> None:
    plan = bench.plan()
    reply = ask(bench, plan)
    assert reply.status == egress.ACCEPTED
    assert {n: (a.shape, a.dtype) for n, a in reply.arrays.items()} == {
        n: (a.shape, np.dtype(np.float32)) for n, a in bench.start().items()
    }
    (charge,), (commit,) = entries(bench, "CHARGE"), entries(bench, "COMMIT")
    assert (charge["cohort"], charge["sigma"], charge["plan_hash"]) == ("first", 1.391, plan.sha256())
    assert reply.receipt == commit["hash"]
    assert reply.statement["epsilon"] == pytest.approx(3.0, abs=0.01)
    assert reply.statement["unit"] == "one patient (column patient_id), all images of that patient"


def test_what_is_sent_is_the_sum_of_the_records_and_noise_of_the_plans_size(bench: Bench) -> None:
    """Small noise: the limits are widened here so that the sum shows."""
    bench.write(
        limits={"least_sigma": 0.3},
        cohorts=[{**site_bench.settings("")["cohorts"][0], "budget": {"epsilon": 20, "delta": 1e-5}}],
    )
    reply = ask(bench, bench.plan(terms=bench.terms(sigma=0.3)))
    exact = [r for r in rows(bench) if r is not None]
    assert len(exact) == site_bench.PATIENTS
    for name in (ROWS, COUNTS):
        assert np.abs(reply.arrays[name] - sum(r[name] for r in exact)).max() < 0.3 * 5
    assert (
        np.linalg.norm(
            np.concatenate([reply.arrays[n].ravel() - sum(r[n] for r in exact).ravel() for n in (ROWS, COUNTS)])
        )
        > 0.1
    )


def test_the_next_attempt_gets_the_same_bytes_and_costs_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask(bench, bench.plan())
    monkeypatch.setattr(rounds, "prepared", lambda *_: pytest.fail("trained again"))
    again = ask(bench, bench.plan(attempt=2, sites=("north",)))
    assert egress.encode(first) == egress.encode(again)
    assert len(entries(bench, "CHARGE")) == 1


def other_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


FAR = {"issued": 4e9, "answer_at": 4e9 + 1, "deadline": 4e9 + 2}
PAST = {"issued": 1.0, "answer_at": 2.0, "deadline": 3.0}


@pytest.mark.usefixtures("no_record")
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"federation": "f" * 64}, "plan_federation"),
        ({"sites": ("south",)}, "plan_site"),
        (PAST, "plan_time"),
        (FAR, "plan_time"),
        ({"code": ("0" * 64,)}, "plan_code"),
        ({"encoder": "0" * 64}, "plan_encoder"),
        ({"classes": ("akiec", "vasc", "df")}, "plan_classes"),
        ({"start": "0" * 64}, "plan_start"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_one_word_before_a_record_is_read(
    bench: Bench, changes: dict[str, Any], code: str
) -> None:
    reply = ask(bench, bench.plan(**changes))
    assert (reply.status, reply.arrays, reply.receipt, reply.statement) == (code, {}, "", {})
    assert not entries(bench, "CHARGE")


@pytest.mark.usefixtures("no_record")
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sigma": 0.59}, "plan_sigma"),
        ({"sigma": float("1e-300")}, "plan_sigma"),
        ({"clips": [1.01]}, "plan_clip"),
        ({"q": 0.5}, "plan_q"),
        ({"steps": 2}, "plan_steps"),
        ({"denominator": 2}, "plan_denominator"),
        ({"rate": 1e10}, "plan_rate"),
        ({"groups": [[ROWS]]}, "plan_names"),
        ({"groups": [[ROWS], [COUNTS]], "clips": [1.0, 1.0]}, "plan_clip"),
        ({"kind": "episodes"}, "plan_kind"),
        ({"extra": 1}, "plan_terms"),
    ],
)
def test_terms_beyond_the_sites_limits_are_refused(bench: Bench, changes: dict[str, Any], code: str) -> None:
    assert ask(bench, bench.plan(terms=bench.terms(**changes))).status == code
    assert not entries(bench, "CHARGE")


@pytest.mark.usefixtures("no_record")
@pytest.mark.parametrize("where", ["text", "signature", "key"])
def test_an_altered_plan_is_refused(bench: Bench, where: str) -> None:
    signed = bench.plan().sign(other_key() if where == "key" else bench.key)
    text = signed.text.replace('"round":1', '"round":2') if where == "text" else signed.text
    signature = "0" * 128 if where == "signature" else signed.signature
    assert answer(bench.site, text, signature, bench.start()).status == "plan_signature"


@pytest.mark.usefixtures("no_record")
@pytest.mark.parametrize(
    ("text", "code"), [("", "plan_signature"), ("{", "plan_signature"), ("x" * (1 << 21), "plan_size")]
)
def test_what_is_no_plan_is_refused(bench: Bench, text: str, code: str) -> None:
    assert answer(bench.site, text, "ab", bench.start()).status == code


@pytest.mark.usefixtures("no_record")
def test_arrays_that_were_not_signed_are_refused(bench: Bench) -> None:
    for name in (ROWS, COUNTS):
        start = bench.start()
        start[name] = start[name] + 1
        assert ask(bench, arrays=start).status == "plan_start"
    assert ask(bench, arrays={**bench.start(), "more": np.zeros(1, np.float32)}).status == "plan_start"
    assert ask(bench, arrays={n: a.astype(np.float64) for n, a in bench.start().items()}).status == "plan_start"


@pytest.mark.usefixtures("no_record")
def test_a_start_that_no_reply_can_be_made_from_is_refused_before_the_charge(bench: Bench) -> None:
    start = bench.start()
    start[ROWS][0, 0] = np.nan
    assert ask(bench, bench.plan(start=arrays_sha256(start)), start).status == "plan_start"
    assert not entries(bench, "CHARGE")


@pytest.mark.usefixtures("no_record")
def test_a_key_that_is_not_the_one_of_the_settings_signs_nothing_here(bench: Bench) -> None:
    """Whoever exchanges keys/plan.pub can write the federation's fingerprint into plans and releases of his own."""
    forger = other_key()
    (bench.folder / "keys" / "plan.pub").write_text(public_pem(forger.public_key()))
    site_bench.make_release(bench.folder / "releases" / "0001", forger, fingerprint=bench.mark)
    signed = bench.plan().sign(forger)
    assert answer(bench.site, signed.text, signed.signature, bench.start()).status == "plan_signature"
    assert Store(bench.site).newest() is None


def test_two_federations_of_one_ledger_do_not_hinder_each_other_and_share_the_budget(
    bench: Bench, tmp_path: Path
) -> None:
    def budget(epsilon: float) -> list[dict[str, Any]]:
        return [{**site_bench.settings("")["cohorts"][0], "budget": {"epsilon": epsilon, "delta": 1e-5}}]

    bench.write(cohorts=budget(4.0))
    other = site_bench.make(tmp_path / "other", state="../north/state", cohorts=budget(4.0))
    assert ask(bench).status == "accepted"
    assert ask(other).status == "budget"
    other.write(state="../north/state", cohorts=budget(8.0))
    with open_ledger(bench.site) as ledger:
        ledger.raise_budget("first", 8.0, "Dr Officer")
    assert ask(other, other.plan(attempt=2)).status == "accepted"
    assert ask(bench, bench.plan(attempt=2)).status == "accepted"
    assert {e["federation"] for e in entries(bench, "CHARGE")} == {bench.mark, other.mark}


@pytest.mark.usefixtures("no_record")
def test_a_receiving_site_refuses_to_be_a_participant(bench: Bench) -> None:
    bench.write(role="receive", slots=None, cohorts=None)
    assert ask(bench).status == "plan_site"
    assert not entries(bench, "CHARGE")


def test_a_second_round_needs_a_cohort_that_has_not_paid(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(bench).status == "accepted"
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "prepared", lambda *_: pytest.fail("a record was read"))
        assert ask(bench, bench.plan(round=2)).status == "budget"
        assert ask(bench, bench.plan(terms=bench.terms(sigma=2.0))).status == "round_taken"
    site_bench.draw_patients(bench.folder, first=50, name="2")
    first = site_bench.settings("")["cohorts"][0]
    bench.write(cohorts=[first, {**first, "name": "second", "images": "images2", "table": "table2.csv"}])
    records.prepared(bench.site, bench.release, "second")
    assert ask(bench, bench.plan(round=3)).status == "accepted"
    assert [c["cohort"] for c in entries(bench, "CHARGE")] == ["first", "second"]
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "prepared", lambda *_: pytest.fail("a record was read"))
        assert ask(bench, bench.plan(round=2)).status == "plan_round"


def test_a_budget_below_the_plans_price_is_refused(bench: Bench) -> None:
    bench.write(cohorts=[{**site_bench.settings("")["cohorts"][0], "budget": {"epsilon": 2.9, "delta": 1e-5}}])
    assert ask(bench).status == "budget"
    assert not entries(bench, "CHARGE")


@pytest.mark.parametrize("refused", [False, True])
def test_the_answer_leaves_at_answer_at(bench: Bench, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_wait", REAL_WAIT)
    at = time.time() + 5
    reply = ask(bench, bench.plan(answer_at=at, **({"encoder": "0" * 64} if refused else {})))
    assert at <= time.time() < at + 3
    assert reply.status == ("plan_encoder" if refused else "accepted")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """[seconds that the clock is ahead]; a sleep moves it."""
    ahead, real = [0.0], time.time

    def sleep(seconds: float) -> None:
        ahead[0] += seconds

    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])
    monkeypatch.setattr(time, "sleep", sleep)
    return ahead


def slow_sum(monkeypatch: pytest.MonkeyPatch, clock: list[float], seconds: float) -> None:
    """The noised sum takes so long, and is never made twice."""
    real, made = rounds._noised, list[int]()

    def noised(*args: Any) -> bytes:
        assert not made, "made again"
        made.append(1)
        clock[0] += seconds
        return real(*args)

    monkeypatch.setattr(rounds, "_noised", noised)


def test_a_sum_that_missed_answer_at_leaves_at_the_moment_of_a_later_attempt_and_costs_nothing_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """Nothing leaves between the moments that plans name, and the first of them does not tell how long the sum took."""
    slow_sum(monkeypatch, clock, 37.0)
    monkeypatch.setattr(rounds, "_wait", REAL_WAIT)
    begun = time.time()
    first = bench.plan(deadline=begun + 100)
    for _ in range(2):  # the worker tries again until the deadline
        with pytest.raises(RoundFailed, match="not ready at answer_at"):
            ask(bench, first)
    soon = bench.plan(attempt=2, answer_at=begun + 60, deadline=begun + 100)  # after the sum, before 64 s are over
    with pytest.raises(RoundFailed, match="not ready at answer_at"):
        ask(bench, soon)
    third = bench.plan(attempt=3, answer_at=begun + 70, deadline=begun + 100)
    reply = ask(bench, third)
    assert reply.status == egress.ACCEPTED
    assert third.answer_at <= time.time() < third.answer_at + 3
    assert [e["kind"] for e in all_entries(bench)] == ["COHORT", "CHARGE", "COMMIT"]


@pytest.mark.parametrize(("took", "held"), [(0.2, 1), (3.0, 4), (4.0, 4), (4.1, 8), (33, 64), (63, 64), (65, 128)])
def test_how_long_a_late_sum_took_shows_to_a_factor_of_two_whatever_attempts_are_made(took: float, held: float) -> None:
    assert rounds._held_until(1000.0, 1000.0 + took) == 1000.0 + held


def test_a_sum_that_was_in_time_may_leave_after_answer_at_when_its_way_out_was_broken(
    bench: Bench, clock: list[float]
) -> None:
    plan = bench.plan()
    first = ask(bench, plan)
    clock[0] += bench.wait + 5
    assert egress.encode(ask(bench, plan)) == egress.encode(first)


def test_of_public_pictures_a_late_sum_leaves_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    slow_sum(monkeypatch, clock, 37.0)
    signed = bench.plan().sign(bench.key)
    assert answer(bench.site, signed.text, signed.signature, bench.start(), wait=False).status == egress.ACCEPTED


@pytest.mark.usefixtures("no_record")
def test_no_order_parks_a_site_for_weeks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal does not wait either for a moment that is too far away."""
    monkeypatch.setattr(rounds, "_wait", REAL_WAIT)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    far = time.time() + rules.MOST_WAIT + 60
    assert ask(bench, bench.plan(answer_at=far, deadline=far + 1)).status == "plan_time"
    assert ask(bench, bench.plan(answer_at=far, deadline=far + 1, sites=("south",))).status == "plan_site"
    assert not entries(bench, "CHARGE")


def test_records_are_those_of_the_list_that_the_ledger_knows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export rewrites the table in the middle of a round: whoever is new in it has no budget."""
    taken: list[list[str]] = []
    opened, encoded = rounds.open_cohorts, records.encoded

    def rewritten(*args: Any) -> Any:
        found = opened(*args)
        with (bench.folder / "table.csv").open("a") as table:
            table.write("p0-0,patient 77,df\n")
        return found

    monkeypatch.setattr(rounds, "open_cohorts", rewritten)
    monkeypatch.setattr(
        records, "encoded", lambda reader, *rest: taken.append(reader.patients) or encoded(reader, *rest)
    )
    text = (bench.folder / "table.csv").read_text()
    (bench.folder / "table.csv").write_text(text.replace("p0-0,", "p0-1,", 1).replace("p0-1,patient 0,akiec\n", "", 1))
    records._prepared.kept.clear()
    assert ask(bench).status == "accepted"
    assert taken == [[f"patient {i}" for i in range(5)]]


def test_slow_records_mean_silence_and_no_charge(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any) -> list[None]:
        time.sleep(0.3)
        return []

    monkeypatch.setattr(rounds, "prepared", slow)
    with pytest.raises(RoundFailed, match="nothing was charged"):
        ask(bench, bench.plan(answer_at=time.time() + 0.2))
    assert not entries(bench, "CHARGE")


def test_pictures_are_kept_until_the_round_is_charged_and_no_longer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """A body's round keeps every picture of every patient beside its features; here a `rows` round asks for them."""
    records._prepared.kept.clear()
    monkeypatch.setitem(kinds.WORK, "rows", replace(kinds.WORK["rows"], pictures=lambda *_: True))  # type: ignore[arg-type]
    real, read = records.encoded, list[int]()

    def slow(*args: Any) -> Any:
        read.append(1)
        clock[0] += 40
        return real(*args)

    monkeypatch.setattr(records, "encoded", slow)
    with pytest.raises(RoundFailed, match="kept for the next attempt"):
        ask(bench)
    assert [
        p is not None and p.pictures is not None
        for p in records.prepared(bench.site, bench.release, "first", pictures=True)
    ] == [True] * 5
    assert ask(bench, bench.plan(attempt=2)).status == egress.ACCEPTED
    assert all(p is None or p.pictures is None for kept in records._prepared.kept.values() for p in kept)
    assert all(p is not None and len(p.features) for p in records.prepared(bench.site, bench.release, "first"))
    assert len(read) == 1


def test_where_a_person_must_approve_nothing_is_read_before(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write(approve="manual")
    plan = bench.plan()
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "prepared", lambda *_: pytest.fail("a record was read"))
        for _ in range(2):
            with pytest.raises(RoundFailed, match="waits for approval"):
                ask(bench, plan)
    (waiting,) = approval.asked(bench.site.state)
    assert (waiting.plan, waiting.cohort, waiting.officer) == (plan.sha256(), "first", "")
    assert waiting.epsilon == pytest.approx(3.0, abs=0.01)
    assert (waiting.patients, waiting.unit, waiting.before, waiting.budget) == (5, "patient_id", 0.0, 3.0)
    assert waiting.after == pytest.approx(3.0, abs=0.01)
    line = waiting.line()
    assert (
        "round 1 (rows)  cohort first: 5 patients (patient_id)  noise 1.391  epsilon 3.000 in this federation" in line
    )
    assert "over all federations from 0.000 to 3.000 of 3  waits for approval" in line
    for wrong in ("0" * 12, plan.sha256()[:7]):
        with pytest.raises(InputError, match="one is needed"):
            approval.approve(bench.site, wrong, "Dr Officer")
    approval.approve(bench.site, plan.sha256()[:12], "Dr Officer")
    assert ask(bench, bench.plan(attempt=2)).status == "accepted"  # the yes is to the round, not to an attempt
    other = bench.plan(round=2, terms=bench.terms(sigma=5.0))
    assert ask(bench, other).status == "budget"


def test_ctrl_c_between_charge_and_commit_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rounds._noised

    def interrupted(*args: Any) -> bytes:
        signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_noised", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(bench)
    assert [e["kind"] for e in all_entries(bench)] == ["COHORT", "CHARGE", "COMMIT"]
    assert ask(bench, bench.plan(attempt=2)).status == "accepted"


class Killed(BaseException):
    pass


def lose(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies between CHARGE and outbox."""

    def die(*_: Any) -> bytes:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_noised", die)
        with pytest.raises(Killed):
            ask(bench)
    assert len(entries(bench, "CHARGE")) == 1


def test_a_round_lost_between_charge_and_outbox_is_never_trained_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(bench, monkeypatch)
    monkeypatch.setattr(rounds, "prepared", lambda *_: pytest.fail("trained again"))
    assert ask(bench).status == "round_lost"
    assert ask(bench, bench.plan(attempt=2)).status == "round_lost"


def test_a_lost_round_is_forgiven_only_by_an_echo_that_is_newer_than_the_charge(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(bench, monkeypatch)
    with pytest.raises(RefusedError, match="no plan has come since"):
        officer.forgive(bench.file, 1, "Dr Officer")
    assert ask(bench, bench.plan(attempt=2)).status == "round_lost"
    officer.forgive(bench.file, 1, "Dr Officer")
    assert ask(bench, bench.plan(attempt=3)).status == "accepted"
    assert len(entries(bench, "FORGIVE")) == 1
    assert ask(bench, bench.plan(attempt=4)).status == "accepted"
    with pytest.raises(PrivacyError, match="outbox"):
        officer.forgive(bench.file, 1, "Dr Officer")


def test_a_receipt_that_the_ledger_does_not_hold_means_rolled_back(bench: Bench) -> None:
    assert ask(bench, bench.plan(echo={"north": "a" * 64})).status == "rolled_back"
    assert ask(bench, bench.plan(echo={"south": "a" * 64})).status == "accepted"


def test_patients_are_zero_records_when_they_cannot_be_read_and_change_nobody_else(bench: Bench) -> None:
    before = records.prepared(bench.site, bench.release, "first")
    assert not any(r is None for r in before)
    (bench.folder / "images" / "p1-0.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    records._prepared.kept.clear()
    after = records.prepared(bench.site, bench.release, "first")
    assert after[1] is None
    assert [i for i, r in enumerate(after) if r is None] == [1]
    for i in (0, 2, 3, 4):
        assert before[i] is not None and after[i] is not None
        assert np.array_equal(before[i].features, after[i].features)  # type: ignore[union-attr]


def test_a_patient_that_hangs_is_the_zero_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = records._read

    def hang(reader: Any, patient: str, most: int) -> Any:
        if patient == "patient 2":
            time.sleep(60)
        return real(reader, patient, most)

    monkeypatch.setattr(records, "_read", hang)
    bench.write(seconds_per_patient=1.5)
    records._prepared.kept.clear()
    start = time.monotonic()
    found = records.prepared(bench.site, bench.release, "first")
    assert time.monotonic() - start < 20
    assert found[2] is None
    assert found[3] is not None


def test_a_record_is_that_of_the_class_memory_and_takes_no_more_images_than_the_cap(bench: Bench) -> None:
    from sgps.encoders import ImageEncoder

    bench.write(images_per_patient=1)
    records._prepared.kept.clear()
    found = rows(bench)[0]
    reader = records.cohort_of(bench.site, "first", site_bench.CLASSES)
    label, load = reader.images("patient 0")[0]
    feature = ImageEncoder(bench.release).features([load()])[0]
    sums, counts = record(site_bench.coordinates(), {site_bench.CLASSES.index(label): feature}, 3)
    assert found is not None
    assert np.allclose(found[ROWS], sums, atol=1e-6)
    assert np.allclose(found[COUNTS], counts)
    assert np.linalg.norm(np.concatenate([found[ROWS].ravel(), found[COUNTS]])) <= 1 + 1e-6


def test_more_patients_than_slots_and_changed_lists_never_shape_a_reply(bench: Bench) -> None:
    bench.write(slots=4)
    with pytest.raises(RoundFailed, match="do not fit into 4 slots"):
        ask(bench)
    bench.write()
    assert ask(bench).status == "accepted"
    table = bench.folder / "table.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if "patient 4" not in line) + "\n")
    assert ask(bench, bench.plan(attempt=2)).status == "accepted"  # the same bytes: no list is needed
    with pytest.raises(RoundFailed, match="closed with other patients"):
        ask(bench, bench.plan(round=2))


def test_a_cohort_with_problems_is_not_closed(bench: Bench) -> None:
    with (bench.folder / "table.csv").open("a") as table:
        table.write("p0-9,patient 9,unheard-of\n")
    with pytest.raises(RoundFailed, match="not closed yet"):
        ask(bench)
    assert not entries(bench, "COHORT")


def test_the_flower_app_signs_its_statement_and_tells_no_exception(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity  # noqa: TID251  the coordinator sets it

    from sgps_client import app as site_app

    signed = bench.plan().sign(bench.key)
    content = RecordDict(
        {
            "plan": ConfigRecord({"text": signed.text, "signature": signed.signature}),
            "arrays": ArrayRecord({n: Array(a) for n, a in bench.start().items()}),
        }
    )
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)
    order = Message(content, dst_node_id=5, message_type="train")
    context = Context(run_id=1, node_id=5, node_config={"site": str(bench.file)}, state=RecordDict(), run_config={})
    sent = site_app.app(order, context).content
    arrays, fields = sent.array_records["arrays"], dict(sent.config_records["reply"])
    reply = egress.Reply.from_parts({n: a.numpy() for n, a in arrays.items()}, fields)
    assert reply.status == "accepted"
    key = load_key(bench.site.tls_key).public_key()
    key.verify(bytes.fromhex(str(fields["signature"])), str(fields["statement"]).encode(), ECDSA(hashes.SHA256()))
    assert dict(site_app.app(order, context).content.config_records["reply"]) == fields

    monkeypatch.setattr(site_app, "answer", lambda *_: 1 / 0)
    with pytest.raises(RoundFailed) as caught:
        site_app.app(order, context)
    assert str(caught.value) == site_app.FAILED
    assert caught.value.__cause__ is None
