"""What a site computes for each kind of round: the record of a patient, and the loss whose gradient is clipped, summed and noised.

A record depends on one patient, the verified release and what was released before; never on another patient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from sgps import site_mean
from sgps.memory import COUNTS, ROWS, Array, record
from sgps.release import Release
from sgps_client.records import Patient

if TYPE_CHECKING:
    from torch import Tensor

    from sgps_privacy.engine import Loss

Record = Mapping[str, "Array | Tensor"]
Make = Callable[[Patient], Record | None]


@dataclass(frozen=True)
class Work:
    """records: (release, the site's noised mean or None) -> (patient -> record, or None for the zero record). loss: (release, names)
    -> (theta, record) -> scalar. pictures: (release, names) -> whether a record needs the patient's pictures."""

    records: Callable[[Release, Array | None], Make]
    loss: Callable[[Release, Sequence[str]], "Loss"]
    pictures: Callable[[Release, Sequence[str]], bool] = lambda release, names: False


def _rows(release: Release, offset: Array | None) -> Make:
    coordinates, classes = release.memory().coordinates, len(release.manifest.classes)

    def make(patient: Patient) -> Record:
        rows, counts = record(coordinates, patient.means(), classes, offset)
        return {ROWS: rows.astype(np.float32), COUNTS: counts.astype(np.float32)}

    return make


def _site_mean(release: Release, offset: Array | None) -> Make:
    coordinates, means = release.memory().coordinates, site_mean.common(release)

    def make(patient: Patient) -> Record | None:
        found = site_mean.record(coordinates, means, patient.means())
        return found and {site_mean.SUM: found[0].astype(np.float32), site_mean.COUNT: found[1].astype(np.float32)}

    return make


def _linear(release: Release, names: Sequence[str]) -> "Loss":
    def loss(theta: "Mapping[str, Tensor]", record: "Mapping[str, Tensor]") -> "Tensor":
        """Design D13: minus the inner product; its gradient is minus the record itself, so that one step of rate 1 adds it."""
        return -sum((theta[n] * record[n]).sum() for n in names)  # type: ignore[return-value]  # names is never empty

    return loss


def _episodes(release: Release, offset: Array | None) -> Make:
    from sgps.tuning import ready, record

    ready(release)  # a missing text encoder is an error here; below, it would make every patient the zero record
    classes = release.manifest.classes

    def make(patient: Patient) -> Record:
        return record(release, [classes[c] for c in patient.labels], patient.features, patient.pictures)

    return make


def _episode_loss(release: Release, names: Sequence[str]) -> "Loss":
    from sgps.tuning import episode_loss

    return episode_loss(release, names)


def _episode_pictures(release: Release, names: Sequence[str]) -> bool:
    from sgps.tuning import needs_pictures

    return needs_pictures(release, names)


WORK: Final[Mapping[str, Work]] = {
    "rows": Work(_rows, _linear),
    "site_mean": Work(_site_mean, _linear),
    "episodes": Work(_episodes, _episode_loss, _episode_pictures),
}


def records(
    kind: str, release: Release, patients: Sequence[Patient | None], offset: Array | None = None
) -> list[Record | None]:
    """One record for each patient, in their order; a patient of whom none can be made is the zero record, and nobody is told."""
    make, found = WORK[kind].records(release, offset), list[Record | None]()
    for patient in patients:
        try:
            found.append(None if patient is None else make(patient))
        except Exception:  # noqa: BLE001  the text may name a patient
            found.append(None)
    return found
