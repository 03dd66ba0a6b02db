"""The privacy statement that a site attaches to its contribution: what is promised, at what price, and what is not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import dp_accounting as dpa

from sgps_privacy import accountant
from sgps_privacy.errors import PrivacyError
from sgps_privacy.events import Event
from sgps_privacy.noise import SCALE_BITS, sampler_distance
from sgps_privacy.terms import Terms

FALSE_ALARMS = 0.05
ADJACENCY = "the patient's record against an empty record (zero-out)"
NOISE = f"discrete Gaussian on a grid, 2^{SCALE_BITS} steps per standard deviation; the sensitivity includes rounding"
NOT_COVERED = (
    "that the site took part, how long it took to get ready, and when it answered",
    "the number of record slots",
    "classifiers made at the site (each contains its exemplar)",
    "choices people made after seeing private data",
    "a patient who is also treated elsewhere (mu adds as squares)",
    "relatives of a patient",
)
FIELDS: dict[str, type] = {
    "unit": str,
    "adjacency": str,
    "epsilon": float,
    "delta": float,
    "mu": float,
    "mu_is_exact": bool,
    "replacing_one_patient": float,
    "recognised_at_5_percent_false_alarms": float,
    "kind": str,
    "events": list,
    "sigma": float,
    "q": float,
    "steps": int,
    "clip": float,
    "groups": int,
    "denominator": int,
    "numbers": int,
    "most_numbers": int,
    "noise": str,
    "sampler_distance": float,
    "accountant": str,
    "cross_check_rdp": float,
    "cap_epsilon": float,
    "code_hash": str,
    "plan_hash": str,
    "not_covered": list,
}
"""Every key of a statement and the type of its value; `check` accepts nothing else."""
MOST_NUMBERS = 2**31  # of a noised sum
_HASH = re.compile(r"[0-9A-Za-z:._+-]{0,128}")
_COLUMN = re.compile(r"\w[\w .:-]{0,63}")


def statement(
    terms: Terms,
    events: Sequence[Event],
    *,
    delta: float,
    cap: float,
    numbers: int,
    code_hash: str,
    plan_hash: str,
    most_numbers: int = 0,
    unit_column: str = "patient",
) -> dict[str, Any]:
    """The statement of one site about one cohort.

    terms: of the round that is being answered. events: all that the cohort has spent in THIS federation and this round:
    `[*ledger.spent(cohort, federation), order.event]` before the charge, when a mistake costs nothing yet; the sum over
    federations stays at home. delta, cap: the cohort's budget. numbers: how many numbers one noised sum of
    this round holds; most_numbers: the largest of those events, where that is more.
    unit_column: the column of the site's table that names the patient. Epsilon is that of the accountant of record,
    the sampler's distance paid for."""
    if not events:
        raise PrivacyError("a statement needs the events that were charged")
    largest = max(numbers, most_numbers)
    distance = sampler_distance(largest * sum(e.steps for e in events))
    mu = accountant.equivalent_mu(events, delta)
    found: dict[str, Any] = {
        "unit": f"one patient (column {unit_column}), all images of that patient",
        "adjacency": ADJACENCY,
        "epsilon": accountant.with_sampler(events, delta, distance),
        "delta": float(delta),
        "mu": mu,
        "mu_is_exact": all(e.q == 1 for e in events),
        "replacing_one_patient": accountant.replaced_epsilon(events, delta),
        "recognised_at_5_percent_false_alarms": accountant.true_positive_bound(mu, FALSE_ALARMS),
        "kind": terms.kind,
        "events": [[float(e.sigma), float(e.q), e.steps] for e in events],
        "sigma": float(terms.sigma),
        "q": float(terms.q),
        "steps": terms.steps,
        "clip": terms.clip,
        "groups": len(terms.clips),
        "denominator": terms.denominator,
        "numbers": numbers,
        "most_numbers": largest,
        "noise": NOISE,
        "sampler_distance": distance,
        "accountant": accountant_name(events),
        "cross_check_rdp": rdp_epsilon(events, delta),
        "cap_epsilon": float(cap),
        "code_hash": code_hash,
        "plan_hash": plan_hash,
        "not_covered": [*NOT_COVERED],
    }
    check(found)
    return found


def check(found: Mapping[str, Any]) -> None:
    """Raises PrivacyError unless `found` has exactly the keys, types and constant texts of a statement: the
    allow-list."""
    if set(found) != set(FIELDS):
        raise PrivacyError(f"statement: {len(set(found) ^ set(FIELDS))} keys too many or missing")
    for key, kind in FIELDS.items():
        value: Any = found[key]
        if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
            raise PrivacyError(f"statement: {key} is no {kind.__name__}")
    column = re.fullmatch(r"one patient \(column (.*)\), all images of that patient", found["unit"])
    sound = (
        column is not None
        and _COLUMN.fullmatch(column[1])
        and found["adjacency"] == ADJACENCY
        and found["noise"] == NOISE
        and found["not_covered"] == [*NOT_COVERED]
        and _HASH.fullmatch(found["code_hash"])
        and _HASH.fullmatch(found["plan_hash"])
        and re.fullmatch(
            r"dp-accounting [0-9a-z.]+ \((analytic Gaussian|privacy loss distribution)\)", found["accountant"]
        )
        and re.fullmatch(r"[a-z_]{1,32}", found["kind"])
    )
    if not sound:
        raise PrivacyError("statement: a text is not one of the constant ones")
    if not 0 < found["numbers"] <= found["most_numbers"] <= MOST_NUMBERS:
        raise PrivacyError("statement: its numbers are none of a noised sum")
    read_events(found)


def read_events(found: Mapping[str, Any]) -> list[Event]:
    """The events of a statement, so that a reader recomputes epsilon and mu. Raises PrivacyError when they are
    malformed."""
    events = found["events"]
    if not events or not all(type(e) is list and [type(x) for x in e] == [float, float, int] for e in events):
        raise PrivacyError("statement: events are not [sigma, q, steps] lists")
    return [Event(*event) for event in events]


def accountant_name(events: Sequence[Event]) -> str:
    """Accountant of record, with its version."""
    method = "analytic Gaussian" if all(e.q == 1 for e in events) else "privacy loss distribution"
    return f"dp-accounting {version('dp-accounting')} ({method})"


def rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """The same events by Renyi accounting: looser by 7 to 16 %, and an independent second opinion."""
    # at small fractional orders dp-accounting's series for Poisson sampling need not converge
    orders = None if all(e.q == 1 for e in events) else [*range(2, 64), 80, 128, 256, 512, 1024]
    rdp = dpa.rdp.RdpAccountant(orders=orders, neighboring_relation=dpa.NeighboringRelation.REPLACE_SPECIAL)
    for e in events:
        gaussian = dpa.GaussianDpEvent(e.sigma)
        rdp.compose(gaussian if e.q == 1 else dpa.PoissonSampledDpEvent(e.q, gaussian), e.steps)
    return float(rdp.get_epsilon(delta))


def text(found: Mapping[str, Any]) -> str:
    """The statement for people: a few lines, figures as published."""
    exact = "exact; full batch" if found["mu_is_exact"] else "of the Gaussian with the same epsilon"
    share = math.ceil(100 * found["recognised_at_5_percent_false_alarms"])
    batch = "full batch" if found["q"] == 1 else f"each patient drawn with rate {found['q']:g}"
    scope = "all parameters" if found["groups"] == 1 else f"{found['groups']} groups of parameters together"
    sums = "1 noised sum" if found["steps"] == 1 else f"{found['steps']} noised sums"
    lines = [
        f"unit: {found['unit']}",
        f"adjacency: {found['adjacency']}",
        f"epsilon {up(found['epsilon'])} at delta {found['delta']:g}; mu {found['mu']:.4f} ({exact})",
        f"replacing one patient by another: epsilon {up(found['replacing_one_patient'])}",
        f"meaning: who guesses that a patient took part, with 5 % false alarms, finds at most {share} % of those who did",
        f"mechanism: {sums}, {batch}, noise multiplier {found['sigma']:g}, clip {found['clip']:g} (L2, {scope})",
        f"denominator {found['denominator']}, {found['numbers']} numbers",
        f"noise: {found['noise']}; sampler distance {found['sampler_distance']:.1e}",
        f"accountant: {found['accountant']}; cross-check: Renyi accounting {up(found['cross_check_rdp'])}",
        f"code {found['code_hash']}; plan {found['plan_hash']}",
        f"cap: epsilon {found['cap_epsilon']:g} for this cohort over all federations",
        f"not covered: {'; '.join(found['not_covered'])}",
    ]
    return "\n".join(lines) + "\n"


def up(epsilon: float) -> str:
    """Three decimals, rounded up: a published epsilon is never below the real one."""
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}"
