"""A site's own patients beside an exemplar: counted exactly, and their noised part taken out of the class memory first (design D13)."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sgps import carry
from sgps.errors import ConfigError, InputError, StateError
from sgps.images import pixels_sha256
from sgps.memory import COUNTS, ROWS, Contribution, Memory
from sgps.release import Release
from sgps_client.config import Site
from sgps_client.data.table import counted
from sgps_client.records import cohort_of
from sgps_client.round import open_ledger
from sgps_privacy import egress

if TYPE_CHECKING:
    from PIL.Image import Image

    from sgps.encoders import ImageEncoder
    from sgps_privacy.ledger import Ledger


@dataclass(frozen=True)
class Own:
    """features: catalogue id -> mean feature of each own patient [patients, f]. memory: without the site's noised part.

    notes: what was left out, one line each.
    """

    features: dict[str, NDArray[np.float32]]
    memory: Memory
    notes: tuple[str, ...]


def own_patients(
    site: Site, release: Release, encoder: "ImageEncoder", exemplars: Mapping[str, Sequence["Image"]]
) -> Own:
    """exemplars: catalogue id -> the pictures that the classifier is made from; a patient who shows one is left out, it counts already.

    Raises ConfigError for a site without cohorts, InputError when a cohort cannot be read, StateError when a noised part that the
    release holds is no longer in the outbox.
    """
    if not site.config.cohorts:
        raise ConfigError("cohorts: there is none", where=site.file, do="leave out --with-own-patients")
    shown = {pixels_sha256(image) for images in exemplars.values() for image in images}
    found: dict[str, list[NDArray[Any]]] = {i: [] for i in exemplars}
    unread = repeated = 0
    for cohort in site.config.cohorts:
        reader = cohort_of(site, cohort.name, release.manifest.classes)
        for patient in reader.patients:
            shots, most = reader.images(patient), site.config.images_per_patient
            pictures, further = shots[:most], shots[most:]
            if not any(label in found for label, _ in pictures):
                continue
            try:
                images = [(label, load()) for label, load in pictures]
            except InputError:
                unread += 1
                continue
            if any(pixels_sha256(image) in shown for _, image in images) or any(
                _shows(load, shown) for _, load in further
            ):
                repeated += 1
                continue
            for label in sorted({label for label, _ in images} & set(found)):
                found[label].append(encoder.features([image for one, image in images if one == label]).mean(0))
    notes = [f"{counted(unread, 'own patient')} with pictures that cannot be read: left out"] if unread else []
    if repeated:
        notes.append(f"{counted(repeated, 'own patient')} showing an exemplar: not counted twice")
    memory = release.memory()
    with open_ledger(site) as ledger:
        parts = own_contributions(site, release, ledger)
    for part in parts:
        memory = memory.without(part)
    features = {i: np.stack(rows).astype(np.float32) for i, rows in found.items() if rows}
    return Own(features, memory, tuple(notes))


def _shows(load: "Callable[[], Image]", shown: set[str]) -> bool:
    """Whether a picture beyond `images_per_patient` is an exemplar: it is compared and not counted, so one that cannot be read is none."""
    with contextlib.suppress(InputError):
        return pixels_sha256(load()) in shown
    return False


def own_contributions(site: Site, release: Release, ledger: "Ledger") -> list[Contribution]:
    """The noised sums of this site that the release's memory holds, from the outbox; as the release carries them where it went over to a
    new base network since."""
    rounds = {r.round for r in release.manifest.rounds if r.kind == "rows" and site.name in r.sites}
    here = [e for e in ledger.history() if e["federation"] == release.manifest.fingerprint]
    sent = {e["round"] for e in here if e["kind"] == "COMMIT"}
    maps, steps = carry.maps(release), release.manifest.carried or ()
    parts, seen = [], set()
    for entry in here:
        if entry["kind"] != "CHARGE" or entry["plan_kind"] != "rows" or entry["round"] not in rounds & sent:
            continue
        payload = ledger.outbox.read(entry["hash"])
        if payload is None:  # a forgiven charge, or a lost file
            continue
        arrays = egress.decode(payload).arrays
        part = Contribution(arrays[ROWS], arrays[COUNTS], float(entry["sigma"]))
        try:
            parts.append(carry.brought(steps, maps, entry["round"], part, release.manifest.classes))
        except ValueError as error:
            raise StateError(
                f"what round {entry['round']} sent does not fit the release: {error}",
                where=release.folder,
                do="leave out --with-own-patients, and tell the coordinator",
            ) from error
        seen.add(entry["round"])
    if lost := sorted(rounds - seen):
        raise StateError(
            f"holds nothing of round {lost[0]}, which is in the release",
            where=site.state / "outbox",
            do="leave out --with-own-patients: own patients would count twice",
        )
    return parts
