"""A plan is opened only with the pinned key, and its identity is what shapes the payload."""

import json
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from sgps.errors import SignatureError
from sgps.plan import Plan, SignedPlan, arrays_sha256
from sgps.signing import canonical

KEY = Ed25519PrivateKey.generate()
FIELDS: dict[str, Any] = {
    "kind": "rows", "federation": "a" * 64, "round": 1, "attempt": 1, "release": "9" * 64, "encoder": "b" * 64, "classes": ("df", "vasc"),
    "start": "c" * 64, "terms": {"sigma": 1.391}, "code": ("d" * 64,), "sites": ("north",), "issued": 1.0, "answer_at": 2.0,
    "deadline": 3.0,
}  # fmt: skip


def test_signed_plan_comes_back() -> None:
    plan = Plan(**FIELDS)
    assert plan.sign(KEY).open(KEY.public_key()) == plan


@pytest.mark.parametrize("change", [("round", 2), ("sites", ["south"]), ("deadline", 9.0), ("terms", {"sigma": 0.1})])
def test_an_altered_plan_is_refused(change: tuple[str, Any]) -> None:
    signed = Plan(**FIELDS).sign(KEY)
    text = canonical({**json.loads(signed.text), change[0]: change[1]}).decode()
    with pytest.raises(SignatureError, match="does not fit the pinned key"):
        SignedPlan(text=text, signature=signed.signature).open(KEY.public_key())


def test_another_key_is_refused() -> None:
    with pytest.raises(SignatureError, match="pinned key"):
        Plan(**FIELDS).sign(Ed25519PrivateKey.generate()).open(KEY.public_key())


@pytest.mark.parametrize("text", ["{}", "[]", "NaN", "[" * 5000, '{"kind": "code"}'])
def test_signed_nonsense_is_no_plan(text: str) -> None:
    with pytest.raises(SignatureError, match="not a plan"):
        SignedPlan(text=text, signature=KEY.sign(text.encode()).hex()).open(KEY.public_key())


def test_identity_covers_the_payload_and_nothing_else() -> None:
    plan = Plan(**FIELDS)
    same = [
        {"attempt": 2},
        {"issued": 0.5},
        {"answer_at": 2.5},
        {"deadline": 4.0},
        {"sites": ("south",)},
        {"echo": {"north": "e" * 64}},
    ]
    other = [{"round": 2}, {"federation": "e" * 64}, {"release": "e" * 64}, {"encoder": "e" * 64}, {"classes": ("vasc", "df")}, {"start": "e" * 64},
             {"terms": {"sigma": 2.0}}, {"code": ("e" * 64,)}]  # fmt: skip
    assert {Plan(**{**FIELDS, **c}).sha256() for c in same} == {plan.sha256()}
    assert len({Plan(**{**FIELDS, **c}).sha256() for c in other} | {plan.sha256()}) == len(other) + 1


@pytest.mark.parametrize(
    "change",
    [
        {"answer_at": 0.0},
        {"deadline": float("nan")},
        {"classes": ("df", "df")},
        {"sites": ("../north",)},
        {"round": 0},
        {"app": "x"},
    ],
)
def test_fields_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Plan(**{**FIELDS, **change})


def test_hash_of_arrays_sees_name_type_shape_and_bytes() -> None:
    a = np.zeros((2, 3), dtype=np.float32)
    different = [{"a": a}, {"b": a}, {"a": a.astype(np.float64)}, {"a": a.reshape(3, 2)}, {"a": a + 1}]
    assert len({arrays_sha256(d) for d in different}) == len(different)
