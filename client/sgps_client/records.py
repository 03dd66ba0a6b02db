"""A cohort as features: images read within public caps and encoded. What a kind of round makes of them: `sgps_client.kinds`.

A patient that cannot be read in time, or at all, is the zero record (None). Nobody is told which.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from sgps.errors import ConfigError, InputError
from sgps.release import Release
from sgps_client.config import Site

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from sgps.encoders import ImageEncoder
    from sgps_client.data import Records

T = TypeVar("T")


@dataclass(frozen=True)
class Patient:
    """One patient's images within the caps, in the order of the classes. labels: class index of each. features [images, f].

    pictures: [images, 3, s, s], normalised; only where a kind of round asks for them.
    """

    labels: tuple[int, ...]
    features: NDArray[np.float32]
    pictures: "Tensor | None" = None

    def means(self) -> dict[int, NDArray[np.float64]]:
        """Class index -> mean feature [f]."""
        labels = np.array(self.labels)
        return {c: self.features[labels == c].mean(0, dtype=np.float64) for c in sorted({*self.labels})}


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
        self.kept: dict[tuple[str, str, str, bool, tuple[str, ...]], list[Patient | None]] = {}
        self.encoder: tuple[str, ImageEncoder] | None = None

    def patients(
        self, site: Site, release: Release, cohort: str, reader: "Records", pictures: bool
    ) -> list[Patient | None]:
        key = self.key(site, release, cohort, reader, pictures)
        if key not in self.kept:
            self.kept[key] = encoded(reader, self._encoder(release), release, site, pictures)
        return self.kept[key]

    def drop_pictures(self) -> None:
        for key in [key for key in self.kept if key[3]]:
            patients = [p and replace(p, pictures=None) for p in self.kept.pop(key)]
            self.kept.setdefault((*key[:3], False, key[4]), patients)

    @staticmethod
    def key(
        site: Site, release: Release, cohort: str, reader: "Records", pictures: bool
    ) -> tuple[str, str, str, bool, tuple[str, ...]]:
        return str(site.file), cohort, release.manifest.encoder_sha256, pictures, tuple(reader.patients)

    def _encoder(self, release: Release) -> "ImageEncoder":
        from sgps.encoders import ImageEncoder

        if self.encoder is None or self.encoder[0] != release.manifest.encoder_sha256:
            self.encoder = release.manifest.encoder_sha256, ImageEncoder(release)
            self.encoder[1].features([])  # loads the network: the first patient's seconds are not for that
        return self.encoder[1]


_prepared = _Prepared()


def prepared(
    site: Site, release: Release, cohort: str, reader: "Records | None" = None, pictures: bool = False
) -> Sequence[Patient | None]:
    """The patients of a cohort, read and encoded once in the life of the process. Nothing is spent by it.

    reader: whose list of patients the ledger knows; without it the list is read here, and nothing vouches for it. pictures: whether
    they are kept beside the features.

    Raises InputError when there are more patients than slots, or the list cannot be read.
    """
    reader = reader or cohort_of(site, cohort, release.manifest.classes)
    return _prepared.patients(site, release, cohort, reader, pictures)


def drop_pictures() -> None:
    """Forget the pictures of all patients, gigabytes where there are hundreds; their features stay. To be called once a round that
    needed them is charged: the next one reads them again."""
    _prepared.drop_pictures()


def keep(site: Site, release: Release, cohort: str, reader: "Records", patients: Sequence[Patient | None]) -> None:
    """Use these patients, encoded elsewhere from the pictures of `reader`, for the life of the process."""
    _prepared.kept[_prepared.key(site, release, cohort, reader, False)] = [*patients]


def encoded(
    reader: "Records", encoder: "ImageEncoder", release: Release, site: Site, pictures: bool = False
) -> list[Patient | None]:
    """The features of each patient of `reader`, in its order."""
    config = site.config
    if config.slots is None or len(reader.patients) > config.slots:
        raise InputError(
            f"{len(reader.patients)} patients do not fit into {config.slots} slots",
            where=site.file,
            do="raise slots, or split the cohort",
        )
    found: list[Patient | None] = []
    for patient in reader.patients:
        end = time.monotonic() + config.seconds_per_patient
        try:
            images = within(config.seconds_per_patient, lambda p=patient: _read(reader, p, config.images_per_patient))  # type: ignore[misc]
            one = _patient(images, encoder, release, pictures)
        except Exception:  # noqa: BLE001  any message may name a patient, and any failure is the zero record
            one = None
        found.append(one if time.monotonic() <= end else None)
    return found


def _read(reader: "Records", patient: str, most: int) -> list[tuple[str, "Image"]]:
    return [(label, load()) for label, load in reader.images(patient)[:most]]


def _patient(images: list[tuple[str, "Image"]], encoder: "ImageEncoder", release: Release, pictures: bool) -> Patient:
    from sgps.images import batch

    a, classes = release.manifest.architecture, release.manifest.classes
    images = sorted(images, key=lambda image: classes.index(image[0]))  # stable: within a class the reader's order
    shown = [image for _, image in images]
    return Patient(
        labels=tuple(classes.index(label) for label, _ in images),
        features=np.asarray(encoder.features(shown), dtype=np.float32),
        pictures=batch(shown, a.size, a.mean, a.std) if pictures else None,
    )


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
