"""The privacy terms of a plan: facts about the mechanism, parsed from an untrusted mapping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgps_privacy.errors import Refused

KINDS = frozenset({"rows", "site_mean", "episodes"})
MAX_NAMES = 10_000
MAX_NAME = 200  # characters
_CODES = {
    "kind": "plan_kind",
    "sigma": "plan_sigma",
    "q": "plan_q",
    "steps": "plan_steps",
    "clips": "plan_clip",
    "groups": "plan_groups",
    "denominator": "plan_denominator",
    "rate": "plan_rate",
}


@dataclass(frozen=True)
class Terms:
    """Mechanism facts of one round.

    kind: what the gradients are of (`KINDS`). sigma: noise multiplier, without unit. q: sampling rate, 1 is full batch.
    steps: noised sums. clips: one L2 bound in gradient units (flat), or one for each of `groups`. groups: names of the
    trainable parameters. denominator: public number that divides the sum, never the number of patients found on disk.
    rate: learning rate of the local steps.
    """

    kind: str
    sigma: float
    q: float
    steps: int
    clips: tuple[float, ...]
    groups: tuple[tuple[str, ...], ...]
    denominator: int
    rate: float = 1.0

    @property
    def clip(self) -> float:
        """L2 sensitivity of the clipped sum under zero-out: the root of the sum of the squared clips."""
        return math.hypot(*self.clips)

    @property
    def names(self) -> tuple[str, ...]:
        """All trainable parameters, in the order of the noised sum."""
        return tuple(name for group in self.groups for name in group)

    def signal(self, numbers: int, sites: int) -> float:
        """N mu / sqrt(S d) of one round: N = S denominator / q patients at S sites, d numbers, mu = q sqrt(steps) / sigma.

        The sum of T steps has signal at most T q n C at a site of n patients and noise of norm sqrt(T) sigma C sqrt(d),
        and S equal sites multiply the ratio by sqrt(S) (privacy note, section 4). Public numbers only."""
        return self.denominator * math.sqrt(self.steps * sites / numbers) / self.sigma if numbers > 0 else 0.0

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Terms:
        """Strictly typed terms. Raises Refused with the code of the first field that is missing, unknown or no
        number."""
        if not isinstance(mapping, Mapping):
            raise Refused("plan_terms", "the terms are no mapping")
        if unknown := set(mapping) - set(_CODES):
            raise Refused("plan_terms", f"{len(unknown)} unknown keys in the terms")
        if missing := set(_CODES) - {"rate"} - set(mapping):
            raise Refused("plan_terms", f"the terms lack {', '.join(sorted(missing))}")
        if mapping["kind"] not in [*KINDS]:  # a list: an unhashable kind is refused, not raised
            raise Refused("plan_kind", "unknown kind of plan")
        return cls(
            kind=mapping["kind"],
            sigma=_number(mapping, "sigma"),
            q=_number(mapping, "q"),
            steps=_whole(mapping, "steps"),
            clips=tuple(_finite(c, "clips") for c in _sequence(mapping["clips"], "clips")),
            groups=_groups(mapping["groups"]),
            denominator=_whole(mapping, "denominator"),
            rate=_number(mapping, "rate") if "rate" in mapping else 1.0,
        )

    def to_mapping(self) -> dict[str, Any]:
        """The same terms in types that JSON knows; `from_mapping` is the inverse."""
        return {
            "kind": self.kind,
            "sigma": self.sigma,
            "q": self.q,
            "steps": self.steps,
            "clips": list(self.clips),
            "groups": [list(group) for group in self.groups],
            "denominator": self.denominator,
            "rate": self.rate,
        }


def _number(mapping: Mapping[str, Any], field: str) -> float:
    return _finite(mapping[field], field)


def _finite(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(_CODES[field], f"{field}: not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Refused(_CODES[field], f"{field}: not a finite number")
    return number


def _whole(mapping: Mapping[str, Any], field: str) -> int:
    value = mapping[field]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise Refused(_CODES[field], f"{field}: not a whole number of 1 or more")
    return value


def _sequence(value: object, field: str) -> list[Any]:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MAX_NAMES:
        raise Refused(_CODES[field], f"{field}: not a list of 1 to {MAX_NAMES}")
    return list(value)


def _groups(value: object) -> tuple[tuple[str, ...], ...]:
    groups = tuple(tuple(_sequence(group, "groups")) for group in _sequence(value, "groups"))
    names = [name for group in groups for name in group]
    if len(names) > MAX_NAMES or not all(isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in names):
        raise Refused("plan_groups", f"groups: not up to {MAX_NAMES} names of at most {MAX_NAME} characters")
    return groups
