"""What one `rows` round would cost and bring a whole federation, from the sites' numbers of patients. The curve: `sgps.forecast`."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sgps import forecast as curve
from sgps.default_plan import DEFAULT_PLAN, rows_beside
from sgps.errors import InputError
from sgps.forecast import ENOUGH, HOPELESS, NOTHING
from sgps_privacy import accountant
from sgps_privacy.errors import PrivacyError

_VERDICT = {
    "alone": "helps, also alone",
    "beside": "helps beside others",
    "nothing": "too small to help; loses nothing by only receiving (role: receive)",
}


@dataclass(frozen=True)
class Part:
    """One site. r: of its patients alone. share: of r^2 of all sites, which adds over sites. helps: `alone`, `beside` others, `nothing`."""

    patients: int
    r: float
    share: float
    helps: str


@dataclass(frozen=True)
class Forecast:
    """sigma, mu: of each site's one reply. r: signal over noise of one row. kept, low, high: per cent of the gain. gain: points of AUROC
    that the patients bring without noise. enough: patients in all, spread like these, for 80 %. recognised: share of those who took
    part that a test with 5 % false alarms finds, at most."""

    sites: tuple[Part, ...]
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

    def text(self) -> str:
        found = math.ceil(100 * self.recognised)
        kept = f"about {self.kept:.0f} % of the gain is kept ({self.low:.0f} to {self.high:.0f} in the measured combinations)"
        few = ": the row mostly passes for noise and is then not used" if self.r < HOPELESS else ""
        return "\n".join(
            [
                (
                    f"{self.patients} patient{'s' * (self.patients != 1)} of one disease in {len(self.sites)} site(s), epsilon {self.epsilon:g} at delta "
                    f"{self.delta:g} in each:"
                ),
                f"cost   noise multiplier {self.sigma:g}, mu {self.mu:.3f} in each site, once for each cohort",
                (
                    "       who guesses that a patient took part, with 5 % false alarms, is right for at most "
                    f"{found} % of those who did"
                ),
                *(
                    f"site {n}  {s.patients} {'patient' if s.patients == 1 else 'patients'}, r = {s.r:.2f}, {100 * s.share:.0f} % of the whole: {_VERDICT[s.helps]}"
                    for n, s in enumerate(self.sites, 1)
                ),
                f"bring  signal over noise r = mu sqrt(sum of n^2) / sqrt(k) = {self.r:.2f}: {kept}{few}",
                (
                    f"       one exemplar gains about {self.gain:.0f} points of AUROC by these patients without noise, "
                    f"{self.gain * self.kept / 100:.1f} with it"
                ),
                f"       for 80 % of the gain (r = {ENOUGH:g}), {self.enough} patients are needed, spread over the sites like these",
                rows_beside(self.epsilon, self.delta),
                "measured on seven skin classes in sites of equal size; of yours it is a forecast.",
            ]
        )


def forecast(patients: Sequence[int], epsilon: float, delta: float = 1e-5) -> Forecast:
    """patients: of one disease, in each site. epsilon, delta: what each site spends in its one round.

    Raises InputError when no noise keeps this epsilon, or no site has a patient.
    """
    if not sum(patients) or min(patients) < 0:
        raise InputError("no patient in any site", where="--patients", do="give each site's number, as 12,30,8")
    try:
        sigma = accountant.calibrate(epsilon, delta, 1)
    except PrivacyError as error:
        raise InputError(str(error), where="--epsilon", do="use a smaller one") from error
    mu = 1 / sigma
    r = curve.signal(patients, mu)
    alone = [curve.signal([n], mu) for n in patients]
    kept = curve.kept(r)
    return Forecast(
        sites=tuple(Part(n, one, (one / r) ** 2, _helps(one)) for n, one in zip(patients, alone, strict=True)),
        patients=sum(patients),
        epsilon=epsilon,
        delta=delta,
        sigma=sigma,
        mu=mu,
        r=r,
        gain=curve.gain(sum(patients)),
        kept=kept.mean,
        low=kept.low,
        high=kept.high,
        enough=math.ceil(sum(patients) * ENOUGH / r),
        recognised=accountant.true_positive_bound(mu),
    )


def _helps(r: float) -> str:
    return "nothing" if r < NOTHING else "beside" if r < HOPELESS else "alone"


def numbers(text: str) -> list[int]:
    """`12,30,8` -> numbers. Raises InputError."""
    parts = text.split(",")
    if len(parts) > 10_000 or not all(
        p.strip().isascii() and p.strip().isdigit() and len(p.strip()) <= 7 for p in parts
    ):
        raise InputError(
            "is not a list of whole numbers of at most 7 digits, 10000 at most",
            where="--patients",
            do="write 12,30,8: the patients of each site",
        )
    return [int(p) for p in parts]
