"""What a `rows` round would cost and bring, from public numbers alone: nothing is read and nothing is spent.

r = n mu / sqrt(S k): n patients of one disease in S equal sites, k coordinates that a record fills. What is kept of the gain that the
same patients bring without privacy lies near one curve of r (docs/results/federated.md: seven skin classes, each in turn the disease
that only others hold; 63 combinations of patients, sites, rounds and epsilon).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgps.errors import InputError
from sgps.memory import USED
from sgps_privacy import accountant
from sgps_privacy.errors import PrivacyError

COORDINATES = 64  # k of the shipped release, of which rows use the leading ones
ENOUGH = 2.2  # r at which about 80 % is kept
HOPELESS = 1.0  # r below which a row mostly passes for noise and is not used
NOTHING = 0.2  # r of one site below which it adds nothing to what others bring: r^2 adds over sites
_R = (0.0, 0.32, 0.68, 1.26, 1.72, 2.27, 3.17, 4.54, 6.58, 17.6)
_KEPT = (0, 2, 7, 45, 73, 82, 90, 96, 98, 99)  # per cent, mean of the combinations
_LOW = (0, 0, -3, 18, 63, 73, 83, 93, 95, 97)  # lowest and highest combination
_HIGH = (0, 10, 32, 58, 84, 93, 95, 100, 100, 101)
_PATIENTS = (0, 10, 20, 40, 80, 160)
_GAIN = (0.0, 8.7, 10.1, 10.0, 10.6, 11.8)  # points of AUROC of one exemplar against all other classes, without noise


@dataclass(frozen=True)
class Forecast:
    """sigma: noise multiplier. mu: of the whole round. r: signal over noise of one row. kept, low, high: per cent of the gain. gain: points
    of AUROC that the patients bring without noise. enough: patients for 80 %."""

    patients: int
    sites: int
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
        return vars(self)

    def text(self) -> str:
        where = "one site" if self.sites == 1 else f"{self.sites} sites of equal size"
        share = math.ceil(100 * self.recognised)
        lines = [
            f"{self.patients} patients of one disease in {where}, epsilon {self.epsilon:g} at delta {self.delta:g}:",
            f"cost   noise multiplier {self.sigma:g}, mu {self.mu:.3f}, once for each cohort",
            f"       who guesses that a patient took part, with 5 % false alarms, is right for at most {share} % of those who did",
            f"bring  signal over noise r = n mu / sqrt(S k) = {self.r:.2f}: {_verdict(self)}",
            f"       one exemplar gains about {self.gain:.0f} points of AUROC by these patients without noise, {self.gain * self.kept / 100:.1f} with it",
            f"       for 80 % of the gain (r = {ENOUGH:g}), {self.enough} patients of the disease are needed in {where}",
        ]
        if self.sites == 1:
            lines += [line for line in (alone(self.patients, self.mu),) if line]
        lines.append(
            "measured on seven skin classes; of yours it is a forecast. Rare cases in few sites count for more than here."
        )
        return "\n".join(lines)


def _verdict(f: Forecast) -> str:
    kept = (
        f"about {max(f.kept, 0):.0f} % of the gain is kept ({f.low:.0f} to {f.high:.0f} in the measured combinations)"
    )
    return f"{kept}: the row mostly passes for noise and is then not used" if f.r < HOPELESS else kept


def alone(patients: int, mu: float) -> str | None:
    """A sentence when one site's patients of a disease are too few to help alone, or at all; none when they are enough."""
    r = patients * mu / math.sqrt(USED)
    if r >= HOPELESS:
        return None
    few = f"{patients} patients move the shared picture of their disease by {r:.2f} of its noise"
    if r < NOTHING:
        return f"{few}: too few to help at all, even beside others; you lose nothing by only receiving (role: receive)"
    need = math.ceil(HOPELESS * math.sqrt(USED) / mu)
    return f"{few}: too few to help alone (from {need} on); beside others they count; you lose nothing by only receiving (role: receive)"


def too_few(patients: Mapping[str, int], epsilon: float, delta: float) -> dict[str, str]:
    """Of a site's patients by class: what `alone` says of those that are too few, smallest first. Nothing for an epsilon that has no noise."""
    try:
        mu = 1 / accountant.calibrate(epsilon, delta, 1)
    except PrivacyError:
        return {}
    said = {c: alone(n, mu) for c, n in sorted(patients.items(), key=lambda item: (item[1], item[0]))}
    return {c: text for c, text in said.items() if text}


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
    mu, noise = 1 / sigma, math.sqrt(sites * USED)
    r = patients * mu / noise
    return Forecast(
        patients=patients,
        sites=sites,
        epsilon=epsilon,
        delta=delta,
        sigma=sigma,
        mu=mu,
        r=r,
        gain=float(np.interp(patients, _PATIENTS, _GAIN)),
        kept=float(np.interp(r, _R, _KEPT)),
        low=float(np.interp(r, _R, _LOW)),
        high=float(np.interp(r, _R, _HIGH)),
        enough=math.ceil(ENOUGH * noise / mu),
        recognised=accountant.true_positive_bound(mu),
    )
