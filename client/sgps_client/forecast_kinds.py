"""What a `site_mean` or an `episodes` round would cost and bring, from public numbers alone. Of `rows`: `sgps_client.forecast`."""

import math
from dataclasses import dataclass
from typing import Any

from sgps.errors import InputError
from sgps.kinds import KINDS
from sgps.memory import SHARE_ROW, USED
from sgps.site_mean import SHARE
from sgps_privacy import accountant
from sgps_privacy.errors import PrivacyError
from sgps_privacy.terms import Terms


@dataclass(frozen=True)
class MeanForecast:
    """patients: of one site, of classes with a public mean. sigma_mean, sigma_rows: noise of the two rounds. mu: of both together.

    blur: length of the mean's noise, in radii R of the class memory. rows: factor on r of every row.
    """

    patients: int
    epsilon: float
    delta: float
    sigma_mean: float
    sigma_rows: float
    mu: float
    blur: float
    rows: float

    def facts(self) -> dict[str, Any]:
        return vars(self)

    def text(self) -> str:
        return "\n".join(
            [
                (
                    f"{self.patients} patients of common classes in one site, epsilon {self.epsilon:g} at delta {self.delta:g} for the mean and "
                    "the rows after it:"
                ),
                (
                    f"cost   noise multiplier {self.sigma_mean:g} for the mean and {self.sigma_rows:g} for the rows, mu {self.mu:.3f} together, "
                    "once for each cohort"
                ),
                (
                    f"bring  the site's mean is known to within {self.blur:.2f} of the radius R; a camera that moves pictures by less is not "
                    "centred"
                ),
                f"       r of every row falls by the factor {self.rows:.2f}: it pays only where cameras differ",
            ]
        )


@dataclass(frozen=True)
class EpisodesForecast:
    """patients: at all sites together. numbers: that are trained. sigma: noise multiplier of one step. mu: of the round, that of a Gaussian
    with the same epsilon. signal: N mu / sqrt(S d). enough: patients for the least signal."""

    patients: int
    sites: int
    numbers: int
    steps: int
    sampling: float
    epsilon: float
    delta: float
    sigma: float
    mu: float
    signal: float
    enough: int

    def facts(self) -> dict[str, Any]:
        return vars(self)

    def text(self) -> str:
        where = "one site" if self.sites == 1 else f"{self.sites} sites of equal size"
        least = KINDS["episodes"].least_signal
        verdict = (
            "such a plan is carried out"
            if self.signal >= least
            else f"below {least:g} the noise would harm more than the patients help; such a plan is refused, by the coordinator and by the site"
        )
        drawn = "" if self.sampling == 1 else f", each patient drawn with rate {self.sampling:g}"
        return "\n".join(
            [
                (
                    f"{self.patients} patients in {where} train {self.numbers} numbers in {self.steps} steps{drawn}, epsilon {self.epsilon:g} "
                    f"at delta {self.delta:g}:"
                ),
                f"cost   noise multiplier {self.sigma:g} in each step, mu {self.mu:.3f}, for every round of this kind anew",
                f"bring  N mu / sqrt(S d) = {self.signal:.1f}: {verdict}",
                f"       {least:g} needs {self.enough} patients of any disease in {where}, or fewer numbers",
            ]
        )


def site_mean(patients: int, epsilon: float, delta: float = 1e-5) -> MeanForecast:
    """patients: of one site. epsilon, delta: what the pair of rounds costs. Raises InputError when no noise keeps this epsilon."""
    try:
        mean, rows = accountant.split(epsilon, delta, (SHARE, 1 - SHARE))
    except PrivacyError as error:
        raise InputError(str(error), where="--epsilon", do="use a smaller one") from error
    return MeanForecast(
        patients=patients,
        epsilon=epsilon,
        delta=delta,
        sigma_mean=mean,
        sigma_rows=rows,
        mu=math.hypot(1 / mean, 1 / rows),
        blur=math.sqrt(USED / SHARE_ROW) * mean / patients,
        rows=math.sqrt(1 - SHARE),
    )


def episodes(
    patients: int, epsilon: float, sites: int, delta: float, numbers: int, steps: int, sampling: float
) -> EpisodesForecast:
    """epsilon, delta: what one round costs. Raises InputError when no noise keeps this epsilon, or when there are fewer patients than
    sites."""
    if patients < sites:
        raise InputError(
            f"{patients} patients cannot be in {sites} sites", where="--patients", do="it counts all sites together"
        )
    try:
        sigma = accountant.calibrate(epsilon, delta, steps, sampling)
    except PrivacyError as error:
        raise InputError(str(error), where="--epsilon", do="use a smaller one") from error
    each = max(1, round(sampling * patients / sites))
    signal = Terms("episodes", sigma, sampling, steps, (1.0,), (("any",),), each).signal(numbers, sites)
    one = Terms("episodes", sigma, sampling, steps, (1.0,), (("any",),), 1).signal(numbers, sites)
    enough = math.ceil(KINDS["episodes"].least_signal / one) * sites / sampling
    mu = accountant.gaussian_mu(epsilon, delta)
    return EpisodesForecast(
        patients, sites, numbers, steps, sampling, epsilon, delta, sigma, mu, signal, math.ceil(enough)
    )
