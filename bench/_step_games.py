"""Attacks on the step that ships, by an adversary who knows all other records and sees the bytes that leave.

The bounds are those of `sgps_privacy.attacks`; thresholds and numbers of guesses are chosen from the claim alone, before a run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load
from scipy.stats import norm

from bench._step import DELTA, Floats, Step
from sgps.memory import COUNTS, ROWS
from sgps_client.kinds import Record
from sgps_privacy.accountant import gaussian_epsilon
from sgps_privacy.attacks import FAR, epsilon_bound, mu_bound, one_run_bound

CONFIDENCE = 0.999  # of each bound of the game
ONE_RUN_CONFIDENCE = 0.99


@dataclass(frozen=True)
class Bound:
    """A lower bound and the claim that it must not exceed. quantity: mu, or epsilon at `DELTA`. presumes: what the bound takes for
    granted of the mechanism."""

    setting: str
    attack: str
    quantity: str
    lower: float
    claimed: float
    confidence: float
    runs: int
    presumes: str

    @property
    def holds(self) -> bool:
        return self.lower <= self.claimed

    def line(self) -> str:
        word = "" if self.holds else "  EXCEEDS THE CLAIM"
        return (
            f"{self.setting}, {self.attack}: {self.quantity} lower bound {self.lower:.3f}, claimed {self.claimed:.3f} "
            f"({100 * self.confidence:g} % confidence, {self.runs} runs){word}"
        )


def point(shape: tuple[int, ...], direction: Floats) -> dict[str, NDArray[np.float32]]:
    """The record in this direction of all numbers."""
    rows, counts = np.split(direction.astype(np.float32), [math.prod(shape)])
    return {ROWS: rows.reshape(shape), COUNTS: counts}


def along(step: Step, coordinate: int, size: float = FAR) -> Record:
    """A record of `size` along one coordinate."""
    direction = np.zeros(step.numbers)
    direction[coordinate] = size
    return point(step.start[ROWS].shape, direction)


def worst(step: Step) -> tuple[Record, Floats]:
    """A patient far beyond the clip in the row and the count of one class, and the unit direction of it."""
    classes, width = step.start[ROWS].shape
    direction = np.zeros(step.numbers)
    direction[5 * width : 6 * width] = math.sqrt(0.9 / width) * np.where(np.arange(width) % 2, 1, -1)
    direction[classes * width + 5] = math.sqrt(0.1)
    return point((classes, width), FAR * direction), direction


def tail(mu: float, trials: int) -> float:
    """Threshold at which the bound from plain counts is expected to be best, if the claim is exact."""
    best, found = -1.0, mu / 2
    for t in np.arange(mu / 2, mu / 2 + 4, 0.1):
        false_alarms, misses = (round(trials * float(p)) for p in (norm.sf(t), norm.cdf(t - mu)))
        bound = epsilon_bound(false_alarms, misses, trials, DELTA, CONFIDENCE)
        if bound > best:
            best, found = bound, float(t)
    return found


def game(step: Step, others: Sequence[Record | None], trials: int, setting: str) -> list[Bound]:
    """2 x `trials` rounds with and without the worst patient beside `others`."""
    claimed, epsilon = float(step.facts["mu"]), float(step.facts["epsilon"])
    few = step.slots(len(others) + 1)
    canary, direction = worst(step)
    known = step.quiet()([None, *others]).flat
    threshold = tail(claimed, trials)

    def scores(first: Record | None) -> Floats:
        train, _ = few.trainer([first, *others])
        found = (_flat(few, train()) for _ in range(trials))
        return np.array([(x - known) @ direction for x in found]) * claimed / float(step.facts["clip"])

    without, with_it = scores(None), scores(canary)
    middle = int((without > claimed / 2).sum()), int((with_it <= claimed / 2).sum())
    far = int((without > threshold).sum()), int((with_it <= threshold).sum())
    mu = mu_bound(*middle, trials, CONFIDENCE)
    plain = epsilon_bound(*far, trials, DELTA, CONFIDENCE)
    common: dict[str, Any] = {"setting": setting, "confidence": CONFIDENCE, "runs": 2 * trials}
    through = gaussian_epsilon(mu, DELTA)
    return [
        Bound(attack="game", quantity="mu", lower=mu, claimed=claimed, presumes="mu-GDP", **common),
        Bound(attack="game", quantity="epsilon", lower=through, claimed=epsilon, presumes="mu-GDP", **common),
        Bound(
            attack="game, plain counts", quantity="epsilon", lower=plain, claimed=epsilon, presumes="nothing", **common
        ),
    ]


def _flat(step: Step, payload: bytes) -> Floats:
    arrays = load(payload)
    return np.concatenate([arrays[n].ravel() for n in step.start]).astype(np.float64)


def guesses(mu: float, canaries: int) -> int:
    """How many guesses are expected to give the best bound of one run, by simulation of the claim."""
    rng, best, found = np.random.default_rng(0), -1.0, 0
    worlds = [rng.random(canaries) < 0.5 for _ in range(9)]
    seen = [(mu * w + rng.normal(size=canaries), w) for w in worlds]
    for number in (20, 40, 80, 160, 320, 640, 1280):
        if number > canaries:
            break
        bound = float(np.median([one_run_bound(s, w, number, DELTA, ONE_RUN_CONFIDENCE) for s, w in seen]))
        if bound > best:
            best, found = bound, number
    return found


def one_run(step: Step, canaries: int, setting: str) -> Bound:
    """One round in which `canaries` patients, each along a coordinate of its own, are in or out by a fair coin."""
    number = guesses(float(step.facts["mu"]), canaries)
    present = np.random.default_rng().random(canaries) < 0.5
    records = [along(step, i) if p else None for i, p in enumerate(present)]
    sent = step.slots(canaries)(records).flat[:canaries]
    lower = one_run_bound(sent, present, number, DELTA, ONE_RUN_CONFIDENCE)
    return Bound(
        setting, f"one run, {canaries} canaries, {number} guesses", "epsilon", lower, float(step.facts["epsilon"]),
        ONE_RUN_CONFIDENCE, 1, "nothing",
    )  # fmt: skip
