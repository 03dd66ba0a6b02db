"""What one `rows` round would cost and bring a whole federation, from the sites' numbers of patients. The curve: `sgps.forecast`."""

from collections.abc import Sequence
from dataclasses import dataclass

from sgps import forecast as curve
from sgps.errors import InputError
from sgps.forecast import HOPELESS, NOTHING
from sgps_privacy import accountant
from sgps_privacy.errors import PrivacyError

_VERDICT = {
    "alone": "helps, also alone",
    "part": "helps, alone in part",
    "beside": "helps beside others",
    "nothing": "too small to help; loses nothing by only receiving (role: receive)",
}


@dataclass(frozen=True)
class Part:
    """One site. r: of its patients alone. share: of r^2 of all sites, which adds over sites. helps: `alone`; alone in `part`, where not every
    measured combination kept half of the gain; `beside` others; `nothing`."""

    patients: int
    r: float
    share: float
    helps: str

    def text(self) -> str:
        verdict = _VERDICT[self.helps]
        if self.helps in ("alone", "part"):
            kept = curve.kept(self.r)
            verdict += f": {kept.share()} ({kept.span()})"
        number = f"{self.patients} patient{'s' * (self.patients != 1)}"
        return f"{number}, r = {self.r:.2f}, {100 * self.share:.0f} % of the whole: {verdict}"


@dataclass(frozen=True, kw_only=True)
class Forecast(curve.Outlook):
    """Of the whole federation."""

    sites: tuple[Part, ...]

    def text(self) -> str:
        many = f"{self.patients} patient{'s' * (self.patients != 1)} of one disease in {len(self.sites)} site(s)"
        return "\n".join(
            [
                f"{many}, epsilon {self.epsilon:g} at delta {self.delta:g} in each:",
                *self.cost(" in each site"),
                *(f"site {n}  {s.text()}" for n, s in enumerate(self.sites, 1)),
                *self.bring("mu sqrt(sum of n^2) / sqrt(k)", "in all, spread over the sites like these"),
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
    fields = curve.outlook(patients, epsilon, delta, sigma, accountant.true_positive_bound(1 / sigma))
    alone = [curve.signal([n], fields["mu"]) for n in patients]
    parts = (Part(n, r, (r / fields["r"]) ** 2, _helps(r)) for n, r in zip(patients, alone, strict=True))
    return Forecast(sites=tuple(parts), **fields)


def _helps(r: float) -> str:
    if r < HOPELESS:
        return "nothing" if r < NOTHING else "beside"
    return "alone" if curve.kept(r).most else "part"


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
