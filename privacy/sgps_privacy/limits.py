"""What a site allows, from its own file. A plan outside is refused before any record is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sgps_privacy.errors import Refused
from sgps_privacy.events import SIGMAS
from sgps_privacy.noise import grid_room
from sgps_privacy.terms import Terms

MIN_CLIP = 1e-9  # below it, clipped numbers come near the subnormal floats, whose rounding is no longer relative
MIN_Q = 1e-6  # below it, the accountant's own rounding outweighs the charge
RATES = 1e-9, 1e9  # keeps the returned float32 finite


@dataclass(frozen=True)
class Limits:
    """The site's hard limits for one kind of plan.

    max_clip: L2, gradient units. min_sigma: least noise multiplier. max_q, max_steps: greatest sampling rate and
    number of noised sums. denominator: the public number a plan must name. names: parameters that may be trained.
    max_numbers: most numbers in one sum. code_hashes: accepted versions of the loss."""

    max_clip: float
    min_sigma: float
    max_q: float
    max_steps: int
    denominator: int
    names: frozenset[str]
    max_numbers: int
    code_hashes: frozenset[str]

    def check(self, terms: Terms, shapes: Mapping[str, tuple[int, ...]], code_hash: str) -> None:
        """Raises Refused with the code of the first rule that does not hold. `shapes`: of the parameters to be trained.

        Each rule is a chain of comparisons that must be true, so NaN on either side refuses.
        """
        names, numbers = terms.names, sum(math.prod(shape) for shape in shapes.values())
        rules = {
            "plan_clip": all(c >= MIN_CLIP for c in terms.clips) and 0 < terms.clip <= self.max_clip < math.inf,
            "plan_groups": bool(terms.groups) and all(terms.groups) and len(terms.clips) in (1, len(terms.groups)),
            "plan_names": set(names) <= self.names and len(set(names)) == len(names) and set(names) == set(shapes),
            "plan_numbers": 0 < numbers <= self.max_numbers,
            "plan_sigma": SIGMAS[0] <= self.min_sigma <= terms.sigma <= SIGMAS[1] and grid_room(terms.sigma, numbers),
            "plan_q": MIN_Q <= terms.q <= self.max_q <= 1,
            "plan_steps": 1 <= terms.steps <= self.max_steps,
            "plan_denominator": terms.denominator == self.denominator > 0,
            "plan_code": code_hash in self.code_hashes,
            "plan_rate": RATES[0] <= terms.rate <= RATES[1],
        }
        for code, holds in rules.items():
            if not holds:
                raise Refused(code, f"{code.removeprefix('plan_')} of the plan is outside this site's limits")
