"""Attacks by the strongest adversary, who writes the gradients, on real runs; and lower bounds on what they prove.

Each bound holds with the stated confidence, whatever the code under test does.
* `mu_bound`: many runs with and without one canary, a threshold fixed beforehand (Nasr et al., "Tight Auditing of
  Differentially Private Machine Learning", 2023). It presumes the claim (mu-GDP) and refutes it or not.
* `epsilon_bound`: the same counts for plain (epsilon, delta): it presumes nothing, and is far from tight for a Gaussian.
* `one_run_bound`: one run with many canaries, each in or out by a coin (Steinke, Nasr, Jagielski, "Privacy Auditing with
  One (1) Training Run", 2023, theorem 5.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, binom, norm
from torch import Tensor

from sgps_privacy.engine import Parameters, PrivateRound, Record, SecureDPOptimizer
from sgps_privacy.terms import Terms

Rounds = type[PrivateRound]
FAR = 1e3  # norm of a canary's gradient; the clip is 1


@dataclass(frozen=True)
class Evidence:
    """What a game proves. mu: refuted up to here, given GDP. epsilon: refuted up to here at `delta`, given nothing.
    claimed: the mu of the accountant; a larger `mu` proves the claim wrong."""

    mu: float
    epsilon: float
    claimed: float
    delta: float


def _upper(errors: int, trials: int, confidence: float) -> float:
    """Clopper-Pearson upper bound of an error rate, one-sided."""
    return 1.0 if errors >= trials else float(beta.ppf(confidence, errors + 1, trials - errors))


def mu_bound(false_alarms: int, misses: int, trials: int, confidence: float = 0.99) -> float:
    """Largest mu that the counts refute: under mu-GDP, such low error rates in both worlds (`trials` runs each) would
    have probability below 1 - confidence."""
    each = (1 + confidence) / 2
    alpha, miss = _upper(false_alarms, trials, each), _upper(misses, trials, each)
    return max(0.0, float(norm.ppf(1 - alpha) - norm.ppf(miss)))


def epsilon_bound(false_alarms: int, misses: int, trials: int, delta: float, confidence: float = 0.99) -> float:
    """Largest epsilon refuted: (epsilon, delta)-DP needs 1 - miss <= e^epsilon alpha + delta, and the mirror image."""
    each = (1 + confidence) / 2
    alpha, miss = _upper(false_alarms, trials, each), _upper(misses, trials, each)
    found = [math.log((1 - delta - b) / a) for a, b in ((alpha, miss), (miss, alpha)) if 1 - delta - b > a]
    return max([0.0, *found])


def _one_run_p(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Bound on the probability of `correct` or more right guesses under (epsilon, delta)-DP."""
    rate = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, rate))
    near = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, rate)) / np.arange(1, correct + 1)
    return min(1.0, tail + 2 * canaries * delta * float(near.max(initial=0.0)))


def one_run_bound(
    scores: NDArray[np.float64], present: NDArray[np.bool_], guesses: int, delta: float, confidence: float = 0.99
) -> float:
    """Largest epsilon refuted by guessing "in" for the guesses/2 highest scores and "out" for the guesses/2 lowest.

    scores, present: (canaries,). `guesses` must be fixed before the scores are seen.
    """
    order, half = np.argsort(scores), guesses // 2
    correct = int(present[order[-half:]].sum() + (~present[order[:half]]).sum())
    if _one_run_p(correct, 2 * half, scores.size, 0.0, delta) > 1 - confidence:
        return 0.0
    low, high = 0.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        refuted = _one_run_p(correct, 2 * half, scores.size, middle, delta) <= 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


def _written_by_the_adversary(rounds: Rounds) -> Rounds:
    """The same rounds, but record {"direction": k} has a gradient of norm `FAR` along coordinate k."""

    def gradients(self: PrivateRound, theta: Parameters, records: list[Record | None]) -> Parameters:
        rows = torch.zeros(len(records), theta["v"].numel(), dtype=torch.float64)
        for i, record in enumerate(records):
            if record is not None:
                rows[i, int(record["direction"])] = FAR
        return {"v": rows}

    return type("Adversary", (rounds,), {"gradients": gradients})


def _never(theta: Parameters, record: Record) -> Tensor:
    raise AssertionError("the adversary writes the gradients")


def distinguishing(
    trials: int, rounds: Rounds = PrivateRound, *, claimed: float = 1.666, steps: int = 2, confidence: float = 0.9999
) -> Evidence:
    """Plays 2 x `trials` rounds, with and without one canary beside three other records, at delta 1e-5."""
    terms = Terms("episodes", math.sqrt(steps) / claimed, 1.0, steps, (1.0,), (("v",),), 8)
    adversary = _written_by_the_adversary(rounds)
    others: list[Record | None] = [{"direction": torch.tensor(1)}] * 3

    def score(canary: Record | None) -> float:
        work = adversary(terms, _never)
        work.run({"v": torch.zeros(4)}, [canary, *others], 4)
        return float(sum(step[0] for step in work.noised)) * terms.denominator / math.sqrt(steps) / terms.sigma

    canary: Record = {"direction": torch.tensor(0)}
    without, with_it = (np.array([score(c) for _ in range(trials)]) for c in (None, canary))
    middle, tail, delta = claimed / 2, 2.6, 1e-5  # fixed before the runs
    return Evidence(
        mu_bound(int((without > middle).sum()), int((with_it <= middle).sum()), trials, confidence),
        epsilon_bound(int((without > tail).sum()), int((with_it <= tail).sum()), trials, delta, confidence),
        claimed,
        delta,
    )


def one_run(
    rounds: Rounds = PrivateRound, *, claimed: float = 1.666, canaries: int = 2000, guesses: int = 160
) -> float:
    """Lower bound of epsilon at delta 1e-5 from one step with many canaries, each along a coordinate of its own."""
    present = np.random.default_rng().random(canaries) < 0.5
    records: list[Record | None] = [{"direction": torch.tensor(i)} if p else None for i, p in enumerate(present)]
    work = _written_by_the_adversary(rounds)(Terms("episodes", 1 / claimed, 1.0, 1, (1.0,), (("v",),), 8), _never)
    work.run({"v": torch.zeros(canaries)}, records, canaries)
    return one_run_bound(work.noised[0], present, guesses, 1e-5)


def low_bits(optimizer: type[SecureDPOptimizer] = SecureDPOptimizer, numbers: int = 4000) -> tuple[int, int]:
    """Released numbers in (-1/4, 1/4) that are no multiple of 2^-53: when every number of the sum is 0, and when it is 1.

    Float64 noise near -1 has no finer bits, so a second count of 0 beside a first one far above it tells the two sums
    apart for certain, whatever epsilon says (Mironov 2012).
    """
    counts = []
    for value in (0.0, 1.0):
        p: Any = torch.nn.Parameter(torch.zeros(numbers, dtype=torch.float64))
        scale = math.sqrt(numbers)
        work = optimizer(
            torch.optim.SGD([p], lr=1.0),
            group_clips=None,
            noise_multiplier=1 / scale,
            max_grad_norm=scale * 1.01,
            expected_batch_size=1,
        )
        p.grad_sample = torch.full((1, numbers), value, dtype=p.dtype)
        work.step()
        seen = p.detach().numpy()
        seen = seen[np.abs(seen) < 0.25] * 2.0**53
        counts.append(int((seen != np.rint(seen)).sum()))
    return counts[0], counts[1]
