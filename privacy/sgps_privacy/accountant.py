"""Privacy accounting: facts about mechanisms in, (mu, epsilon, delta) out. dp-accounting is the accountant of record.

* q = 1 (full batch): exact. T steps of noise multiplier sigma are one Gaussian with mu = sqrt(T) / sigma, and events
  add as mu^2 (Dong, Roth, Su 2022, corollary 3.3); epsilon(delta) by the analytic formula of Balle and Wang (2018,
  theorem 8).
* q < 1 (Poisson) or mixed: dp-accounting's privacy loss distributions, whose rounding is pessimistic: an upper bound.
The neighbouring relation is zero-out: one patient's record against the zero record (`unit`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import dp_accounting as dpa
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from sgps_privacy.errors import PrivacyError
from sgps_privacy.events import Event

LEAST_SIGMA = 0.3  # a noise multiplier below it promises nothing


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of a mu-Gaussian at delta in (0, 1); exact."""
    _check_delta(delta)
    return float(dpa.get_epsilon_gaussian(1 / mu, delta)) if mu > 0 else 0.0


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The inverse: the mu that spends exactly this epsilon, which must be finite and above 0."""
    _check_delta(delta)
    if not 0 < epsilon < math.inf:
        raise PrivacyError(f"epsilon {epsilon!r}: must be finite and above 0")
    return 1 / float(dpa.get_sigma_gaussian(epsilon, delta))


def full_batch_mu(events: Sequence[Event]) -> float:
    """mu of the full-batch events together: the root of the sum of steps / sigma^2."""
    return math.sqrt(sum(e.steps / e.sigma**2 for e in events if e.q == 1))


def epsilon(events: Sequence[Event], delta: float) -> float:
    """Epsilon of all events together under zero-out. Exact when all have q = 1, an upper bound (PLD) otherwise; infinite
    for sampled events below `LEAST_SIGMA`."""
    _check_delta(delta)
    mu, sampled = full_batch_mu(events), tuple(e for e in events if e.q < 1)
    if any(e.sigma < LEAST_SIGMA for e in sampled):  # the distributions would need more memory than a site has
        return math.inf
    if not sampled:
        return gaussian_epsilon(mu, delta)
    steps = Counter[tuple[float, float]]()
    for e in sampled:
        steps[(e.sigma, e.q)] += e.steps
    return float(_composed(mu, tuple(sorted(steps.items()))).get_epsilon(delta))


@lru_cache(maxsize=32)  # a second or several to compose, an instant to ask for any delta; a round asks often
def _composed(mu: float, sampled: tuple[tuple[tuple[float, float], int], ...]) -> dpa.pld.PLDAccountant:
    """The privacy loss distribution of a mu-Gaussian and of Poisson-sampled Gaussians ((sigma, q), steps). REPLACE_SPECIAL is
    dp-accounting's name for zero-out."""
    accountant = dpa.pld.PLDAccountant(dpa.NeighboringRelation.REPLACE_SPECIAL)
    for (sigma, q), steps in sampled:
        accountant.compose(dpa.PoissonSampledDpEvent(q, dpa.GaussianDpEvent(sigma)), steps)
    if mu > 0:
        accountant.compose(dpa.GaussianDpEvent(1 / mu))
    return accountant


def equivalent_mu(events: Sequence[Event], delta: float) -> float:
    """The mu to publish: exact when all have q = 1; else that of the Gaussian with the same epsilon at this delta."""
    if all(e.q == 1 for e in events):
        return full_batch_mu(events)
    return gaussian_mu(epsilon(events, delta), delta)


def replaced_epsilon(events: Sequence[Event], delta: float) -> float:
    """Epsilon when one patient is replaced by another instead of removed.

    A replacement is two zero-outs, or one sum that moves by 2C. Full batch: exactly twice the mu. Otherwise the group
    property of (epsilon, delta) for two changes: (2e, (1 + exp(e)) d) for any (e, d) that holds (Vadhan 2017, lemma
    2.2)."""
    if all(e.q == 1 for e in events):
        return gaussian_epsilon(2 * full_batch_mu(events), delta)
    bound, share = math.inf, delta
    for _ in range(40):  # the greatest d with (1 + exp(e(d))) d <= delta, from above
        share /= 2
        found = epsilon(events, share)
        if (1 + math.exp(min(found, 700.0))) * share <= delta:
            bound = 2 * found
            break
    return bound


def true_positive_bound(mu: float, fpr: float = 0.05) -> float:
    """How often, at most, an attacker who raises false alarms at rate `fpr` recognises a patient who did take part:
    Phi(mu - z) (Dong, Roth, Su 2022, equation 6)."""
    if not 0 < fpr < 1:
        raise PrivacyError(f"rate of false alarms {fpr!r}: must lie in (0, 1)")
    return float(ndtr(mu + ndtri(fpr)))


def signal_ratio(slots: int, mu: float, numbers: int, sites: int = 1) -> float:
    """Signal over noise of all that `sites` equal sites send: n mu sqrt(J) / sqrt(d), for any number of full-batch
    steps.

    An upper bound: every gradient at the clip norm and in one direction. Below 1 the noise is larger.
    """
    return slots * mu * math.sqrt(sites / numbers)


def calibrate(target: float, delta: float, steps: int, q: float = 1.0, spent: Sequence[Event] = ()) -> float:
    """Smallest noise multiplier (rounded up to 4 figures) whose `steps` steps on top of `spent` keep epsilon <= target.

    Raises PrivacyError when `spent` alone reaches the target, or when the target needs less than `LEAST_SIGMA`.
    """
    if not 0 < target < math.inf:
        raise PrivacyError(f"epsilon {target!r}: must be finite and above 0")
    if spent and epsilon(spent, delta) >= target:
        raise PrivacyError(f"nothing left: epsilon {epsilon(spent, delta):.3f} of {target:g} is spent")

    def over(log_sigma: float) -> float:
        return epsilon([*spent, Event(math.exp(log_sigma), q, steps)], delta) - target

    low = math.log(LEAST_SIGMA)
    if q < 1:  # a sampled step has at least the mu of its mean, q / sigma; loss distributions far below are costly
        low = max(low, math.log(q * math.sqrt(steps) / gaussian_mu(target, delta)))
    if over(low) <= 0:
        if low > math.log(LEAST_SIGMA):
            return _rounded_up(math.exp(low), lambda s: over(math.log(s)) > 0)
        raise PrivacyError(f"epsilon {target:g} would allow noise multipliers below {LEAST_SIGMA}: it promises nothing")
    stride = 1.0 if q == 1 else 0.25
    high = low + stride
    while over(high) > 0:
        low, high = high, high + stride
    sigma = math.exp(float(brentq(over, low, high, xtol=1e-6 if q == 1 else 1e-4)))
    return _rounded_up(sigma, lambda s: over(math.log(s)) > 0)


def split(target: float, delta: float, shares: Sequence[float]) -> tuple[float, ...]:
    """Noise multipliers (rounded up to 4 figures) of full-batch steps, one for each share of mu^2, that together keep epsilon <=
    target. Exact: mu^2 adds. Raises PrivacyError for shares that are not above 0 or sum to more than 1, and as `calibrate`."""
    mu = gaussian_mu(target, delta)
    if not all(share > 0 for share in shares) or not math.fsum(shares) <= 1 + 1e-12:
        raise PrivacyError("shares of mu^2 are above 0 and sum to 1 at most")
    if mu * LEAST_SIGMA > 1:
        raise PrivacyError(f"epsilon {target:g} would allow noise multipliers below {LEAST_SIGMA}: it promises nothing")
    parts = [mu * math.sqrt(share) for share in shares]
    return tuple(_rounded_up(1 / part, lambda s, part=part: s * part < 1) for part in parts)  # type: ignore[misc]


def _rounded_up(sigma: float, too_small: Callable[[float], bool]) -> float:
    unit = 10.0 ** (math.floor(math.log10(sigma)) - 3)
    figures = math.ceil(sigma / unit)
    while too_small(round(figures * unit, 9)):
        figures += 1
    return round(figures * unit, 9)


def with_sampler(events: Sequence[Event], delta: float, distance: float) -> float:
    """Epsilon when the real sampler is within total variation `distance`, all steps together, of the ideal Gaussian.

    If M is (eps, d)-DP and M' is within tau of M for every input, then M' is (eps, d + (1 + e^eps) tau)-DP. So aim at
    d = delta - (1 + e^eps) tau; two rounds of substitution from above are enough because tau is tiny.
    """
    bound = epsilon(events, delta)
    for _ in range(2):
        room = delta - (1 + math.exp(min(bound * 1.01, 700.0))) * distance
        if room <= 0:
            return math.inf
        bound = epsilon(events, room)
    return bound


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyError(f"delta {delta!r}: must lie in (0, 1)")
