"""Whatever arrives, the answer is terms within the limits or a code; a reply or PrivacyError."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sgps_privacy.accountant import calibrate, epsilon, full_batch_mu
from sgps_privacy.egress import decode, encode, refuse
from sgps_privacy.errors import CODES, PrivacyError, Refused
from sgps_privacy.events import Event
from sgps_privacy.limits import Limits
from sgps_privacy.noise import Grid
from sgps_privacy.terms import Terms

SITE = Limits(1.0, 0.6, 1.0, 50, 1, frozenset({"a", "b"}), 100, frozenset({"code"}))
SHAPES = {"a": (3,), "b": (2, 2)}
NUMBERS = st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=3))
ANYTHING = st.recursive(
    NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "kind": st.sampled_from(["rows", "episodes"]) | ANYTHING,
    "sigma": st.floats() | NUMBERS,
    "q": st.floats(0, 2) | NUMBERS,
    "steps": st.integers(-1, 60) | NUMBERS,
    "clips": st.lists(st.floats(), max_size=3) | ANYTHING,
    "groups": st.sampled_from([[["a", "b"]], [["a"], ["b"]]]) | ANYTHING,
    "denominator": st.just(1) | NUMBERS,
    "rate": st.floats() | NUMBERS,
}


@settings(max_examples=500, deadline=None)
@given(st.fixed_dictionaries(LIKELY) | st.dictionaries(st.sampled_from([*LIKELY, "x"]), ANYTHING) | ANYTHING)
def test_terms_are_within_the_limits_or_refused_by_a_code(mapping: Any) -> None:
    try:
        terms = Terms.from_mapping(mapping)
        SITE.check(terms, SHAPES, "code")
    except Refused as refused:
        assert refused.code in CODES
        return
    assert terms.sigma >= 0.6 and terms.clip <= 1 and terms.steps <= 50 and 0 < terms.q <= 1
    Event(terms.sigma, terms.q, terms.steps)
    assert Grid(terms.clip, terms.sigma, 7).std >= terms.sigma * terms.clip
    assert Terms.from_mapping(terms.to_mapping()) == terms


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 120), st.integers(0, 255))
def test_bytes_are_a_reply_in_canonical_form_or_none(junk: bytes, place: int, value: int) -> None:
    spoilt = bytearray(encode(refuse("budget", plan_id="p")))
    spoilt[place % len(spoilt)] = value
    for data in (junk, bytes(spoilt)):
        try:
            reply = decode(data)
        except PrivacyError:
            continue
        assert encode(reply) == data


@settings(max_examples=60, deadline=None)
@given(st.floats(0.1, 10), st.integers(1, 200), st.floats(1e-8, 1e-3), st.integers(0, 3))
def test_a_calibrated_round_fits_and_a_little_less_noise_does_not(
    target: float, steps: int, delta: float, before: int
) -> None:
    spent = [Event(200.0 / target, 1.0, 2)] * before
    try:
        sigma = calibrate(target, delta, steps, spent=spent)
    except PrivacyError:
        return
    assert epsilon([*spent, Event(sigma, 1.0, steps)], delta) <= target
    assert epsilon([*spent, Event(sigma * 0.998, 1.0, steps)], delta) > target


@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(Event, st.floats(0.5, 50), st.just(1.0), st.integers(1, 50)), min_size=1, max_size=6))
def test_mu_adds_as_squares_and_epsilon_never_falls(events: list[Event]) -> None:
    parts = [full_batch_mu([e]) for e in events]
    assert math.isclose(full_batch_mu(events), math.hypot(*parts), rel_tol=1e-9)
    growing = [epsilon(events[: k + 1], 1e-5) for k in range(len(events))]
    assert growing == sorted(growing)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 30), st.integers(1, 500), st.floats(0.01, 10))
def test_rounded_neighbours_differ_by_no_more_than_the_noise_is_set_for(
    seed: int, sigma: float, size: int, clip: float
) -> None:
    grid, rng = Grid(clip, sigma, size), np.random.default_rng(seed)
    total, record = rng.normal(size=size) * clip * 20, rng.normal(size=size)
    record *= clip / np.linalg.norm(record)
    moved = (grid.quantise(total + record) - grid.quantise(total)).astype(float)
    assert np.linalg.norm(moved) * sigma <= 2**24
