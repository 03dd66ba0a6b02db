"""Every way in which a reply can be wrong gets its own word, and a good one is taken bit for bit."""

import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from sgps.memory import COUNTS, ROWS
from sgps.plan import Plan, arrays_sha256
from sgps.release import MANIFEST_LIMIT
from sgps_privacy import egress, statement
from sgps_privacy.events import Event
from sgps_privacy.terms import Terms
from sgps_server.pki import public_pem
from sgps_server.replies import MOST_TEXT, Rejected, check, norm_bound

KEY = ec.generate_private_key(ec.SECP384R1())
START = {ROWS: np.zeros((3, 4), np.float32), COUNTS: np.zeros(3, np.float32)}
SHAPES = {n: a.shape for n, a in START.items()}
TERMS = Terms("rows", 1.391, 1.0, 1, (1.0,), ((ROWS, COUNTS),), 1)
CODE = "c" * 64
NOW = time.time()
PLAN = Plan(
    kind="rows", federation="a" * 64, round=1, attempt=1, release="9" * 64, encoder="b" * 64, classes=("akiec", "df", "vasc"), start=arrays_sha256(START),
    terms=TERMS.to_mapping(), code=(CODE,), sites=("north",), issued=NOW, answer_at=NOW, deadline=NOW + 60,
)  # fmt: skip
Fields = dict[str, Any]
Arrays = dict[str, np.ndarray]


def facts(terms: Terms = TERMS, **changes: Any) -> dict[str, Any]:
    event = Event(terms.sigma, terms.q, terms.steps)
    found = statement.statement(
        terms, [event], delta=1e-5, cap=3.0, numbers=15, code_hash=CODE, plan_hash=PLAN.sha256()
    )
    return {**found, **changes}


def sign(found: dict[str, Any], key: ec.EllipticCurvePrivateKey = KEY) -> dict[str, str]:
    text = json.dumps(found, sort_keys=True, separators=(",", ":"))
    return {"statement": text, "signature": key.sign(text.encode(), ec.ECDSA(hashes.SHA256())).hex()}


def good() -> tuple[Arrays, Fields]:
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    reply = egress.accept(arrays, plan_id=PLAN.sha256(), code_hash=CODE, statement=facts(), receipt="d" * 64)
    found, fields = reply.parts()
    return dict(found), {**fields, **sign(facts())}


def verdict(arrays: Arrays, fields: Fields) -> str:
    try:
        check("north", public_pem(KEY.public_key()), PLAN, SHAPES, arrays, fields, most_patients=1000)
    except Rejected as error:
        return error.code
    return "accepted"


def test_a_good_reply_is_taken_as_it_is() -> None:
    arrays, fields = good()
    taken = check("north", public_pem(KEY.public_key()), PLAN, SHAPES, arrays, fields, most_patients=1000)
    assert taken.sent.arrays[ROWS].tobytes() == arrays[ROWS].tobytes()
    assert (taken.site, taken.round, taken.sent.terms.sigma, taken.receipt) == ("north", 1, 1.391, "d" * 64)


def spoil(name: str) -> Callable[[Arrays, Fields], None]:
    def change(arrays: Arrays, fields: Fields) -> None:
        rows = arrays[ROWS]
        actions: dict[str, Callable[[], Any]] = {
            "nan": lambda: rows.__setitem__((0, 0), np.nan),
            "infinity": lambda: arrays[COUNTS].__setitem__(0, np.inf),
            "flat": lambda: arrays.update({ROWS: rows.ravel()}),
            "narrow": lambda: arrays.update({ROWS: rows[:, :3]}),
            "double": lambda: arrays.update({ROWS: rows.astype(np.float64)}),
            "integer": lambda: arrays.update({ROWS: rows.astype(np.int32)}),
            "missing": lambda: arrays.pop(COUNTS),
            "extra": lambda: arrays.update({"patients": np.zeros(1, np.float32)}),
            "huge": lambda: arrays.update({ROWS: rows + np.float32(1e4)}),
            "field": lambda: fields.update({"loss": 1}),
            "fewer fields": lambda: fields.pop("weight"),
            "weight": lambda: fields.update({"weight": 2}),
            "weight text": lambda: fields.update({"weight": "1"}),
            "plan": lambda: fields.update({"plan": "e" * 64}),
            "code": lambda: fields.update({"code": "e" * 64}),
            "status": lambda: fields.update({"status": "fine"}),
            "refusal": lambda: fields.update({"status": "budget"}),
            "no receipt": lambda: fields.update({"receipt": ""}),
            "bad receipt": lambda: fields.update({"receipt": "Z" * 64}),
            "other key": lambda: fields.update(sign(facts(), ec.generate_private_key(ec.SECP384R1()))),
            "altered": lambda: fields.update({"statement": fields["statement"].replace("1e-05", "1e-06")}),
            "no signature": lambda: fields.update({"signature": ""}),
            "not hex": lambda: fields.update({"signature": "xy"}),
            "not json": lambda: fields.update({**sign(facts()), "statement": "{"}),
            "long": lambda: fields.update({"statement": " " * 70_000}),
            "more facts": lambda: fields.update(sign(facts(patients=12))),
            "other sigma": lambda: fields.update(sign(facts(Terms("rows", 2.5, 1.0, 1, (1.0,), ((ROWS, COUNTS),), 1)))),
            "other plan": lambda: fields.update(sign(facts(plan_hash="e" * 64))),
            "other events": lambda: fields.update(sign(facts(events=[[2.0, 1.0, 1]]))),
            "many events": lambda: fields.update(sign(facts(events=[[1.391, 1.0, 1]] * 600))),
            "endless events": lambda: fields.update(sign(facts(events=[[1.391, 1.0, 1], [1.0, 1.0, 10**400]]))),
            "sampled events": lambda: fields.update(sign(facts(events=[[1.391, 1.0, 1], [0.3, 0.5, 10**5]]))),
            "flattering epsilon": lambda: fields.update(sign(facts(epsilon=0.1))),
            "flattering mu": lambda: fields.update(sign(facts(mu=0.1))),
            "larger epsilon": lambda: fields.update(sign(facts(epsilon=facts()["epsilon"] * 1.001))),
            "flattering replacement": lambda: fields.update(sign(facts(replacing_one_patient=3.0))),
            "flattering share": lambda: fields.update(sign(facts(recognised_at_5_percent_false_alarms=0.06))),
            "not exact": lambda: fields.update(sign(facts(mu_is_exact=False))),
            "other sampler": lambda: fields.update(sign(facts(sampler_distance=0.0))),
            "other cross-check": lambda: fields.update(sign(facts(cross_check_rdp=3.0))),
            "other accountant": lambda: fields.update(
                sign(facts(accountant=facts()["accountant"].replace("analytic Gaussian", "privacy loss distribution")))
            ),
            "cap below": lambda: fields.update(sign(facts(cap_epsilon=2.9))),
            "no delta": lambda: fields.update(sign(facts(delta=1.0))),
            "fewer numbers": lambda: fields.update(sign(facts(most_numbers=14))),
            "endless numbers": lambda: fields.update(sign(facts(most_numbers=10**400))),
            "other groups": lambda: fields.update(sign(facts(groups=2))),
        }
        actions[name]()

    return change


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("nan", "not_finite"), ("infinity", "not_finite"), ("flat", "shape"), ("narrow", "shape"), ("double", "type"),
        ("integer", "type"), ("missing", "names"), ("extra", "names"), ("huge", "norm"), ("field", "fields"),
        ("fewer fields", "fields"), ("weight", "form"), ("weight text", "form"), ("plan", "another_plan"), ("code", "code"),
        ("status", "status"), ("refusal", "budget"), ("no receipt", "receipt"), ("bad receipt", "receipt"),
        ("other key", "statement_signature"), ("altered", "statement_signature"), ("no signature", "statement_signature"),
        ("not hex", "statement_signature"), ("not json", "statement_signature"), ("long", "statement_size"),
        ("more facts", "statement_form"), ("other sigma", "statement_facts"), ("other plan", "statement_facts"),
        ("other events", "statement_facts"), ("many events", "statement_size"),
        ("endless events", "statement_form"), ("sampled events", "statement_facts"),
        ("flattering epsilon", "statement_figures"), ("flattering mu", "statement_figures"),
        ("larger epsilon", "statement_figures"), ("flattering replacement", "statement_figures"),
        ("flattering share", "statement_figures"), ("not exact", "statement_figures"), ("other sampler", "statement_figures"),
        ("other cross-check", "statement_figures"), ("other accountant", "statement_figures"), ("cap below", "statement_figures"),
        ("no delta", "statement_facts"), ("fewer numbers", "statement_form"), ("endless numbers", "statement_form"), ("other groups", "statement_facts"),
    ],
)  # fmt: skip
def test_what_is_wrong_gets_its_word(name: str, word: str) -> None:
    arrays, fields = good()
    assert verdict(arrays, fields) == "accepted"
    spoil(name)(arrays, fields)
    assert verdict(arrays, fields) == word


SAMPLED = Terms("episodes", 2.0, 0.5, 4, (1.0,), (("w",),), 64)


@pytest.mark.parametrize(("issued", "word"), [((SAMPLED,), "accepted"), ((), "statement_facts")])
def test_sampled_events_count_where_a_plan_asked_for_them(issued: tuple[Terms, ...], word: str) -> None:
    """The cohort has paid for sampled episodes before; the statement of a rows round says so."""
    arrays, fields = good()
    event = Event(SAMPLED.sigma, SAMPLED.q, SAMPLED.steps)
    found = statement.statement(
        TERMS, [event, Event(1.391, 1.0, 1)], delta=1e-5, cap=9.0, numbers=15, code_hash=CODE, plan_hash=PLAN.sha256(),
        most_numbers=865,
    )  # fmt: skip
    fields.update(sign(found))
    key = public_pem(KEY.public_key())
    try:
        check("north", key, PLAN, SHAPES, arrays, fields, most_patients=1000, issued=issued)
    except Rejected as error:
        assert error.code == word
    else:
        assert word == "accepted"


@pytest.mark.parametrize("more", [[[2.0, 0.5, 4]], [[0.001, 1.0, 1000]], [[0.001, 1.0, 2**31 - 1]], [[0.05, 1.0, 1]]])
def test_a_statement_that_would_keep_the_accountant_busy_is_refused_at_once(more: list[list[float]]) -> None:
    """Beside sampling every event must be of a plan that was issued, as often at most: each of these took memory, minutes or a crash."""
    arrays, fields = good()
    found = facts(events=[[2.0, 0.5, 4], [1.391, 1.0, 1], *more], most_numbers=865)
    fields.update(sign(found))
    start = time.process_time()
    with pytest.raises(Rejected) as caught:
        check("north", public_pem(KEY.public_key()), PLAN, SHAPES, arrays, fields, 1000, issued=(SAMPLED,))
    assert caught.value.code == "statement_facts"
    assert time.process_time() - start < 5  # processor-seconds, where it took minutes


def test_the_statements_of_many_sites_and_rounds_fit_into_a_release() -> None:
    honest = len(good()[1]["statement"])
    assert honest < MOST_TEXT / 2
    assert 100 * 4 * MOST_TEXT < MANIFEST_LIMIT  # as fields, one number a line, and as the signed text


@pytest.mark.parametrize(("status", "code", "told"), [
    ("plan_code", "e" * 64, "e" * 64), ("plan_code", "<b>" * 30, ""), ("plan_code", 7, ""), ("budget", "e" * 64, ""),
])  # fmt: skip
def test_a_refusal_for_its_code_names_the_code(status: str, code: Any, told: str) -> None:
    with pytest.raises(Rejected) as caught:
        arrays, fields = {}, {**egress.refuse("budget").parts()[1], "status": status, "code": code}
        check("north", public_pem(KEY.public_key()), PLAN, SHAPES, arrays, fields, most_patients=1000)
    assert (caught.value.code, caught.value.site_code) == (status, told)


def test_a_refusal_needs_no_plan_and_is_marked_as_the_sites_own() -> None:
    arrays, fields = egress.refuse("plan_signature").parts()
    with pytest.raises(Rejected) as caught:
        check("north", public_pem(KEY.public_key()), PLAN, SHAPES, dict(arrays), fields, most_patients=1000)
    assert (caught.value.code, caught.value.refusal, caught.value.receipt) == ("plan_signature", True, "")


def test_a_rejected_reply_leaves_its_receipt_for_the_echo() -> None:
    """Its payload has left the site: an echo without it would let the site's officer forgive what is spent."""
    arrays, fields = good()
    arrays[ROWS][0, 0] = np.nan
    with pytest.raises(Rejected) as caught:
        check("north", public_pem(KEY.public_key()), PLAN, SHAPES, arrays, fields, most_patients=1000)
    assert caught.value.receipt == "d" * 64


def test_the_norm_bound_lets_every_honest_sum_through() -> None:
    """As many patients as allowed, all alike, and noise: a hundred draws, none beyond; twice as many patients always."""
    rng, bound = np.random.default_rng(1), norm_bound(TERMS, 15, 1000)
    honest = rng.normal(size=(100, 15)) * TERMS.sigma
    honest[:, 0] += 1000
    assert (np.linalg.norm(honest, axis=1) <= bound).all()
    honest[:, 0] += 1000
    assert (np.linalg.norm(honest, axis=1) > bound).all()
    assert math.isclose(norm_bound(TERMS, 15, 0), TERMS.sigma * (math.sqrt(15) + 8))


def test_every_figure_of_a_statement_is_recomputed() -> None:
    """Whatever number of it a site changes, its reply does not count; what is not a number is a constant text or named elsewhere."""
    for name, value in facts().items():
        if isinstance(value, float):
            arrays, fields = good()
            fields.update(sign(facts(**{name: value * (1 + 1e-3) if name != "cap_epsilon" else value * 0.9})))
            assert verdict(arrays, fields) in {"statement_figures", "statement_facts"}, name


def test_the_patients_column_and_the_accountants_version_are_the_sites_own() -> None:
    arrays, fields = good()
    unit = "one patient (column lesion_id), all images of that patient"
    fields.update(sign(facts(unit=unit, accountant="dp-accounting 0.6.99 (analytic Gaussian)", cap_epsilon=8.0)))
    assert verdict(arrays, fields) == "accepted"
