"""What a `rows` round would cost and bring, from public numbers alone: nothing is read and nothing is spent.

r = n mu / sqrt(S k): n patients of one disease in S equal sites, k coordinates of a row. What is kept of the gain that the same
patients bring without privacy lies near one curve of r (docs: dp-utility, section 5; measured on seven skin classes, 75 cells).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgps.errors import InputError
from sgps_privacy import accountant
from sgps_privacy.errors import PrivacyError

COORDINATES = 64  # k of the shipped release
ENOUGH = 3.0  # r at which about 80 % is kept
HOPELESS = 1.0  # r below which a receiver should ignore the row
_R = (0.0, 0.3, 0.7, 1.2, 1.7, 2.2, 3.0, 4.3, 6.3, 20.0)
_KEPT = (0, 4, 20, 39, 53, 71, 82, 91, 95, 99)  # per cent, mean of the cells
_LOW = (0, -1, 4, 29, 38, 68, 77, 88, 92, 96)  # lowest and highest cell
_HIGH = (0, 8, 30, 49, 64, 76, 89, 93, 97, 102)


@dataclass(frozen=True)
class Forecast:
    """sigma: noise multiplier. mu: of the whole round. r: signal over noise of one row. kept, low, high: per cent of the gain."""

    patients: int
    sites: int
    epsilon: float
    delta: float
    sigma: float
    mu: float
    r: float
    kept: float
    low: float
    high: float
    enough: int
    recognised: float

    def facts(self) -> dict[str, Any]:
        return vars(self)

    def text(self) -> str:
        where = "one site" if self.sites == 1 else f"{self.sites} sites of equal size"
        share = math.ceil(100 * self.recognised)
        lines = [
            f"{self.patients} patients of one disease in {where}, epsilon {self.epsilon:g} at delta {self.delta:g}:",
            f"cost   noise multiplier {self.sigma:g}, mu {self.mu:.3f}, once for each cohort",
            f"       who guesses that a patient took part, with 5 % false alarms, is right for at most {share} % of those who did",
            f"bring  r = n mu / sqrt(S k) = {self.r:.2f}: {_verdict(self)}",
            f"       for 80 % of the gain (r = {ENOUGH:g}) {where} together need {self.enough} patients of the disease",
        ]
        if self.sites == 1 and self.r < HOPELESS:
            lines.append(
                f"alone, your {self.patients} patients move the shared picture of this disease by {_fraction(self.r)} of its noise; "
                "you lose nothing by only receiving (role: receive)"
            )
        lines.append(
            "measured on seven skin classes; of yours it is a forecast. Rare cases in few sites count for more than here."
        )
        return "\n".join(lines)


def _verdict(f: Forecast) -> str:
    if f.r < HOPELESS:
        return f"about {f.kept:.0f} % of the gain is kept ({f.low:.0f} to {f.high:.0f}): the noise is larger than the row, which is not used"
    return f"about {f.kept:.0f} % of the gain is kept ({f.low:.0f} to {f.high:.0f} in the measured cells)"


def _fraction(r: float) -> str:
    return f"less than half ({r:.2f})" if r < 0.5 else f"{r:.2f}"


def forecast(patients: int, epsilon: float, sites: int = 1, delta: float = 1e-5) -> Forecast:
    """patients: of one disease, at all sites together. epsilon, delta: what each site spends in its one round.

    Raises InputError when no noise keeps this epsilon, or when there are fewer patients than sites.
    """
    if patients < sites:
        raise InputError(
            f"{patients} patients cannot be in {sites} sites", where="--patients", do="it counts all sites together"
        )
    try:
        sigma = accountant.calibrate(epsilon, delta, 1)
    except PrivacyError as error:
        raise InputError(str(error), where="--epsilon", do="use a smaller one") from error
    mu, noise = 1 / sigma, math.sqrt(sites * COORDINATES)
    r = patients * mu / noise
    return Forecast(
        patients=patients,
        sites=sites,
        epsilon=epsilon,
        delta=delta,
        sigma=sigma,
        mu=mu,
        r=r,
        kept=float(np.interp(r, _R, _KEPT)),
        low=float(np.interp(r, _R, _LOW)),
        high=float(np.interp(r, _R, _HIGH)),
        enough=math.ceil(ENOUGH * noise / mu),
        recognised=accountant.true_positive_bound(mu),
    )
