"""The privacy unit: one patient, one record, one episode.

Record: all images of one patient, as support and as queries, beside public images and texts. Slots: the site's
configuration fixes their number, which is public; a slot without a patient holds the zero record (`None`), so the
number of slots is a cap and not a count. Neighbours (zero-out): one slot holds a patient in the one data set and the
zero record in the other. The zero record contributes a gradient of zero by definition; the loss is never evaluated on
it.

Claim. For every patient, and every coordinator that chooses plans and generators adaptively within the site's limits,
all messages of the site about a cohort, over all rounds and federations, are (epsilon, delta)-differentially private
under zero-out, with the epsilon of the ledger's events; and mu-GDP, up to the sampler's distance, when all are full
batch.

Proof sketch. Given everything sent before:
(a) the gradient of a record depends on that record and public data only, also in floats (`gradients`); clipped, its
    norm is at most C, so neighbouring sums differ by at most C in L2;
(b) both sums are rounded to a grid, which adds at most 1.001 sqrt(d) steps to the sensitivity (`noise.Grid`);
(c) whole numbers plus a rounded Gaussian are post-processing of the Gaussian mechanism: one step is 1/sigma-GDP;
(d) adaptive steps compose: mu^2 adds (Dong, Roth, Su, "Gaussian Differential Privacy", 2022); Poisson steps by PLD;
(e) the sampler's draws together are within total variation tau of rounded Gaussians (`noise.sampler_distance`), so
    delta grows by (1 + e^epsilon) tau (`accountant.with_sampler`);
(f) dividing by a public number, local steps, float32 on the wire are post-processing;
(g) refusals, retries and codes depend on plan, limits and ledger, not on records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sgps_privacy.errors import PrivacyError

T = TypeVar("T")
MAX_SLOTS = 60_000  # the slack of `noise.Grid` is proved up to here


def fill_slots(records: Sequence[T | None], slots: int) -> list[T | None]:
    """Records padded with zero records (`None`) to the public number of slots.

    Raises PrivacyError when there are more records than slots, so call it once before the ledger is charged.
    """
    if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= MAX_SLOTS:
        raise PrivacyError(f"slots {slots!r}: must be a whole number from 1 to {MAX_SLOTS}")
    if len(records) > slots:
        raise PrivacyError(f"more records than the {slots} slots of this site: raise `slots` or open a further cohort")
    return [*records, *[None] * (slots - len(records))]
