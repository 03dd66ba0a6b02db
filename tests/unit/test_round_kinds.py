"""Every kind of round at a site: limits of its own, one path, and what a centred round is centred by."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import Bench, K

from sgps import kinds, memory, site_mean, subset
from sgps.memory import ROWS
from sgps.plan import Plan, arrays_sha256
from sgps.release import Release
from sgps_client import kinds as work
from sgps_client import records
from sgps_client import round as rounds
from sgps_client.round import answer, open_ledger
from sgps_client.rules import check
from sgps_privacy import accountant, egress
from sgps_privacy.errors import Refused
from sgps_privacy.events import Event
from sgps_privacy.terms import Terms

Arrays = dict[str, np.ndarray[Any, Any]]
PAIR = accountant.split(3.0, 1e-5, (0.2, 0.8))
BOTH = {"kinds": ["rows", "site_mean"]}


def test_every_kind_has_an_entry_at_both_ends_and_in_the_terms() -> None:
    from sgps_privacy.terms import KINDS
    from sgps_server.kinds import CONDUCT

    assert set(kinds.KINDS) == set(work.WORK) == set(CONDUCT) == set(KINDS)
    assert all(kind.name == name for name, kind in kinds.KINDS.items())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(rounds, "_wait", lambda _: None)
    found = site_bench.make(tmp_path / "north", limits=BOTH)
    records.prepared(found.site, found.release, "first")
    return found


def ask(bench: Bench, plan: Plan, arrays: Arrays) -> egress.Reply:
    signed = plan.sign(bench.key)
    return answer(bench.site, signed.text, signed.signature, arrays)


def zeros(bench: Bench, kind: str) -> Arrays:
    return {n: np.zeros(s, np.float32) for n, s in kinds.KINDS[kind].shapes(bench.release, ()).items()}


def mean_plan(bench: Bench, **changes: Any) -> Plan:
    groups = ((site_mean.SUM, site_mean.COUNT),)
    terms = Terms("site_mean", PAIR[0], 1.0, 1, (1.0,), groups, 1).to_mapping()
    start = arrays_sha256(zeros(bench, "site_mean"))
    return bench.plan(
        **{"kind": "site_mean", "start": start, "terms": {**terms, **changes.pop("terms", {})}, **changes}
    )


def rows_plan(bench: Bench, receipt: str, **changes: Any) -> Plan:
    fields = {"round": 2, "centres": {"north": receipt}, "terms": bench.terms(sigma=PAIR[1]), **changes}
    return bench.plan(**fields)


def charges(bench: Bench) -> list[dict[str, Any]]:
    with open_ledger(bench.site) as ledger:
        return [e for e in ledger.history() if e["kind"] == "CHARGE"]


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, so that the sum shows."""
    from sgps_privacy import engine
    from sgps_privacy.audit import without_noise

    monkeypatch.setattr(engine, "PrivateRound", without_noise(engine.PrivateRound))


def test_a_pair_costs_its_price_once_and_rows_are_centred_by_the_mean_that_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch)
    first = ask(bench, mean_plan(bench), zeros(bench, "site_mean"))
    assert first.status == egress.ACCEPTED
    second = ask(bench, rows_plan(bench, first.receipt), bench.start())
    assert second.status == egress.ACCEPTED
    assert [(c["plan_kind"], c["cohort"]) for c in charges(bench)] == [("site_mean", "first"), ("rows", "first")]
    assert 2.99 < second.statement["epsilon"] <= 3.0
    release, patients = bench.release, records.prepared(bench.site, bench.release, "first")
    coordinates = release.memory().coordinates
    offset = site_mean.offset(first.arrays[site_mean.SUM], first.arrays[site_mean.COUNT], PAIR[0], coordinates)
    centred = [memory.record(coordinates, p.means(), 3, offset)[0] for p in patients if p is not None]
    plain = [memory.record(coordinates, p.means(), 3)[0] for p in patients if p is not None]
    assert second.arrays[ROWS] == pytest.approx(sum(centred), abs=1e-5)
    assert not np.any(offset) or np.abs(second.arrays[ROWS] - sum(plain)).max() > 1e-3


def test_the_mean_is_the_sum_of_residuals_of_the_patients_of_common_classes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patients 0 and 3 have akiec, 1 and 4 df; patient 2 has vasc, which has no public mean: the zero record."""
    quiet(monkeypatch)
    reply = ask(bench, mean_plan(bench), zeros(bench, "site_mean"))
    assert reply.arrays[site_mean.COUNT] == pytest.approx(4 * math.sqrt(memory.SHARE_COUNT), abs=1e-5)
    coordinates, means = bench.release.memory().coordinates, site_mean.common(bench.release)
    found = [
        site_mean.record(coordinates, means, p.means())
        for p in records.prepared(bench.site, bench.release, "first")
        if p
    ]
    assert [r is None for r in found] == [False, False, True, False, False]
    assert reply.arrays[site_mean.SUM] == pytest.approx(sum(r[0] for r in found if r), abs=1e-5)


def test_an_empty_slot_and_an_unread_patient_are_zero_after_centring(bench: Bench) -> None:
    patients = [None, *records.prepared(bench.site, bench.release, "first")[:1]]
    found = work.records("rows", bench.release, patients, np.full(K, 5.0))
    assert found[0] is None and found[1] is not None


def test_the_plans_hash_covers_the_mean(bench: Bench) -> None:
    a, b = (rows_plan(bench, receipt * 64) for receipt in "ab")
    assert len({a.sha256(), b.sha256(), rows_plan(bench, "a" * 64, centres={}).sha256()}) == 3


def test_another_mean_for_a_round_that_was_charged_is_another_plan(bench: Bench) -> None:
    first = ask(bench, mean_plan(bench), zeros(bench, "site_mean"))
    reply = ask(bench, rows_plan(bench, first.receipt), bench.start())
    again = ask(bench, rows_plan(bench, first.receipt, attempt=2), bench.start())
    assert egress.encode(reply) == egress.encode(again)
    assert ask(bench, rows_plan(bench, first.receipt, centres={}), bench.start()).status == "round_taken"
    assert len(charges(bench)) == 2


@pytest.mark.parametrize("what", ["unknown", "of rows", "not named", "other cohort"])
def test_what_is_no_mean_of_this_cohort_centres_nothing(bench: Bench, what: str) -> None:
    first = ask(bench, mean_plan(bench), zeros(bench, "site_mean"))
    before = len(charges(bench))
    if what == "unknown":
        plan = rows_plan(bench, "a" * 64)
    elif what == "of rows":
        receipt = ask(bench, rows_plan(bench, "", centres={}), bench.start()).receipt
        before, plan = before + 1, rows_plan(bench, receipt, round=3)
    elif what == "not named":
        plan = rows_plan(bench, "", centres={"south": first.receipt})
    else:
        site_bench.draw_patients(bench.folder, 3, first=50, name="2")
        second = {**cohorts()[0], "name": "second", "images": "images2", "table": "table2.csv"}
        bench.write(limits=BOTH, cohorts=[*cohorts(), second])
        ask(bench, rows_plan(bench, first.receipt), bench.start())
        before, plan = before + 1, rows_plan(bench, first.receipt, round=3)
    assert ask(bench, plan, bench.start()).status == "plan_centre"
    assert len(charges(bench)) == before


def cohorts() -> list[dict[str, Any]]:
    return list(site_bench.settings("")["cohorts"])


def test_a_mean_is_taken_of_a_cohort_that_can_pay_for_the_rows_too_and_they_are_its_own(bench: Bench) -> None:
    """At epsilon 2.8 the first cohort can pay for either round of the pair, not for both; it is the oldest."""
    site_bench.draw_patients(bench.folder, 3, first=50, name="2")
    poor = {**cohorts()[0], "budget": {"epsilon": 2.8, "delta": 1e-5}}
    bench.write(limits=BOTH, cohorts=[poor])
    assert ask(bench, mean_plan(bench), zeros(bench, "site_mean")).status == "budget"
    assert charges(bench) == []
    rich = {**cohorts()[0], "name": "second", "images": "images2", "table": "table2.csv"}
    bench.write(limits=BOTH, cohorts=[poor, rich])
    first = ask(bench, mean_plan(bench, attempt=2), zeros(bench, "site_mean"))
    assert ask(bench, rows_plan(bench, first.receipt), bench.start()).status == egress.ACCEPTED
    assert [(c["plan_kind"], c["cohort"]) for c in charges(bench)] == [("site_mean", "second"), ("rows", "second")]


def test_a_cohort_whose_budget_is_just_the_price_of_a_pair_can_pay_it() -> None:
    """Both multipliers are rounded; the site knows the second only from the first."""
    for epsilon in np.geomspace(0.2, 15, 300):
        mean, rows = accountant.split(float(epsilon), 1e-5, (site_mean.SHARE, 1 - site_mean.SHARE))
        assert rows <= site_mean.rows_sigma(mean) <= 1.003 * rows


def test_a_mean_whose_bytes_are_gone_is_damage_and_not_another_mean(bench: Bench) -> None:
    first = ask(bench, mean_plan(bench), zeros(bench, "site_mean"))
    for file in (bench.site.state / "outbox").glob("*.out"):
        file.unlink()
    assert ask(bench, rows_plan(bench, first.receipt), bench.start()).status == "damaged"
    assert len(charges(bench)) == 1


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"sigma": 1.19}, "plan_sigma"),
        ({"steps": 2}, "plan_steps"),
        ({"q": 0.5}, "plan_q"),
        ({"clips": [1.1]}, "plan_clip"),
    ],
)
def test_a_site_mean_round_has_limits_of_its_own(bench: Bench, terms: dict[str, Any], code: str) -> None:
    assert ask(bench, mean_plan(bench, terms=terms), zeros(bench, "site_mean")).status == code


def test_a_kind_that_the_site_does_not_list_is_refused(bench: Bench) -> None:
    bench.write()
    assert ask(bench, mean_plan(bench), zeros(bench, "site_mean")).status == "plan_kind"


@pytest.mark.parametrize("kind", ["rows", "site_mean", "episodes"])
def test_a_round_whose_records_depend_on_the_release_waits_for_the_one_that_the_plan_names(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Rows depend on encoder and classes alone, which have fields of their own. The other release has the same of both."""
    assert [k for k in kinds.KINDS if not kinds.KINDS[k].bound] == ["rows"]
    elsewhere = site_bench.sign(bench.release, bench.folder / "elsewhere", bench.key)
    named = Release.open(elsewhere, key=bench.key.public_key())
    assert named.sha256 != bench.release.sha256
    if kind == "rows":
        assert ask(bench, bench.plan(release=named.sha256), bench.start()).status == egress.ACCEPTED
        return
    if kind == "episodes":
        monkeypatch.setattr(rounds, "check", lambda *_: Terms.from_mapping(bench.terms()))
    plan = mean_plan(bench, release=named.sha256, kind=kind)
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "prepared", lambda *_: pytest.fail("a record was read"))
        with pytest.raises(rounds.RoundFailed, match=f"starts from release {named.sha256[:12]}"):
            ask(bench, plan, zeros(bench, "site_mean"))
    assert charges(bench) == []
    newer = elsewhere.rename(bench.folder / "releases" / "0001")
    if kind == "site_mean":
        reply = ask(bench, plan, zeros(bench, "site_mean"))
        assert reply.status == egress.ACCEPTED
        site_bench.sign(Release.open(newer, key=bench.key.public_key()), newer.with_name("0002"), bench.key)
        again = ask(bench, mean_plan(bench, release=named.sha256, attempt=2), zeros(bench, "site_mean"))
        assert egress.encode(again) == egress.encode(reply)  # what was sent needs no release


# --- episodes ----------------------------------------------------------------------------------------------------------
GATE = "generator.gate.weight"
HEAD = ((GATE, "generator.gate.bias"), ("generator.token_down.bias",))


@pytest.fixture
def trained(tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A site on the shipped release, whose patients have common classes."""
    monkeypatch.setattr(rounds, "_wait", lambda _: None)
    bench = site_bench.make(
        tmp_path / "north",
        limits={"kinds": ["episodes"], "episodes": {"denominator": 256}},
        classes={"akiec": "nv", "df": "mel", "vasc": "bkl"},
        cohorts=[{**c, "budget": {"epsilon": 9.0, "delta": 1e-5}} for c in cohorts()],
    )
    target = bench.folder / "releases" / "0001"
    site_bench.sign(release, target, bench.key)
    return bench


def newest(bench: Bench) -> Release:
    return Release.open(bench.folder / "releases" / "0001", key=bench.key.public_key())


def episodes(bench: Bench, groups: Any = HEAD, **changes: Any) -> tuple[Plan, Arrays]:
    release, names = newest(bench), [n for group in groups for n in group]
    start = dict(subset.start(release, [n for n in names if n in subset.allowed(release)]))
    terms = Terms("episodes", 2.0, 0.5, 2, (0.6, 0.8), groups, 256, 0.5).to_mapping() | changes.pop("terms", {})
    m = release.manifest
    fields = {
        "kind": "episodes", "release": release.sha256, "encoder": m.encoder_sha256, "classes": m.classes, "start": arrays_sha256(start), "terms": terms,
        "quorum": 6, **changes,
    }  # fmt: skip
    return bench.plan(**fields), start


def refusal(bench: Bench, plan: Plan, start: Arrays) -> str:
    try:
        check(bench.site, plan, start, newest(bench), 0, plan.issued + 1)
    except Refused as error:
        return error.code
    return "accepted"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda b: episodes(b), "accepted"),
        (lambda b: episodes(b, terms={"sigma": 1.9}), "plan_sigma"),
        (lambda b: episodes(b, terms={"clips": [0.8, 0.8]}), "plan_clip"),
        (lambda b: episodes(b, terms={"steps": 21}), "plan_steps"),
        (lambda b: episodes(b, terms={"q": 1e-7}), "plan_q"),
        (lambda b: episodes(b, terms={"denominator": 128}), "plan_denominator"),
        (lambda b: episodes(b, groups=((GATE,), ("generator.sentence.weight",))), "plan_names"),
        (lambda b: episodes(b, groups=((GATE,), ("base.conv_stem.weight",))), "plan_names"),
        (lambda b: episodes(b, groups=((GATE,), ("memory.rows",))), "plan_names"),
        (
            lambda b: episodes(b, groups=(("generator.shots",), ("generator.image_kind",))),
            "plan_names",
        ),  # nobody reads it
        (lambda b: episodes(b, groups=((GATE,), ("generator.core.weight", "generator.chan.weight"))), "plan_numbers"),
        (lambda b: episodes(b, quorum=1), "plan_signal"),
        (lambda b: episodes(b, terms={"sigma": 4.0}), "plan_signal"),
    ],
)
def test_an_episodes_plan_beyond_the_sites_limits_is_refused(
    trained: Bench, make: Callable[[Bench], tuple[Plan, Arrays]], code: str
) -> None:
    assert refusal(trained, *make(trained)) == code


def test_a_site_can_name_the_parameters_that_may_be_trained(trained: Bench) -> None:
    limits = {"kinds": ["episodes"], "episodes": {"denominator": 256, "parameters": [GATE]}}
    trained.write(limits=limits, classes={"akiec": "nv", "df": "mel", "vasc": "bkl"})
    assert refusal(trained, *episodes(trained)) == "plan_names"


def test_the_signal_is_that_of_the_note() -> None:
    """N mu / sqrt(S d): 100 patients at each of six sites, epsilon 3, 260 numbers (dp-utility note, section 6: 10.9)."""
    mu = accountant.gaussian_mu(3.0, 1e-5)
    terms = Terms("episodes", math.sqrt(15) / mu, 1.0, 15, (1.0,), (("w",),), 100)
    assert terms.signal(260, 6) == pytest.approx(10.9, abs=0.05)
    sampled = Terms("episodes", math.sqrt(15) / mu, 0.25, 15, (1.0,), (("w",),), 25)
    assert sampled.signal(260, 6) == pytest.approx(0.25 * 10.9, abs=0.02)  # a quarter of mu at the same noise


@pytest.mark.slow
def test_several_sampled_steps_in_groups_go_the_same_way_and_are_accounted_by_loss_distributions(
    trained: Bench,
) -> None:
    plan, start = episodes(trained, terms={"sigma": 2.1})
    for number in (1, 2):
        reply = ask(trained, plan.model_copy(update={"round": number}), start)
        assert reply.status == egress.ACCEPTED
        assert {n: a.shape for n, a in reply.arrays.items()} == {n: a.shape for n, a in start.items()}
        spread = 0.5 * math.sqrt(2) * 2.1 / 256  # rate, steps, sigma, clip 1, denominator
        flat = np.concatenate([a.ravel() for a in reply.arrays.values()])
        assert 0.7 * spread < flat.std() < 1.4 * spread
    found = reply.statement
    assert found["events"] == [[2.1, 0.5, 2]] * 2 and not found["mu_is_exact"] and found["groups"] == 2
    assert "privacy loss distribution" in found["accountant"]
    assert found["epsilon"] == pytest.approx(accountant.epsilon([Event(2.1, 0.5, 4)], 1e-5), abs=1e-4)
    assert [c["cohort"] for c in charges(trained)] == ["first", "first"]  # several rounds of one cohort


@pytest.mark.slow
def test_a_patients_record_moves_the_gradient_of_the_real_generator(trained: Bench) -> None:
    import torch

    from sgps_privacy.engine import per_record_gradients

    release, names = newest(trained), [n for g in HEAD for n in g]
    patients = [*records.prepared(trained.site, release, "first"), None]
    found = work.records("episodes", release, patients)
    assert [r is None for r in found] == [False] * site_bench.PATIENTS + [True]
    theta = {n: torch.from_numpy(a) for n, a in subset.start(release, names).items()}
    rows = per_record_gradients(work.WORK["episodes"].loss(release, names), theta, found)
    norms = sum(g.flatten(1).square().sum(1) for g in rows.values())
    assert (norms[:-1] > 0).all() and norms[-1] == 0
