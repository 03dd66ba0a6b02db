"""Public pictures at a stock Flower federation or in Flower's simulation engine. Nobody else's pictures get there.

A stock federation carries code to its nodes, its operator may order anything, and every site shares one door with the operator: what
keeps patients safe at a real site (designs D6 and D7: installed code alone, certificates, signed plans as the only orders) does not
hold. So a site takes part only when a person has written beside site.yaml that its pictures are public and under which licence, and
never when it was enrolled with a coordinator.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from sgps.errors import ConfigError
from sgps.files import write_atomic
from sgps.release import Release
from sgps.settings import Settings, load
from sgps_client import records
from sgps_client.config import FILE_NAME, Site

if TYPE_CHECKING:
    from sgps_client.data import Records

PUBLIC = "public.yaml"
_REASON = "a stock Flower federation runs code that comes over the wire, so it is for public data only"


class NotPublic(ConfigError):
    """Its text is constant and may be sent."""


class PublicData(Settings):
    """The content of public.yaml, which states that every picture of the site is public. source: where they are published."""

    licence: Annotated[str, Field(min_length=3, max_length=200, examples=["CC0-1.0"])]
    source: Annotated[str, Field(min_length=3, max_length=500, examples=["https://doi.org/10.7910/DVN/DBW86T"])]


def open_public(file: Path) -> Site:
    """The site of a site.yaml whose pictures are declared public. Raises NotPublic for any other."""
    site = Site.load(file)
    if site.certificate.exists():
        raise NotPublic(
            f"this site was enrolled with a coordinator; {_REASON}",
            where=FILE_NAME,
            do="take part with sgps-client start",
        )
    if not (site.folder / PUBLIC).is_file():
        raise NotPublic(
            f"nothing says that these pictures are public; {_REASON}",
            where=FILE_NAME,
            do=f"take part with sgps-client start, or state licence and source in {PUBLIC} beside it",
        )
    load(site.folder / PUBLIC, PublicData)
    return site


def site_file(node: Mapping[str, object], run: Mapping[str, object]) -> Path:
    """site.yaml of a node: its own `site`, or, of a virtual one, `partition-id` in the run's folder `sites`. Raises ConfigError."""
    own, sites, place = node.get("site"), run.get("sites"), node.get("partition-id")
    if isinstance(own, str) and own:
        return Path(own)
    if isinstance(sites, str) and sites and isinstance(place, int):
        return Path(sites) / virtual_name(place) / FILE_NAME
    raise ConfigError("names no site", where="node configuration", do="set site to the path of its site.yaml")


def virtual_name(place: int) -> str:
    """Of a virtual site."""
    return f"site-{place:04d}"


def share(site: Site, release: Release) -> int:
    """Read and encode every cohort once and keep the features beside it. Returns the number of patients that could be read."""
    from safetensors.numpy import save

    count = 0
    for cohort in site.config.cohorts:
        reader = records.cohort_of(site, cohort.name, release.manifest.classes)
        patients = records.prepared(site, release, cohort.name, reader)
        there = [(place, p) for place, p in enumerate(patients) if p is not None and p.labels]
        if not there:
            continue
        arrays = {
            "features": np.concatenate([p.features for _, p in there]),
            "label": np.array([label for _, p in there for label in p.labels]),
            "patient": np.array([place for place, p in there for _ in p.labels]),
        }
        write_atomic(_features(site, cohort.name), save(arrays, {"of": _of(site, release, reader)}))
        count += len(there)
    return count


def recall(site: Site, release: Release) -> None:
    """Use the features that `share` has kept. Those of other pictures' list, settings or encoder are left alone, and made anew."""
    from safetensors import safe_open

    for cohort in site.config.cohorts:
        file = _features(site, cohort.name)
        if not file.is_file():
            continue
        reader = records.cohort_of(site, cohort.name, release.manifest.classes)
        with safe_open(file, "numpy") as kept:
            if (kept.metadata() or {}).get("of") != _of(site, release, reader):
                continue
            features, label, patient = (kept.get_tensor(n) for n in ("features", "label", "patient"))
        found: list[records.Patient | None] = []
        for place in range(len(reader.patients)):
            mine = patient == place
            found.append(records.Patient(tuple(label[mine].tolist()), features[mine]) if mine.any() else None)
        records.keep(site, release, cohort.name, reader, found)


def _features(site: Site, cohort: str) -> Path:
    return site.folder / f"features-{hashlib.sha256(cohort.encode()).hexdigest()[:12]}.safetensors"


def _of(site: Site, release: Release, reader: "Records") -> str:
    """What features depend on."""
    c = site.config
    parts = [release.manifest.encoder_sha256, c.slots, c.images_per_patient, reader.patients, reader.classes()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
