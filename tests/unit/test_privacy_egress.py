"""What may leave a site, and what cannot be put into a reply."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from sgps_privacy import egress
from sgps_privacy.accountant import epsilon
from sgps_privacy.egress import Reply, accept, decode, encode, refuse
from sgps_privacy.errors import CODES, PrivacyError
from sgps_privacy.events import Event
from sgps_privacy.noise import sampler_distance
from sgps_privacy.statement import FIELDS, check, read_events, statement, text
from sgps_privacy.terms import Terms

TERMS = Terms("episodes", 2.685, 1.0, 20, (1.0,), (("w", "b"),), 64)
ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([0.5])}
NAME = "Anna Muster"


def words(**change: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"delta": 1e-5, "cap": 8, "numbers": 865, "code_hash": "c0de", "plan_hash": "b1a"}
    return statement(TERMS, [Event(2.685, 1.0, 20)], **{**facts, **change})


def reply() -> Reply:
    return accept(ARRAYS, plan_id="plan-7", code_hash="c0de", statement=words())


def test_a_reply_has_exactly_the_allowed_keys() -> None:
    assert tuple(f.name for f in fields(Reply)) == egress.KEYS
    assert set(egress.KEYS) == {"arrays", "weight", "plan_id", "code_hash", "status", "receipt", "statement"}
    assert reply().weight == 1


def test_the_same_reply_gives_the_same_bytes_whatever_the_order_of_its_arrays() -> None:
    turned = accept(dict(reversed(ARRAYS.items())), plan_id="plan-7", code_hash="c0de", statement=words())
    assert len({encode(reply()), encode(turned), encode(decode(encode(reply())))}) == 1


def test_arrays_and_receipt_survive_the_wire() -> None:
    got = decode(encode(reply().with_receipt("a" * 64)))
    assert got.receipt == "a" * 64 and got.status == "accepted"
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(got.arrays[name], array)
    assert got.statement == words()


def test_arrays_in_another_memory_order_arrive_as_they_are() -> None:
    turned = {"w": np.asfortranarray(ARRAYS["w"]), "s": np.array(3, dtype=np.float32)}
    got = decode(encode(accept(turned, plan_id="p", code_hash="c", statement=words())))
    np.testing.assert_array_equal(got.arrays["w"], ARRAYS["w"])
    assert got.arrays["s"].shape == ()


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_refusal_is_one_constant_word(code: str) -> None:
    got = decode(encode(refuse(code, plan_id="plan-7")))
    assert (got.status, got.arrays, got.statement, got.receipt) == (code, {}, {}, "")


def smuggle_array(name: str, array: Any) -> Callable[[], object]:
    return lambda: accept({**ARRAYS, name: array}, plan_id="p", code_hash="c", statement=words())


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: refuse(f"failed at {NAME}"),
        lambda: refuse("budget", plan_id=NAME),
        lambda: accept(ARRAYS, plan_id="p", code_hash=f"/data/{NAME}.png", statement=words()),
        lambda: accept(ARRAYS, plan_id="p", code_hash="c", statement={**words(), "patients": 17}),
        lambda: accept(ARRAYS, plan_id="p", code_hash="c", statement={**words(), "unit": NAME}),
        lambda: accept(ARRAYS, plan_id="p", code_hash="c", statement={**words(), "not_covered": [NAME]}),
        lambda: accept(ARRAYS, plan_id="p", code_hash="c", statement={**words(), "noise": NAME}),
        lambda: accept(ARRAYS, plan_id="p", code_hash="c", statement={**words(), "epsilon": NAME}),
        lambda: accept(ARRAYS, plan_id="p", code_hash="c", statement={**words(), "events": [[1.0, 1.0, 1, 17]]}),
        lambda: accept(ARRAYS, plan_id="p", code_hash="c", statement={**words(), "events": [[2.685, 1, 20]]}),
        lambda: accept(ARRAYS, plan_id="p", code_hash="c", statement={**words(), "groups": True}),
        lambda: accept(ARRAYS, plan_id="p", code_hash="c", statement={}),
        lambda: accept({}, plan_id="p", code_hash="c", statement=words()),
        lambda: Reply({}, 1, "p", "c", "budget", "", {"count": 3}),
        lambda: Reply(ARRAYS, 1, "p", "c", "budget", "", {}),
        lambda: Reply({}, 1, "p", "c", "budget", "a" * 64, {}),
        lambda: Reply(ARRAYS, 17, "p", "c", "accepted", "", words()),
        lambda: Reply(ARRAYS, True, "p", "c", "accepted", "", words()),
        lambda: Reply(ARRAYS, 1, "p", "c", "accepted", f"{NAME}", words()),
        smuggle_array(NAME, np.float32([1])),
        smuggle_array("raw", np.float64([1])),
        smuggle_array("count", np.int64([17])),
        smuggle_array("x", np.float32([np.nan])),
        smuggle_array("x", [1.0]),
        lambda: encode({"arrays": {}, "count": 17}),  # type: ignore[arg-type]
        lambda: words(unit_column=f"{NAME}; cases: 17"),
    ],
)
def test_nothing_else_can_be_put_into_a_reply(attempt: Callable[[], object]) -> None:
    with pytest.raises(PrivacyError) as caught:
        attempt()
    assert NAME not in str(caught.value)


def test_a_kind_of_reply_that_checks_less_does_not_leave() -> None:
    @dataclass(frozen=True)
    class Loose(Reply):
        def __post_init__(self) -> None:
            """Checks nothing."""

    with pytest.raises(PrivacyError, match="only a Reply"):
        encode(Loose(ARRAYS, 17, NAME, "c", "accepted", "", {}))


def test_a_count_in_the_bytes_is_refused_on_arrival() -> None:
    rest = {
        "weight": 1,
        "plan_id": "",
        "code_hash": "",
        "status": "budget",
        "receipt": "",
        "statement": {},
        "count": 17,
    }
    with pytest.raises(PrivacyError):
        decode(save({}, {"reply": json.dumps(rest, sort_keys=True, separators=(",", ":"))}))


def test_only_the_canonical_bytes_of_a_reply_are_one() -> None:
    meta = {"weight": 1, "plan_id": "", "code_hash": "", "status": "budget", "receipt": "", "statement": {}}
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    assert decode(save({}, {"reply": text})).status == "budget"
    with pytest.raises(PrivacyError, match="canonical"):
        decode(save({}, {"reply": json.dumps(meta, sort_keys=True)}))
    with pytest.raises(PrivacyError, match="exactly the keys"):
        decode(save({}, {"reply": text, "note": NAME}))


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"", lambda b: b[:8], lambda b: b.replace(b"accepted", b"rejected"),
                                   lambda b: b.replace(b'\\"weight\\":1', b'\\"weight\\":2')])  # fmt: skip
def test_other_bytes_are_no_reply(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(PrivacyError):
        decode(spoil(encode(reply())))


def test_a_reply_does_not_change_with_the_arrays_it_was_built_from() -> None:
    mine = {"w": ARRAYS["w"].copy()}
    built = accept(mine, plan_id="p", code_hash="c", statement=words())
    before = encode(built)
    mine["w"][:] = 7
    assert encode(built) == before


def test_the_statement_can_be_recomputed_from_its_own_events() -> None:
    found = words()
    assert set(found) == set(FIELDS)
    plain = epsilon(read_events(found), found["delta"])
    assert plain < found["epsilon"] == pytest.approx(plain, abs=1e-5)  # the sampler's distance is paid for
    assert found["epsilon"] == pytest.approx(7.998, abs=1e-3) and found["mu"] == pytest.approx(1.6656, abs=1e-4)
    assert found["replacing_one_patient"] == pytest.approx(19.1, abs=0.1)
    assert found["cross_check_rdp"] == pytest.approx(8.597, abs=0.02)
    assert found["epsilon"] <= found["cap_epsilon"]


def test_the_sampler_is_paid_for_in_every_number_of_every_step_that_was_charged() -> None:
    assert words()["sampler_distance"] == sampler_distance(865 * 20)
    events = [Event(2.685, 1.0, 20), Event(4.0, 1.0, 5)]
    facts = {"delta": 1e-5, "cap": 9.0, "code_hash": "c", "plan_hash": "p"}
    found = statement(TERMS, events, numbers=865, most_numbers=4420, **facts)
    assert (found["most_numbers"], found["sampler_distance"]) == (4420, sampler_distance(4420 * 25))


def test_the_statement_in_words() -> None:
    lines = text(words(unit_column="lesion_id"))
    for part in ("column lesion_id", "epsilon 7.998 at delta 1e-05", "mu 1.6656 (exact; full batch)", "finds at most 51 %",
                 "20 noised sums, full batch, noise multiplier 2.685, clip 1", "denominator 64, 865 numbers",
                 "Renyi accounting 8.59", "cap: epsilon 8", "a patient who is also treated elsewhere"):  # fmt: skip
        assert part in lines


def test_a_published_epsilon_is_never_rounded_down() -> None:
    found = words()
    assert "epsilon 7.999 " in text({**found, "epsilon": 7.9981})


def test_a_statement_about_sampled_rounds_says_that_mu_is_only_equivalent() -> None:
    sampled = Terms("episodes", 2.5, 0.5, 4, (1.0,), (("w",),), 64)
    found = statement(sampled, [Event(2.5, 0.5, 4)], delta=1e-5, cap=8.0, numbers=10, code_hash="c", plan_hash="p")
    check(found)
    assert not found["mu_is_exact"] and "privacy loss distribution" in found["accountant"]
    assert found["epsilon"] < found["cross_check_rdp"]
    assert "rate 0.5" in text(found) and "same epsilon" in text(found)


def test_the_flat_fields_of_a_reply_are_its_keys_and_the_signature() -> None:
    arrays, fields = reply().with_receipt("a" * 64).parts("beef")
    assert tuple(fields) == egress.FIELDS
    assert encode(Reply.from_parts(arrays, fields)) == encode(reply().with_receipt("a" * 64))
    arrays, fields = refuse("budget", plan_id="p").parts()
    assert encode(Reply.from_parts(arrays, fields)) == encode(refuse("budget", plan_id="p"))


@pytest.mark.parametrize("signature", [NAME, "BEEF", "abc", "ab" * 257])
def test_no_text_travels_as_a_signature(signature: str) -> None:
    with pytest.raises(PrivacyError):
        reply().parts(signature)
    with pytest.raises(PrivacyError):
        refuse("budget").parts("beef")


@pytest.mark.parametrize(
    "change",
    [
        {"count": 17},
        {"weight": 17},
        {"weight": "1"},
        {"status": NAME},
        {"signature": ""},
        {"signature": "x"},
        {"statement": "{}"},
        {"statement": "[]"},
        {"statement": "{"},
        {"statement": 3},
    ],
    ids=str,
)
def test_other_flat_fields_are_refused(change: dict[str, Any]) -> None:
    arrays, fields = reply().parts("beef")
    with pytest.raises(PrivacyError):
        Reply.from_parts(arrays, {**fields, **change})


@pytest.mark.parametrize("statement", ["{}", "[]", "0", "null", '""'])
def test_a_refusal_has_no_statement_of_any_kind(statement: str) -> None:
    arrays, fields = refuse("budget", plan_id="p").parts()
    with pytest.raises(PrivacyError):
        Reply.from_parts(arrays, {**fields, "statement": statement, "signature": "beef"})


def test_a_statement_in_other_words_than_were_signed_is_refused() -> None:
    arrays, fields = reply().parts("beef")
    loose = {**fields, "statement": str(fields["statement"]).replace(":", ": ", 1)}
    with pytest.raises(PrivacyError, match="canonical"):
        Reply.from_parts(arrays, loose)
