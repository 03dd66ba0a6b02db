"""Checks of the engine that a planted mistake must fail. Each runs real rounds of any `PrivateRound` class.

A check sees what the terms release (the noised mean gradients), except that noise is switched off where the claim is
about the sum before it. Thresholds are 5 standard errors: a false alarm of the whole set about once in 10,000 runs.
The problem is softmax regression with 85 numbers in two groups; one record is huge and two pull against the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, kstest
from torch import Tensor

from sgps_privacy.engine import Parameters, PrivateRound, Record
from sgps_privacy.noise import Grid, Ints
from sgps_privacy.terms import Terms

Rounds = type[PrivateRound]
Floats = NDArray[np.float64]
SLOTS, CLASSES, WIDTH = 8, 5, 16
GROUPS = (("w",), ("b",))
FLAT, GROUPED = (2.0,), (1.5, 0.7)


@dataclass(frozen=True)
class Verdict:
    """holds: the claim stands. figures: what was measured, for people."""

    holds: bool
    figures: str


def terms(clips: tuple[float, ...] = FLAT, *, sigma: float = 2.0, q: float = 1.0, steps: int = 1) -> Terms:
    """Terms of an audit round; the denominator is the public number of slots."""
    return Terms("episodes", sigma, q, steps, clips, GROUPS, SLOTS, 0.1)


def loss(theta: Parameters, record: Record) -> Tensor:
    """Cross entropy of softmax regression on one record."""
    logits = theta["w"] @ record["x"].to(theta["w"].dtype) + theta["b"]
    return logits.logsumexp(0) - logits[int(record["y"])]


def start() -> Parameters:
    """w (5, 16) and b (5)."""
    return {
        "w": 0.1 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0)),
        "b": torch.zeros(CLASSES),
    }


def world() -> list[Record | None]:
    """Eight records. Record 1 is huge; 2 and 3 pull in opposite directions, far above the clip."""
    make = torch.Generator().manual_seed(1)
    pull = torch.randn(WIDTH, generator=make)
    records: list[Record | None] = [
        {"x": torch.randn(WIDTH, generator=make), "y": torch.tensor(i % CLASSES)} for i in range(SLOTS)
    ]
    records[1] = {"x": 1e4 * torch.randn(WIDTH, generator=make), "y": torch.tensor(1)}
    records[2], records[3] = ({"x": side * 50 * pull, "y": torch.tensor(0)} for side in (1, -1))
    return records


def without_noise(rounds: Rounds) -> Rounds:
    """The same rounds with noise of zero, for claims about the sum."""

    def silence(self: object, count: int) -> Ints:
        return np.zeros(count, dtype=np.int64)

    quiet = type("Quiet", (rounds.optimizer_class,), {"draw": silence})
    return type("QuietRound", (rounds,), {"optimizer_class": quiet})


def released(rounds: Rounds, facts: Terms, records: Sequence[Record | None]) -> Floats:
    """(steps, numbers): what leaves, scaled back to sums by the public denominator."""
    work = rounds(facts, loss)
    work.run(start(), records, SLOTS)
    return np.stack(work.noised) * facts.denominator


def check_replay(rounds: Rounds) -> Verdict:
    """Putting the zero record in the place of any one record moves the sum by at most C, each group by at most its
    own clip."""
    quiet, records, worst, sizes = without_noise(rounds), world(), 0.0, np.cumsum([CLASSES * WIDTH])
    for clips in (FLAT, GROUPED):
        facts = terms(clips)
        whole = released(quiet, facts, records)[0]
        for i in range(SLOTS):
            moved = whole - released(quiet, facts, [*records[:i], None, *records[i + 1 :]])[0]
            worst = max(worst, float(np.linalg.norm(moved)) / facts.clip)
            if len(clips) > 1:
                worst = max(
                    worst, *(float(np.linalg.norm(p)) / c for p, c in zip(np.split(moved, sizes), clips, strict=True))
                )
    return Verdict(worst <= 1 + 1e-6, f"largest move {worst:.7f} C")


def check_denominator(rounds: Rounds) -> Verdict:
    """Two patients fewer: what is released is still the sum over the public number."""
    quiet, records = without_noise(rounds), world()
    many, few = (released(quiet, terms(), r)[0] for r in ([*records[:6], None, None], records[:6]))
    by_hand = sum(released(quiet, terms(), [r])[0] for r in records[:6])
    gap = max(float(np.linalg.norm(many - few)), float(np.linalg.norm(few - by_hand)))
    return Verdict(gap < 1e-4, f"missing records against zero records, and against single ones: {gap:.1e}")


def check_noise_size(rounds: Rounds) -> Verdict:
    """Every step and every group: standard deviation sigma C over the public denominator, normal shape."""
    deviations, shape = [], 1.0
    for clips in ((0.5,), (4.0,), GROUPED):
        facts = terms(clips, steps=3)
        draws = np.stack([released(rounds, facts, []) for _ in range(40)]) / (facts.sigma * facts.clip)
        for step in range(facts.steps):
            for part in (draws[:, step, : CLASSES * WIDTH], draws[:, step, CLASSES * WIDTH :]):
                deviations.append((float(part.std()) - 1) * math.sqrt(2 * part.size))
                shape = min(shape, float(kstest(part.ravel(), "norm").pvalue))
    low, high = min(deviations), max(deviations)
    return Verdict(
        max(-low, high) < 5 and shape > 1e-5,
        f"deviation {low:+.1f} to {high:+.1f} standard errors, least KS p {shape:.3f}",
    )


def check_noise_independence(rounds: Rounds) -> Verdict:
    """No correlation between steps, between neighbouring numbers, or between runs."""
    draws = np.stack([released(rounds, terms(steps=4), []) for _ in range(40)])
    pairs = {
        "steps": (draws[:, 1:], draws[:, :-1]),
        "numbers": (draws[..., 1:], draws[..., :-1]),
        "runs": (draws[1:], draws[:-1]),
    }
    found = {k: float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * math.sqrt(a.size) for k, (a, b) in pairs.items()}
    return Verdict(
        max(map(abs, found.values())) < 5,
        "correlation in standard errors: " + ", ".join(f"{k} {v:+.1f}" for k, v in found.items()),
    )


def check_noise_source(rounds: Rounds) -> Verdict:
    """Released sums are whole steps of the public grid, and the seeds of torch and numpy do not reach the noise."""
    facts, out = terms(), []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)
        out.append(released(rounds, facts, world())[0])
    steps = out[0] / Grid(facts.clip, facts.sigma, out[0].size).gamma
    on_grid, same = bool((np.abs(steps - np.rint(steps)) < 1e-3).all()), bool((out[0] == out[1]).all())
    return Verdict(on_grid and not same, f"on the grid: {on_grid}; same seed, same noise: {same}")


def check_empty_step(rounds: Rounds) -> Verdict:
    """No patient at all: the same number of steps, the noise in full."""
    facts = terms(steps=2)
    runs = [released(rounds, facts, []) for _ in range(40)]
    draws = np.concatenate([run.ravel() for run in runs]) / (facts.sigma * facts.clip)
    error = (float(draws.std()) - 1) * math.sqrt(2 * draws.size)
    whole = all(run.shape == (facts.steps, CLASSES * WIDTH + CLASSES) for run in runs)
    return Verdict(whole and abs(error) < 5, f"noise deviates by {error:+.1f} standard errors")


def check_bad_record(rounds: Rounds) -> Verdict:
    """NaN, infinity and a record on which the loss raises: the output of the zero record, and no message. Huge: at
    most C."""
    quiet, records = without_noise(rounds), world()
    bad: Mapping[str, Tensor] = {
        "nan": torch.full((WIDTH,), math.nan),
        "inf": torch.full((WIDTH,), math.inf),
        "shape": torch.ones(3),
    }
    want, gaps = released(quiet, terms(), [None, *records[1:]])[0], dict.fromkeys([*bad, "huge"], math.inf)
    for kind, x in {**bad, "huge": torch.full((WIDTH,), 3e38)}.items():
        try:
            got = released(quiet, terms(), [{"x": x, "y": torch.tensor(0)}, *records[1:]])[0]
        except Exception:  # noqa: BLE001, S112  raising is the fault that is looked for
            continue
        gaps[kind] = float(np.nan_to_num(np.linalg.norm(got - want), nan=math.inf))
    huge = gaps.pop("huge")  # finite or not is up to the machine; either way C bounds it
    return Verdict(
        max(gaps.values()) == 0 and huge <= terms().clip * (1 + 1e-6),
        ", ".join(f"{k} {v:.1g}" for k, v in gaps.items()) + f", huge {huge:.3g}",
    )


def check_sampling(rounds: Rounds) -> Verdict:
    """Poisson: each slot is drawn with rate q, independently of the others."""
    facts, times = terms(q=0.25), 3000
    work = rounds(facts, loss)
    slots: list[Record | None] = [{"slot": torch.tensor(i)} for i in range(SLOTS)]
    drawn = np.zeros((times, SLOTS), dtype=np.bool_)
    for row in drawn:
        row[[int(r["slot"]) for r in work.records_of_step(slots) if r is not None]] = True
    rate = min(float(binomtest(int(k), times, facts.q).pvalue) for k in drawn.sum(0))
    variance = float(drawn.sum(1).var()) / (SLOTS * facts.q * (1 - facts.q))
    return Verdict(
        rate > 1e-5 and abs(variance - 1) < 0.2,
        f"least p of a slot's rate {rate:.2g}, variance of the batch size {variance:.2f} of binomial",
    )


CHECKS: dict[str, Callable[[Rounds], Verdict]] = {
    "replay": check_replay,
    "denominator": check_denominator,
    "noise size": check_noise_size,
    "noise independence": check_noise_independence,
    "noise source": check_noise_source,
    "empty step": check_empty_step,
    "bad record": check_bad_record,
    "sampling": check_sampling,
}
"""Name of a claim -> its check. The real engine passes all; `run` gives all verdicts."""


def run(rounds: Rounds = PrivateRound) -> dict[str, Verdict]:
    """Every check on one class of rounds; about three seconds."""
    return {name: check(rounds) for name, check in CHECKS.items()}
