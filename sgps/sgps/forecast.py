"""What is kept of a row's gain under noise, from public numbers alone.

r is the signal of one row over its noise: a site of n patients of the disease that spends mu gives r = n mu / sqrt(k), k coordinates that
a record fills; weights are counts (`sgps.memory.pool`), so r^2 adds over sites, and S equal sites have r = n mu / sqrt(S k), n all patients
together. What is kept of the gain that the same patients bring without privacy lies near one curve of r (docs/results/federated.md: seven
skin classes, each in turn the disease that only others hold; 63 combinations of patients, sites, rounds and epsilon).

NumPy only: both programs use it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sgps.default_plan import DEFAULT_PLAN, rows_beside
from sgps.memory import USED

ENOUGH = 2.2  # r at which about 80 % is kept
HALF = 50.0  # per cent of the gain that the lowest combination must keep where patients are said to help also alone
HOPELESS = 1.0  # r below which a row mostly passes for noise and is not used
NOTHING = 0.2  # r of one site below which it adds nothing to what others bring
_R = (0.0, 0.32, 0.68, 1.26, 1.72, 2.27, 3.17, 4.54, 6.58, 17.6)
_KEPT = (0, 2, 7, 45, 73, 82, 90, 96, 98, 99)  # per cent, mean of the combinations
_LOW = (0, 0, -3, 18, 63, 73, 83, 93, 95, 97)  # lowest and highest combination
_HIGH = (0, 10, 32, 58, 84, 93, 95, 100, 100, 101)
_PATIENTS = (0, 10, 20, 40, 80, 160)
_GAIN = (0.0, 8.7, 10.1, 10.0, 10.6, 11.8)  # points of AUROC of one exemplar against all other classes, without noise


@dataclass(frozen=True)
class Kept:
    """Per cent of the gain: mean of the measured combinations near this r, the lowest and the highest."""

    mean: float
    low: float
    high: float

    def share(self) -> str:
        return f"about {max(self.mean, 0):.0f} % of the gain"

    def span(self) -> str:
        return f"{self.low:.0f} to {self.high:.0f}"

    @property
    def most(self) -> bool:
        """Whether every measured combination near this r kept half of the gain."""
        return self.low >= HALF


def signal(patients: Sequence[float], mu: float) -> float:
    """r of sites that hold so many patients of one disease and spend mu each."""
    return math.hypot(*patients) * mu / math.sqrt(USED)


def kept(r: float) -> Kept:
    return Kept(*(float(np.interp(r, _R, column)) for column in (_KEPT, _LOW, _HIGH)))


def gain(patients: int) -> float:
    """Points of AUROC that so many patients of one disease bring without noise."""
    return float(np.interp(patients, _PATIENTS, _GAIN))


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What one `rows` round costs and brings. patients: of one disease, in all. sigma, mu: of each site's one reply. r: signal over noise of
    one row. gain: points of AUROC that the patients bring without noise. kept, low, high: per cent of it. enough: patients in all, spread
    like these, for 80 %. recognised: share of those who took part that a test with 5 % false alarms finds, at most."""

    patients: int
    epsilon: float
    delta: float
    sigma: float
    mu: float
    r: float
    gain: float
    kept: float
    low: float
    high: float
    enough: int
    recognised: float

    def facts(self) -> dict[str, Any]:
        return asdict(self) | {"default_plan": asdict(DEFAULT_PLAN)}

    def cost(self, where: str = "") -> list[str]:
        """Lines for a person."""
        found = math.ceil(100 * self.recognised)
        return [
            f"cost   noise multiplier {self.sigma:g}, mu {self.mu:.3f}{where}, once for each cohort",
            f"       who guesses that a patient took part, with 5 % false alarms, is right for at most {found} % of those who did",
        ]

    def bring(self, formula: str, where: str) -> list[str]:
        """formula: of r. where: the patients for 80 % must be."""
        kept, few = Kept(self.kept, self.low, self.high), ""
        if self.r < HOPELESS:
            few = ": the row mostly passes for noise and is then not used"
        return [
            f"bring  signal over noise r = {formula} = {self.r:.2f}: {kept.share()} is kept ({kept.span()} in the measured combinations){few}",
            f"       one exemplar gains about {self.gain:.1f} points of AUROC by these patients without noise, {self.gain * self.kept / 100:.1f} with it",
            f"       for 80 % of the gain (r = {ENOUGH:g}), {self.enough} patients of the disease are needed {where}",
            rows_beside(self.epsilon, self.delta),
        ]


def outlook(patients: Sequence[float], epsilon: float, delta: float, sigma: float, recognised: float) -> dict[str, Any]:
    """The fields of `Outlook`, of sites that hold so many patients of one disease and spend the same; one has a patient at least."""
    mu, number = 1 / sigma, round(sum(patients))
    r = signal(patients, mu)
    share = kept(r)
    return {
        "patients": number, "epsilon": epsilon, "delta": delta, "sigma": sigma, "mu": mu, "r": r, "gain": gain(number),
        "kept": share.mean, "low": share.low, "high": share.high, "enough": math.ceil(sum(patients) * ENOUGH / r),
        "recognised": recognised,
    }  # fmt: skip
