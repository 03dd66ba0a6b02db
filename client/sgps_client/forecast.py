"""What a `rows` round would cost and bring, from public numbers alone: nothing is read and nothing is spent. The curve: `sgps.forecast`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sgps import forecast as curve
from sgps.errors import InputError
from sgps.forecast import ENOUGH, HOPELESS, NOTHING
from sgps.memory import USED
from sgps_privacy import accountant
from sgps_privacy.errors import PrivacyError


@dataclass(frozen=True, kw_only=True)
class Forecast(curve.Outlook):
    """Of `sites` sites of equal size, together."""

    sites: int

    def text(self) -> str:
        where = "one site" if self.sites == 1 else f"{self.sites} sites of equal size"
        few = alone(self.patients, self.mu) if self.sites == 1 else None
        return "\n".join(
            [
                f"{_patients(self.patients)} of one disease in {where}, epsilon {self.epsilon:g} at delta {self.delta:g}:",
                *self.cost(),
                *self.bring("n mu / sqrt(S k)", f"in {where}"),
                *([few] if few else []),
                "measured on seven skin classes; of yours it is a forecast. Rare cases in few sites count for more than here.",
            ]
        )


def _patients(number: int) -> str:
    return f"{number} patient{'s' * (number != 1)}"


def alone(patients: int, mu: float) -> str | None:
    """A sentence when one site's patients of a disease are too few to help alone, or at all; none when they are enough."""
    r = patients * mu / math.sqrt(USED)
    if r >= HOPELESS:
        return None
    few = (
        f"{_patients(patients)} move{'s' * (patients == 1)} the shared picture of their disease by {r:.2f} of its noise"
    )
    if r < NOTHING:
        return f"{few}: too few to help at all, even beside others; you lose nothing by only receiving (role: receive)"
    part, most = (math.ceil(limit * math.sqrt(USED) / mu) for limit in (HOPELESS, ENOUGH))
    return f"{few}: too few to help alone (from {part} on in part, from {most} on with 80 % of the gain); beside others they count; you lose nothing by only receiving (role: receive)"


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
    fields = curve.outlook([patients / sites] * sites, epsilon, delta, sigma, accountant.true_positive_bound(1 / sigma))
    return Forecast(sites=sites, **fields)
