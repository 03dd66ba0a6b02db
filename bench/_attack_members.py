"""Membership inference against what a `rows` round releases: likelihood ratios, which are exact where everything but one patient is known.

The attack of Carlini et al. (2022, "Membership inference attacks from first principles") fits Gaussians to shadow
models. Here the released numbers are a sum with noise of a known size, so the two Gaussians are written down instead of trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load
from scipy.stats import beta, norm

from bench._step import Floats, Step
from sgps.episodes import auroc
from sgps.memory import SHARE_ROW, Coordinates
from sgps_client.kinds import Record
from sgps_privacy.noise import Grid, discrete_gaussian

Array = NDArray[Any]
FALSE_ALARMS = 0.01
SHOWN, CHECKED = 0.95, 0.999  # confidence of the printed intervals; of the verdict against the bound
_SHRUNK = 0.1  # of the population's covariance towards a sphere: 32 coordinates from about a hundred lesions


def clopper_pearson(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Exact two-sided interval of a rate (Clopper and Pearson 1934)."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.isf(tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


@dataclass(frozen=True)
class Outcome:
    """One attack. epsilon, mu: as claimed for the two worlds that are told apart; none without noise. hits of `members` and alarms of
    `others` lie above the threshold; auc_deviation: standard error of auc (DeLong, DeLong and Clarke-Pearson 1988)."""

    attack: str
    epsilon: float | None
    mu: float | None
    members: int
    others: int
    hits: int
    alarms: int
    auc: float
    auc_deviation: float

    @classmethod
    def of(
        cls, attack: str, epsilon: float | None, mu: float | None, out: Floats, into: Floats, at: float
    ) -> "Outcome":
        """out, into: scores of runs without and with the patient; at: a threshold that neither has chosen."""
        both, inside = np.concatenate([out, into]), np.repeat([False, True], [len(out), len(into)])
        below, above = np.sort(out), np.sort(into)
        placed = [_place(below, into), 1 - _place(above, out)]
        deviation = float(np.sqrt(sum(p.var(ddof=1) / len(p) for p in placed)))
        hits, alarms = int((into > at).sum()), int((out > at).sum())
        return cls(attack, epsilon, mu, len(into), len(out), hits, alarms, auroc(both, inside), deviation)

    @property
    def auc_bound(self) -> float:
        """Of a mu-Gaussian trade-off curve."""
        return 1.0 if self.mu is None else float(norm.cdf(self.mu / np.sqrt(2)))

    def rate_bound(self, false_alarms: float) -> float:
        """True-positive rate that the claim allows at this rate of false alarms (Dong, Roth, Su 2022, equation 6)."""
        return 1.0 if self.mu is None else float(norm.cdf(self.mu + norm.ppf(false_alarms)))

    @property
    def holds(self) -> bool:
        """Whether rate and area are compatible with the claim."""
        most = self.rate_bound(clopper_pearson(self.alarms, self.others, CHECKED)[1])
        least_area = self.auc - float(norm.isf((1 - CHECKED) / 2)) * self.auc_deviation
        return clopper_pearson(self.hits, self.members, CHECKED)[0] <= most and least_area <= self.auc_bound

    def line(self) -> str:
        """A row of the report's table."""
        low, high = clopper_pearson(self.hits, self.members, SHOWN)
        falsely = clopper_pearson(self.alarms, self.others, SHOWN)
        half = float(norm.isf((1 - SHOWN) / 2)) * self.auc_deviation
        budget = "no noise" if self.epsilon is None else f"{self.epsilon:g}"
        return (
            f"| {self.attack} | {budget} | {self.auc:.3f} ± {half:.3f} | {self.auc_bound:.3f} | "
            f"{100 * self.hits / self.members:.1f} ({100 * low:.1f} to {100 * high:.1f}) | {100 * self.rate_bound(FALSE_ALARMS):.1f} | "
            f"{100 * self.alarms / self.others:.2f} ({100 * falsely[0]:.2f} to {100 * falsely[1]:.2f}) | "
            f"{self.members} + {self.others} | {'yes' if self.holds else '**no**'} |"
        )


def _place(ordered: Floats, values: Floats) -> Floats:
    """Share of `ordered` below each value; ties count half."""
    return (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, "right")) / (2 * len(ordered))


def informed(
    step: Step,
    others: Sequence[Record | None],
    targets: Sequence[Record],
    trials: int,
    attack: str,
    epsilon: float | None,
) -> Outcome:
    """Who knows every other patient and the target's own record, and sees the bytes that leave: `trials` rounds in each world.
    epsilon: none takes the noise out of the step.

    The log likelihood ratio grows with the projection on the target's clipped record, which is normal with deviation 1 in both worlds
    and mean 0 or mu; the threshold is the 99 % point of the world without, and half way where there is no noise.
    """
    few = step.slots(len(others) + 1)
    known = few.quiet()([None, *others]).flat
    played = few.quiet() if epsilon is None else few
    scores: tuple[list[float], list[float]] = ([], [])
    part = -(-trials // len(targets))
    for target in targets:
        moved = few.quiet()([target, *others]).flat - known
        direction = moved / np.linalg.norm(moved) / step.grid.std
        for first, found in zip((None, target), scores, strict=True):
            train, _ = played.trainer([first, *others])
            found += [float((_flat(step, train()) - known) @ direction) for _ in range(part)]
    out, into = (np.array(s) for s in scores)
    mu = float(step.facts["mu"])
    at = mu / 2 if epsilon is None else float(norm.isf(FALSE_ALARMS))
    return Outcome.of(attack, epsilon, None if epsilon is None else mu, out, into, at)


def _flat(step: Step, payload: bytes) -> Floats:
    arrays = load(payload)
    return np.concatenate([arrays[n].ravel() for n in step.start]).astype(np.float64)


def directions(coordinates: Coordinates, features: Array) -> Floats:
    """What records of one class put into its row: [n, used], each of length sqrt(.8)."""
    place = coordinates.place(features.astype(np.float64))[:, : coordinates.used]
    return np.asarray(np.sqrt(SHARE_ROW) * place / np.linalg.norm(place, axis=1, keepdims=True))


def uninformed(
    rows: Floats, patients: int, kind: str, grid: Grid | None, claim: tuple[float, float] | None, trials: int, seed: int
) -> Outcome:
    """Who knows the target's record, the number of patients and what other lesions of the disease look like, and sees its row.

    rows [n, used]: half of them are the attacker's, the other half the hospital's; in both worlds `patients` of these make the
    sum, the target being one of them or not. So the worlds differ by a replacement, whose claim is twice mu. The threshold comes from
    runs without the target that are not counted.
    """
    random = np.random.default_rng([seed, patients])
    order = random.permutation(len(rows))
    reference, pool = rows[order[::2]], rows[order[1::2]]
    if len(pool) <= patients:
        raise ValueError(f"{patients} patients need more than {len(pool)} lesions")
    mean, covariance = reference.mean(0), np.cov(reference.T)
    sphere = np.eye(len(mean)) * np.trace(covariance) / len(mean)
    spread, axes = np.linalg.eigh((1 - _SHRUNK) * covariance + _SHRUNK * sphere)
    variance = 0.0 if grid is None else grid.std**2

    def scores(present: bool, count: int) -> Floats:
        chosen = pool[random.random((count, len(pool))).argsort(1)[:, : patients + 1]]
        target, sums = chosen[:, 0], (chosen[:, :-1] if present else chosen[:, 1:]).sum(1)
        if grid is not None:
            noise = discrete_gaussian(sums.size).reshape(sums.shape)
            sums = (np.rint(sums / grid.gamma) + noise) * grid.gamma
        within, without = (
            ((sums - base) @ axes) ** 2 / (n * spread + variance)
            for base, n in ((target + (patients - 1) * mean, patients - 1), (patients * mean, patients))
        )
        return np.asarray((without - within).sum(1))

    at = float(np.quantile(scores(False, trials), 1 - FALSE_ALARMS))
    epsilon, mu = (None, None) if claim is None else (claim[0], 2 * claim[1])
    name = f"knows the disease, {patients} patients of {kind}"
    return Outcome.of(name, epsilon, mu, scores(False, trials), scores(True, trials), at)
