"""Untrusted terms, and the limits of a site."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from sgps_privacy.errors import CODES, PrivacyError, Refused
from sgps_privacy.limits import Limits
from sgps_privacy.terms import Terms

GOOD: dict[str, Any] = {"kind": "episodes", "sigma": 2.685, "q": 1.0, "steps": 20, "clips": [0.6, 0.8],
                        "groups": [["w"], ["b", "c"]], "denominator": 64, "rate": 0.5}  # fmt: skip
SHAPES = {"w": (5, 16), "b": (5,), "c": ()}
SITE = Limits(1.0, 2.0, 1.0, 20, 64, frozenset({"w", "b", "c", "d"}), 86, frozenset({"code"}))


def refusal(change: dict[str, Any]) -> str:
    with pytest.raises(Refused) as caught:
        Terms.from_mapping({**GOOD, **change})
    return caught.value.code


def test_terms_survive_json() -> None:
    terms = Terms.from_mapping(GOOD)
    assert Terms.from_mapping(json.loads(json.dumps(terms.to_mapping()))) == terms
    assert terms.clip == pytest.approx(1.0)
    assert terms.names == ("w", "b", "c")


def test_the_rate_is_one_unless_it_is_given() -> None:
    assert Terms.from_mapping({k: v for k, v in GOOD.items() if k != "rate"}).rate == 1.0


@pytest.mark.parametrize("field", [f for f in GOOD if f != "rate"])
def test_every_other_field_is_required(field: str) -> None:
    with pytest.raises(Refused, match="plan_terms"):
        Terms.from_mapping({k: v for k, v in GOOD.items() if k != field})


@pytest.mark.parametrize(
    ("field", "code"),
    [("sigma", "plan_sigma"), ("q", "plan_q"), ("rate", "plan_rate"), ("steps", "plan_steps"),
     ("denominator", "plan_denominator"), ("clips", "plan_clip"), ("groups", "plan_groups"), ("kind", "plan_kind")],
)  # fmt: skip
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, "1", None, True, [], [[]], {}, 10**400, [math.nan], [["w"], [3]]], ids=repr
)
def test_wrong_types_are_refused_with_the_code_of_their_field(field: str, code: str, value: object) -> None:
    assert refusal({field: value}) == code


def test_an_unknown_key_is_refused_whatever_it_says() -> None:
    assert refusal({"noise": False}) == "plan_terms"
    with pytest.raises(Refused, match="plan_terms"):
        Terms.from_mapping("terms")  # type: ignore[arg-type]


def test_a_plan_within_the_limits_passes() -> None:
    SITE.check(Terms.from_mapping(GOOD), SHAPES, "code")


OUTSIDE: list[tuple[dict[str, Any], str]] = [
    ({"clips": (0.8, 0.8)}, "plan_clip"),
    ({"clips": (math.nan, 0.1)}, "plan_clip"),
    ({"clips": (0.0, 0.1)}, "plan_clip"),
    ({"clips": (-0.6, 0.8)}, "plan_clip"),
    ({"clips": (1e-310,)}, "plan_clip"),
    ({"clips": ()}, "plan_clip"),
    ({"clips": (0.1, 0.1, 0.1)}, "plan_groups"),
    ({"groups": ((), ("w", "b", "c"))}, "plan_groups"),
    ({"groups": (("w",), ("b",))}, "plan_names"),
    ({"groups": (("w", "w"), ("b", "c"))}, "plan_names"),
    ({"groups": (("w", "x"), ("b", "c"))}, "plan_names"),
    ({"sigma": 1.99}, "plan_sigma"),
    ({"sigma": math.nan}, "plan_sigma"),
    ({"sigma": math.inf}, "plan_sigma"),
    ({"sigma": 1e6}, "plan_sigma"),
    ({"q": 0.0}, "plan_q"),
    ({"q": 1.5}, "plan_q"),
    ({"q": math.nan}, "plan_q"),
    ({"q": 1e-300}, "plan_q"),
    ({"steps": 21}, "plan_steps"),
    ({"steps": 0}, "plan_steps"),
    ({"denominator": 63}, "plan_denominator"),
    ({"rate": 0.0}, "plan_rate"),
    ({"rate": math.nan}, "plan_rate"),
    ({"rate": 1e30}, "plan_rate"),
]


@pytest.mark.parametrize(("change", "code"), OUTSIDE, ids=str)
def test_each_field_outside_the_limits_is_refused_by_its_code(change: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused) as caught:
        SITE.check(replace(Terms.from_mapping(GOOD), **change), SHAPES, "code")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("shapes", "code_hash", "code"),
    [({**SHAPES, "w": (6, 16)}, "code", "plan_numbers"), ({**SHAPES, "w": (0, 16), "b": (0,), "c": (0,)}, "code", "plan_numbers"),
     ({"w": (5, 16)}, "code", "plan_names"), (SHAPES, "other", "plan_code")],
    ids=["too many", "none", "missing", "code"],
)  # fmt: skip
def test_sizes_names_and_code_are_limited(shapes: dict[str, tuple[int, ...]], code_hash: str, code: str) -> None:
    with pytest.raises(Refused) as caught:
        SITE.check(Terms.from_mapping(GOOD), shapes, code_hash)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [({"clips": [0.1] * 10_001}, "plan_clip"), ({"groups": [["w"] * 6_000, ["b"] * 6_000]}, "plan_groups"),
     ({"groups": [["w"], [""]]}, "plan_groups"), ({"groups": [["w" * 201]]}, "plan_groups")],
    ids=["clips", "names", "no name", "long name"],
)  # fmt: skip
def test_lists_and_names_of_the_terms_are_limited(change: dict[str, Any], code: str) -> None:
    assert refusal(change) == code


@pytest.mark.parametrize("field", ["max_clip", "min_sigma", "max_q"])
def test_a_limit_that_is_nan_lets_nothing_through(field: str) -> None:
    with pytest.raises(Refused):
        replace(SITE, **{field: math.nan}).check(Terms.from_mapping(GOOD), SHAPES, "code")


@pytest.mark.parametrize(
    ("limit", "change", "code"),
    [({"max_clip": math.inf}, {}, "plan_clip"), ({"min_sigma": 1e-9}, {"sigma": 1e-6}, "plan_sigma"),
     ({"max_q": 2.0}, {}, "plan_q"), ({"denominator": -64}, {}, "plan_denominator")],
    ids=str,
)  # fmt: skip
def test_a_limit_that_limits_nothing_lets_nothing_through(
    limit: dict[str, float], change: dict[str, float], code: str
) -> None:
    with pytest.raises(Refused) as caught:
        replace(SITE, **limit).check(Terms.from_mapping({**GOOD, **change}), SHAPES, "code")  # type: ignore[arg-type]
    assert caught.value.code == code


def test_only_the_code_of_a_refusal_is_visible() -> None:
    refused = Refused("budget", "patient Anna Muster is too much")
    assert str(refused) == "budget" and refused.args == ("budget",) and "Anna" not in repr(refused)
    assert refused.detail and refused.code in CODES
    with pytest.raises(PrivacyError):
        Refused("anything else")
