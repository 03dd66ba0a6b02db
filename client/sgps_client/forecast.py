"""What a `rows` round would cost and bring, from public numbers alone: nothing is read and nothing is spent. The curve: `sgps.forecast`."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sgps import forecast as curve
from sgps.default_plan import DEFAULT_PLAN, rows_beside
from sgps.errors import InputError
from sgps.forecast import ENOUGH, HOPELESS, NOTHING
from sgps.memory import USED
from sgps_privacy import accountant
from sgps_privacy.errors import PrivacyError


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
        return vars(self) | {"default_plan": asdict(DEFAULT_PLAN)}

    def text(self) -> str:
        where = "one site" if self.sites == 1 else f"{self.sites} sites of equal size"
        share = math.ceil(100 * self.recognised)
        lines = [
            f"{self.patients} {_patients(self.patients)} of one disease in {where}, epsilon {self.epsilon:g} at delta {self.delta:g}:",
            f"cost   noise multiplier {self.sigma:g}, mu {self.mu:.3f}, once for each cohort",
            f"       who guesses that a patient took part, with 5 % false alarms, is right for at most {share} % of those who did",
            f"bring  signal over noise r = n mu / sqrt(S k) = {self.r:.2f}: {_verdict(self)}",
            f"       one exemplar gains about {self.gain:.0f} points of AUROC by these patients without noise, {self.gain * self.kept / 100:.1f} with it",
            f"       for 80 % of the gain (r = {ENOUGH:g}), {self.enough} patients of the disease are needed in {where}",
            rows_beside(self.epsilon, self.delta),
        ]
        if self.sites == 1:
            lines += [line for line in (alone(self.patients, self.mu),) if line]
        lines.append(
            "measured on seven skin classes; of yours it is a forecast. Rare cases in few sites count for more than here."
        )
        return "\n".join(lines)


def _patients(number: int) -> str:
    return "patient" if number == 1 else "patients"


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
    few = f"{patients} {_patients(patients)} move{'s' * (patients == 1)} the shared picture of their disease by {r:.2f} of its noise"
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
    mu = 1 / sigma
    r = curve.signal([patients / sites] * sites, mu)
    kept = curve.kept(r)
    return Forecast(
        patients=patients,
        sites=sites,
        epsilon=epsilon,
        delta=delta,
        sigma=sigma,
        mu=mu,
        r=r,
        gain=curve.gain(patients),
        kept=kept.mean,
        low=kept.low,
        high=kept.high,
        enough=math.ceil(ENOUGH * math.sqrt(sites * USED) / mu),
        recognised=accountant.true_positive_bound(mu),
    )
