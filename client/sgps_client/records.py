"""A cohort as features: images read within public caps and encoded. What a kind of round makes of them: `sgps_client.kinds`.

A patient that cannot be read in time, or at all, is the zero record (None). Nobody is told which.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from sgps.errors import ConfigError, InputError
from sgps.release import Release
from sgps_client.config import Site

if TYPE_CHECKING:
    from PIL.Image import Image

    from sgps.encoders import ImageEncoder
    from sgps_client.data import Records

Patient = dict[int, NDArray[np.float32]]  # class index -> features [images, f] of one patient's images of that class
T = TypeVar("T")


def cohort_of(site: Site, name: str, catalogue: Sequence[str]) -> "Records":
    """The reader of one cohort of site.yaml. Raises InputError for a list that cannot be read, ConfigError for an unknown name."""
    from sgps_client.data import open_cohort

    for cohort in site.config.cohorts:
        if cohort.name == name:
            return open_cohort(cohort, site.folder, site.config.classes, catalogue)
    raise ConfigError(f"cohort {name!r} is in the ledger, but not in the settings", where=site.file, do="write it back")


class _Prepared:
    """Encoded cohorts of this process, so that a round that was not ready in time is ready at the next attempt."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, str, tuple[str, ...]], list[Patient | None]] = {}
        self.encoder: tuple[str, ImageEncoder] | None = None

    def patients(self, site: Site, release: Release, cohort: str, reader: "Records") -> list[Patient | None]:
        key = (str(site.file), cohort, release.manifest.encoder_sha256, tuple(reader.patients))
        if key not in self.kept:
            self.kept[key] = encoded(reader, self._encoder(release), release, site)
        return self.kept[key]

    def _encoder(self, release: Release) -> "ImageEncoder":
        from sgps.encoders import ImageEncoder

        if self.encoder is None or self.encoder[0] != release.manifest.encoder_sha256:
            self.encoder = release.manifest.encoder_sha256, ImageEncoder(release)
            self.encoder[1].features([])  # loads the network: the first patient's seconds are not for that
        return self.encoder[1]


_prepared = _Prepared()


def prepared(site: Site, release: Release, cohort: str, reader: "Records | None" = None) -> Sequence[Patient | None]:
    """The patients of a cohort, read and encoded once in the life of the process. Nothing is spent by it.

    reader: whose list of patients the ledger knows; without it the list is read here, and nothing vouches for it.

    Raises InputError when there are more patients than slots, or the list cannot be read.
    """
    return _prepared.patients(site, release, cohort, reader or cohort_of(site, cohort, release.manifest.classes))


def encoded(reader: "Records", encoder: "ImageEncoder", release: Release, site: Site) -> list[Patient | None]:
    """The features of each patient of `reader`, in its order."""
    config = site.config
    if config.slots is None or len(reader.patients) > config.slots:
        raise InputError(
            f"{len(reader.patients)} patients do not fit into {config.slots} slots",
            where=site.file,
            do="raise slots, or split the cohort",
        )
    classes = release.manifest.classes
    found: list[Patient | None] = []
    for patient in reader.patients:
        end = time.monotonic() + config.seconds_per_patient
        try:
            images = within(config.seconds_per_patient, lambda p=patient: _read(reader, p, config.images_per_patient))  # type: ignore[misc]
            one = _features(images, encoder, classes)
        except Exception:  # noqa: BLE001  any message may name a patient, and any failure is the zero record
            one = None
        found.append(one if time.monotonic() <= end else None)
    return found


def _read(reader: "Records", patient: str, most: int) -> list[tuple[str, "Image"]]:
    return [(label, load()) for label, load in reader.images(patient)[:most]]


def _features(images: list[tuple[str, "Image"]], encoder: "ImageEncoder", classes: Sequence[str]) -> Patient:
    features = np.asarray(encoder.features([image for _, image in images]), dtype=np.float32)
    labels = np.array([label for label, _ in images])
    return {classes.index(c): features[labels == c] for c in sorted({*labels.tolist()})}


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, or TimeoutError: a share that hangs must not hang the round. The thread is left behind."""
    box: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            box.append(work())
        except BaseException as error:  # noqa: BLE001  handed to the caller's thread
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not box:
        raise TimeoutError
    return box[0]
