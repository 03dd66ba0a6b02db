"""A coordinator that lies: every field of a plan and of its terms, every limit by one step, repeated and split orders.

Each is refused before anything is charged, read or computed, with one word to the coordinator and the reason in the site's own log.
The tables are compared with the models: a new field without a line here fails.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import Bench

from sgps.kinds import KINDS
from sgps.memory import COUNTS, ROWS
from sgps.plan import _SHAPES, Plan, SignedPlan, arrays_sha256
from sgps.site_mean import COUNT, SUM
from sgps_client import log, records, rules
from sgps_client import round as rounds
from sgps_client.config import SiteLimits
from sgps_client.round import answer, open_ledger
from sgps_privacy import accountant, egress
from sgps_privacy.engine import PrivateRound
from sgps_privacy.terms import Terms

Case = tuple[Any, str]
NOW = time.time()
HEX = "0" * 64
OTHER = site_bench.CLASSES[::-1]


def moved(seconds: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """All three times, later by `seconds`."""
    return lambda plan: {**plan, **{t: plan[t] + seconds for t in ("issued", "answer_at", "deadline")}}


# field -> what a coordinator that holds the key may write there (or how it changes the whole plan), and the word that it gets
PLAN: dict[str, list[Case]] = {
    "kind": [("unheard", "plan_signature"), (["rows"], "plan_signature")],
    "federation": [("f" * 64, "plan_federation"), ("derm", "plan_signature")],
    "round": [(0, "plan_signature"), (-1, "plan_signature"), (1_000_001, "plan_signature"), (1.5, "plan_signature")],
    "attempt": [(0, "plan_signature"), (1_000_001, "plan_signature")],
    "release": [
        ("newest", "plan_signature"),
        ("", "plan_signature"),
    ],  # of another one: a round that depends on it waits
    "encoder": [(HEX, "plan_encoder"), ("", "plan_signature")],
    "classes": [
        ([*OTHER], "plan_classes"),
        ([*site_bench.CLASSES, "nevus"], "plan_classes"),
        ([site_bench.CLASSES[0]], "plan_classes"),
        ([site_bench.CLASSES[0]] * 2, "plan_signature"),
        ([], "plan_signature"),
    ],
    "start": [(HEX, "plan_start")],
    "terms": [({}, "plan_terms"), ([], "plan_signature")],
    "code": [([HEX], "plan_code"), ([], "plan_signature")],
    "sites": [(["south"], "plan_site"), ([], "plan_signature"), (["north/../south"], "plan_signature")],
    "echo": [({"north": "a" * 64}, "rolled_back"), ({"north": "none"}, "plan_signature")],
    "centres": [
        ({"south": HEX}, "plan_centre"),
        ({"north": HEX}, "plan_centre"),
        ({"north": "none"}, "plan_signature"),
    ],
    "quorum": [(0, "plan_signature"), (10_001, "plan_signature")],
    "issued": [
        (moved(rules.CLOCK_SLACK + 60), "plan_time"),
        (4e9, "plan_signature"),  # after answer_at
        (math.nan, "plan_signature"),
    ],
    "answer_at": [
        (lambda plan: {**plan, "answer_at": NOW + 1e9, "deadline": NOW + 2e9}, "plan_time"),
        (lambda plan: {**plan, "answer_at": plan["deadline"] + 1}, "plan_signature"),
        (math.inf, "plan_signature"),
    ],
    "deadline": [(moved(-1000), "plan_time"), (0.0, "plan_signature"), (math.inf, "plan_signature")],
}
ABOVE, BELOW = math.nextafter(1.0, 2), math.nextafter(1.0, 0)
TERMS: dict[str, list[Case]] = {
    "kind": [("episodes", "plan_kind"), (7, "plan_kind"), (["rows"], "plan_kind")],
    "sigma": [
        *((s, "plan_sigma") for s in (0, -1.391, 1e-300, 1e300, math.nan, math.inf, "1.391", True, None, 10**400))
    ],
    "q": [*((q, "plan_q") for q in (ABOVE, BELOW, 0.5, 0, -1, math.nan, "1"))],
    "steps": [*((t, "plan_steps") for t in (0, -1, 1.0, 2**31, "1", True))],
    "clips": [
        *((c, "plan_clip") for c in ([], [0.0], [-1.0], [1e-10], [math.nan], [math.inf], ["1"], 1.0, [1.0, 1.0])),
        ([0.5, 0.5], "plan_groups"),
    ],
    "groups": [
        ([[ROWS]], "plan_names"),
        ([[COUNTS]], "plan_names"),
        ([[ROWS, ROWS, COUNTS]], "plan_names"),
        ([[ROWS, COUNTS, "base.conv_stem.weight"]], "plan_names"),
        ([["generator.core.weight"]], "plan_names"),
        ([[ROWS, COUNTS], []], "plan_groups"),
        ([[ROWS, 5]], "plan_groups"),
        ([], "plan_groups"),
        (["memory.rows"], "plan_groups"),
    ],
    "denominator": [*((d, "plan_denominator") for d in (0, 2, -1, 1.0, True))],
    "rate": [*((r, "plan_rate") for r in (0, -1, 1e10, 1e-10, math.nan, math.inf))],
}
TERM_FIELDS = [f.name for f in dataclasses.fields(Terms)]
# limit of site.yaml -> the smallest step beyond it
LIMITS: dict[str, Case] = {
    "least_sigma": ({"sigma": math.nextafter(0.6, 0)}, "plan_sigma"),
    "most_clip": ({"clips": [ABOVE]}, "plan_clip"),
    "most_steps": ({"steps": 2}, "plan_steps"),
    "most_q": ({"q": ABOVE}, "plan_q"),
    "denominator": ({"denominator": 2}, "plan_denominator"),
    "kinds": ({"kind": "site_mean"}, "plan_kind"),
    "site_mean": ({"kind": "site_mean", "sigma": 1.0}, "plan_kind"),  # their own limits: KIND_LIMITS
    "episodes": ({"kind": "episodes", "sigma": 1.0}, "plan_kind"),
}


def cases(table: dict[str, list[Case]]) -> list[Any]:
    return [
        pytest.param(field, value, code, id=f"{field}-{i}")
        for field, found in table.items()
        for i, (value, code) in enumerate(found)
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One for all plans that must be refused: none of them may leave a trace."""
    return site_bench.make(tmp_path_factory.mktemp("hostile") / "north")


@pytest.fixture
def untouched(site: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A record that is read, an image that is encoded, an engine that runs, or an entry in the ledger fails the test."""

    def touched(*_: Any, **__: Any) -> None:
        pytest.fail("something was read or computed")

    for owner, name in ((rounds, "prepared"), (records, "encoded"), (PrivateRound, "run"), (rounds, "_wait")):
        monkeypatch.setattr(owner, name, touched if name != "_wait" else lambda _: None)
    before = ledger_kinds(site)
    yield
    assert ledger_kinds(site) == before


def ledger_kinds(bench: Bench) -> list[str]:
    with open_ledger(bench.site) as ledger:
        return [e["kind"] for e in ledger.history() if e["kind"] != "COHORT"]  # closing a list spends nothing


def signed(bench: Bench, plan: dict[str, Any]) -> SignedPlan:
    """What the holder of the key can sign: anything, also what no `Plan` would take."""
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    return SignedPlan(text=text, signature=bench.key.sign(text.encode()).hex())


def refused(bench: Bench, order: SignedPlan, code: str) -> None:
    """One word, nothing else, and the reason in the site's log."""
    seen = len(log_lines(bench))
    with log.reporting(log.Report(bench.site.log)):
        reply = answer(bench.site, order.text, order.signature, bench.start())
    assert (reply.status, dict(reply.arrays), reply.receipt, dict(reply.statement)) == (code, {}, "", {})
    said = [e for e in log_lines(bench)[seen:] if e["event"] == "refused"]
    assert [e["code"] for e in said] == [code]
    assert len(said[0]["detail"]) > 20


def log_lines(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bench.site.log.read_text().splitlines()] if bench.site.log.exists() else []


def mapping(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bench.plan().model_dump_json())
    return found


def changed(bench: Bench, field: str, value: Any) -> dict[str, Any]:
    plan = mapping(bench)
    return value(plan) if callable(value) else {**plan, field: value}  # type: ignore[no-any-return]


def test_every_field_of_a_plan_of_its_terms_and_of_the_limits_has_a_line_here() -> None:
    assert set(PLAN) == set(Plan.model_fields)
    assert set(TERMS) == set(TERM_FIELDS)
    assert set(LIMITS) == set(SiteLimits.model_fields)
    assert set(AGAIN) == set(_SHAPES) and set(FREE) == set(Plan.model_fields) - set(_SHAPES)
    assert set(KIND_LIMITS) | {"rows"} == set(KINDS)
    assert all(PLAN.values()) and all(TERMS.values())


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("field", "value", "code"), cases(PLAN))
def test_a_field_that_the_coordinator_itself_wrote_wrong(site: Bench, field: str, value: Any, code: str) -> None:
    refused(site, signed(site, changed(site, field, value)), code)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("field", "value", "code"), cases(TERMS))
def test_terms_that_the_coordinator_itself_wrote_wrong(site: Bench, field: str, value: Any, code: str) -> None:
    plan = mapping(site)
    refused(site, signed(site, {**plan, "terms": {**plan["terms"], field: value}}), code)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("limit", SiteLimits.model_fields)
def test_a_limit_exceeded_by_one_step(site: Bench, limit: str) -> None:
    change, code = LIMITS[limit]
    plan = mapping(site)
    refused(site, signed(site, {**plan, "terms": {**plan["terms"], **change}}), code)


# kind -> limit of site.yaml -> the smallest step beyond it, in a plan of that kind that is within all others
KIND_LIMITS: dict[str, dict[str, Case]] = {
    "site_mean": {
        "least_sigma": ({"sigma": math.nextafter(1.2, 0)}, "plan_sigma"),
        "most_clip": ({"clips": [ABOVE]}, "plan_clip"),
        "most_steps": ({"steps": 2}, "plan_steps"),
        "most_q": ({"q": BELOW}, "plan_q"),
        "denominator": ({"denominator": 2}, "plan_denominator"),
    },
    "episodes": {
        "least_sigma": ({"sigma": math.nextafter(2.0, 0)}, "plan_sigma"),
        "most_clip": ({"clips": [ABOVE]}, "plan_clip"),
        "most_steps": ({"steps": 21}, "plan_steps"),
        "most_q": ({"q": math.nextafter(0.5, 1)}, "plan_q"),
        "denominator": ({"denominator": 65}, "plan_denominator"),
        "most_numbers": ({"groups": [["generator.core", "generator.gate"]]}, "plan_numbers"),
        "parameters": ({"groups": [["generator.text"]]}, "plan_names"),
    },
}
WITHIN: dict[str, dict[str, Any]] = {
    "site_mean": {"sigma": 1.2, "groups": [[SUM, COUNT]]},
    "episodes": {"sigma": 2.0, "steps": 20, "q": 0.5, "denominator": 64, "groups": [["generator.core"]]},
}


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A site that takes part in every kind, at the defaults but for what shall be exceeded."""
    training = {"most_q": 0.5, "most_numbers": 40, "parameters": ["generator.core", "generator.gate"]}
    return site_bench.make(
        tmp_path_factory.mktemp("kinds") / "north",
        limits={"kinds": ["rows", "site_mean", "episodes"], "episodes": training},
    )


def asked(bench: Bench, kind: str, **change: Any) -> Plan:
    terms = {**bench.terms(kind=kind), **WITHIN[kind], **change}
    return bench.plan(kind=kind, terms=terms, quorum=10_000)


def shapes_of(_: Any, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Parameters of a generator that this release does not have."""
    known: dict[str, tuple[int, ...]] = {"generator.core": (4, 10), "generator.gate": (1,), "generator.text": (5,)}
    return {name: known[name] for name in names}


@pytest.mark.parametrize(("kind", "limit"), [(k, limit) for k, found in KIND_LIMITS.items() for limit in found])
def test_a_limit_of_another_kind_exceeded_by_one_step(
    every_kind: Bench, monkeypatch: pytest.MonkeyPatch, kind: str, limit: str
) -> None:
    assert set(type(every_kind.site.config.limits.of(kind)).model_fields) <= set(KIND_LIMITS[kind])  # type: ignore[arg-type]
    monkeypatch.setattr(rounds, "_wait", lambda _: None)
    monkeypatch.setattr(rounds, "prepared", lambda *_: pytest.fail("a record was read"))
    monkeypatch.setitem(KINDS, "episodes", dataclasses.replace(KINDS["episodes"], shapes=shapes_of))  # type: ignore[arg-type]
    # within every limit it comes as far as the arrays, which are those of `rows`
    refused(every_kind, asked(every_kind, kind).sign(every_kind.key), "plan_start")
    change, code = KIND_LIMITS[kind][limit]
    refused(every_kind, asked(every_kind, kind, **change).sign(every_kind.key), code)
    assert not ledger_kinds(every_kind)


def test_a_round_that_would_harm_is_refused(every_kind: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_wait", lambda _: None)
    monkeypatch.setitem(KINDS, "episodes", dataclasses.replace(KINDS["episodes"], shapes=shapes_of))  # type: ignore[arg-type]
    weak = asked(every_kind, "episodes", sigma=1e4)
    refused(every_kind, weak.sign(every_kind.key), "plan_signal")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("field", Plan.model_fields)
def test_a_field_altered_on_the_way(site: Bench, field: str) -> None:
    genuine = signed(site, mapping(site))
    altered = json.dumps(changed(site, field, PLAN[field][0][0]), sort_keys=True, separators=(",", ":"))
    assert altered != genuine.text
    refused(site, SignedPlan(text=altered, signature=genuine.signature), "plan_signature")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("field", [*Plan.model_fields, "epsilon"])
def test_a_field_too_few_or_too_many(site: Bench, field: str) -> None:
    plan = mapping(site)
    if field in plan and not Plan.model_fields[field].is_required():
        return  # its absence is a value
    other = {k: v for k, v in plan.items() if k != field} if field in plan else {**plan, field: 1.0}
    refused(site, signed(site, other), "plan_signature")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("field", [*TERM_FIELDS, "epsilon"])
def test_a_term_too_few_or_too_many(site: Bench, field: str) -> None:
    plan = mapping(site)
    terms = plan["terms"]
    if field == "rate":  # may be left out: 1
        return
    other = {k: v for k, v in terms.items() if k != field} if field in terms else {**terms, field: 1.0}
    refused(site, signed(site, {**plan, "terms": other}), "plan_terms")


@pytest.mark.usefixtures("untouched")
def test_one_number_more_than_the_class_memory_has(site: Bench) -> None:
    start = site.start()
    for more in ({ROWS: np.zeros((3, start[ROWS].shape[1] + 1), np.float32)}, {"extra": np.zeros(1, np.float32)}):
        arrays = {**start, **more}
        order = site.plan(start=arrays_sha256(arrays)).sign(site.key)
        assert answer(site.site, order.text, order.signature, arrays).status == "plan_start"


# --- orders that are right in themselves -------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(rounds, "_wait", lambda _: None)
    found = site_bench.make(tmp_path / "north", cohorts=budget(20.0))
    records.prepared(found.site, found.release, "first")
    return found


def budget(epsilon: float) -> list[dict[str, Any]]:
    return [{**site_bench.settings("")["cohorts"][0], "budget": {"epsilon": epsilon, "delta": 1e-5}}]


def ask(bench: Bench, plan: Plan) -> egress.Reply:
    order = plan.sign(bench.key)
    return answer(bench.site, order.text, order.signature, bench.start())


# what shapes the payload -> another value of it that a coordinator may want for a round that is answered already
AGAIN: dict[str, Case] = {
    "kind": ({"kind": "rows"}, "accepted"),
    "federation": ({"federation": "f" * 64}, "plan_federation"),
    "round": ({"round": 2}, "budget"),  # a further round of the same patients
    "release": ({"release": HEX}, "round_taken"),
    "encoder": ({"encoder": HEX}, "plan_encoder"),
    "classes": ({"classes": OTHER}, "plan_classes"),
    "start": ({"start": HEX}, "plan_start"),
    "terms": ({"terms": {"sigma": 2.0}}, "round_taken"),
    "code": ({"code": (HEX,)}, "plan_code"),
    "centres": ({"centres": {"north": HEX}}, "round_taken"),
    "quorum": ({"quorum": 2}, "round_taken"),
}


def test_the_round_that_was_answered_gives_nothing_new_whatever_is_asked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same round with other parameters, and a round back in time, get a refusal; with the same parameters, the same bytes."""
    limit = ask(bench, bench.plan(round=5, terms=bench.terms(sigma=0.6)))  # exactly at the limits: they are no tighter
    assert limit.status == "accepted"
    first = egress.encode(limit)
    monkeypatch.setattr(PrivateRound, "run", lambda *_: pytest.fail("the engine ran again"))
    monkeypatch.setattr(rounds, "prepared", lambda *_: pytest.fail("a record was read"))
    for field in _SHAPES:
        change, code = AGAIN[field]
        terms = bench.terms(**{"sigma": 0.6, **change.get("terms", {})})
        plan = bench.plan(**{"round": 5, **change, **({"round": 6} if field == "round" else {}), "terms": terms})
        reply = ask(bench, plan)
        assert reply.status == code, field
        assert code != "accepted" or egress.encode(reply) == first
    same = {"round": 6, "terms": bench.terms(sigma=0.6)}
    for back in (1, 4):  # round 6 was asked for: nothing before it is begun any more
        assert ask(bench, bench.plan(**{**same, "round": back})).status == "plan_round"
    assert egress.encode(ask(bench, bench.plan(**{**same, "round": 5}))) == first
    assert ledger_kinds(bench) == ["CHARGE", "COMMIT"]


# what shapes no payload -> another value of it: a further attempt, with the same bytes
FREE: dict[str, dict[str, Any]] = {
    "attempt": {"attempt": 9},
    "sites": {"sites": ("north",)},
    "echo": {"echo": {"south": "a" * 64}},
    "issued": {"issued": NOW - 60},
    "answer_at": {"answer_at": NOW + 1000, "deadline": NOW + 2000},
    "deadline": {"deadline": NOW + 100_000},
}


def test_what_shapes_no_payload_gets_the_same_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = egress.encode(ask(bench, bench.plan()))
    monkeypatch.setattr(PrivateRound, "run", lambda *_: pytest.fail("the engine ran again"))
    for field in set(Plan.model_fields) - set(_SHAPES):
        assert egress.encode(ask(bench, bench.plan(**FREE[field]))) == first, field
    assert ledger_kinds(bench) == ["CHARGE", "COMMIT"]


def test_a_budget_split_over_federations_is_one_budget(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coordinators that know of each other ask in turn for the same patients, each within its own right."""
    bench.write(cohorts=budget(4.0))
    others = [
        site_bench.make(tmp_path / name, state="../north/state", cohorts=budget(4.0)) for name in ("second", "third")
    ]
    for other in others:
        records.prepared(other.site, other.release, "first")
    got = [ask(one, one.plan(terms=one.terms(sigma=1.8))).status for one in (bench, *others)]
    assert got == ["accepted", "accepted", "budget"]
    with open_ledger(bench.site) as ledger:
        spent = ledger.spent("first")
    assert len(spent) == 2
    assert accountant.epsilon(spent, 1e-5) <= 4.0 < accountant.epsilon([*spent, spent[0]], 1e-5)
    monkeypatch.setattr(rounds, "prepared", lambda *_: pytest.fail("a record was read"))
    refused(others[1], others[1].plan(attempt=2, terms=others[1].terms(sigma=1.8)).sign(others[1].key), "budget")
