"""The steps of `synthesize`: what was asked for, which release, the classifier, and what to tell the person."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgps.catalogue import Catalogue
from sgps.errors import ConfigError, InputError
from sgps.files import torn
from sgps.images import pixels_sha256
from sgps.release import CATALOGUE, Release
from sgps.signing import load_public
from sgps_client.config import FILE_NAME, Site
from sgps_client.data import open_picture
from sgps_client.data.table import counted
from sgps_client.store import Store

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from sgps.calibration import Share
    from sgps.classifier import Classifier
    from sgps.open_encoders import Spec

TEXT_LIMIT = 2000  # characters, as for the texts of the catalogue
UNKNOWN = (
    "the sensitivity of the threshold is unknown: one exemplar cannot tell it; measure it with `sgps-client evaluate`"
)


@dataclass(frozen=True)
class Asked:
    """exemplars: pictures by disease. texts: clinical texts by disease, where one was given.

    Raises InputError for a picture that is there twice: it would count as another patient, or show two diseases.
    """

    exemplars: "Mapping[str, Sequence[Image]]"
    texts: Mapping[str, str]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for name, images in self.exemplars.items():
            for image in images:
                key = pixels_sha256(image)
                if key in seen:
                    again = f"a picture of it is also one of {seen[key]}"
                    what = "one picture is given twice" if seen[key] == name else again
                    raise InputError(what, where=name, do="give each picture once")
                seen[key] = name


def asked(exemplars: Sequence[Path], disease: str | None, texts: Sequence[str], classes: Sequence[str]) -> Asked:
    """Of the command's options. One disease: `--exemplar` and `--disease`; several: `--class NAME=IMG,...`.

    Raises InputError when they do not go together or a picture cannot be read.
    """
    if any(len(text) > TEXT_LIMIT for text in texts):
        raise InputError(f"is longer than {TEXT_LIMIT:,} characters", where="--text", do="shorten it to what is seen")
    disease = (disease or "").strip()
    if not classes:
        if not exemplars or not disease:
            do = "give --exemplar IMG and --disease NAME, or several --class NAME=IMG,..."
            raise InputError("no exemplar or no disease", where="options", do=do)
        if len(texts) > 1:
            raise InputError("one disease has one text", where="--text", do="join them")
        return Asked({disease: [open_picture(p) for p in exemplars]}, {disease: texts[0]} if texts else {})
    if exemplars or disease:
        raise InputError(
            "--class goes without --exemplar and --disease", where="options", do="write every disease as --class"
        )
    pictures: dict[str, list[Path]] = {}
    for one in classes:
        name, paths = pair(one, "--class", "NAME=IMG,...")
        pictures.setdefault(name, []).extend(Path(p) for p in paths.split(",") if p)
    given = pairs(texts, "--text", "NAME=TEXT")
    if stray := sorted(set(given) - set(pictures)):
        raise InputError(f"{stray[0]!r} is no --class", where="--text", do=f"use one of {', '.join(pictures)}")
    return Asked({name: [open_picture(p) for p in paths] for name, paths in pictures.items()}, given)


def pair(text: str, option: str, form: str) -> tuple[str, str]:
    """`LEFT=RIGHT` of an option. Raises InputError for anything else."""
    left, sign, right = text.partition("=")
    if not sign or not left.strip() or not right.strip():
        raise InputError(f"{text!r} is not {form}", where=option, do=f"write {option} {form}")
    return left.strip(), right.strip()


def pairs(texts: Sequence[str], option: str, form: str) -> dict[str, str]:
    """All `LEFT=RIGHT` of an option. Raises InputError for a LEFT that is given twice."""
    found: dict[str, str] = {}
    for left, right in (pair(one, option, form) for one in texts):
        if left in found:
            raise InputError(f"{left!r} is given twice", where=option, do="keep one")
        found[left] = right
    return found


def check_target(out: Path) -> None:
    """Before a second is spent. Raises InputError when `out` exists or its parent cannot hold it.

    Folders that a killed run left beside it are removed: they hold patient data.
    """
    if out.exists() or out.is_symlink():
        raise InputError("exists already", where=out, do="choose another name or remove it")
    for folder in torn(out):
        shutil.rmtree(folder, ignore_errors=True)


def site_of(config: Path | None) -> Site | None:
    """The site that was named, or that of the current folder, if there is one."""
    if config is not None:
        return Site.load(config)
    return Site.load(Path(FILE_NAME)) if Path(FILE_NAME).is_file() else None


def release_of(folder: Path | None, key: Path | None, sha256: str | None, site: Site | None) -> Release:
    """A release, verified with the pinned key or hash: the one that was named, else the site's newest, else the shipped one."""
    if folder is None:
        if key is not None or sha256 is not None:
            raise InputError("--key and --sha256 belong to --release", where="options", do="give --release DIR too")
        newest = Store(site).newest() if site is not None else None
        if newest is not None:
            return newest
        from sgps.shipped import shipped_release

        return shipped_release()
    if sha256 is not None:
        return Release.open(folder, sha256=sha256)
    if key is None and site is None:
        raise ConfigError("needs a pinned key", where=folder, do="give --key FILE, --sha256 HEX or --config site.yaml")
    return Release.open(folder, key=load_public(key or site.plan_key))  # type: ignore[union-attr]


def encoders_of(named: str | None, release: Release, site: Site | None) -> "Spec | None":
    """The folder of the text encoder: the one that was named, else the site's where this release needs one."""
    from sgps.open_encoders import Spec

    if named is not None:
        return Spec.parse(named)
    if site is None or site.config.encoders is None or release.manifest.text_encoder.kind == "package":
        return None
    return Spec.parse(site.config.encoders, site.folder)


def device_of(named: str | None, site: Site | None) -> "torch.device":
    """The one that was named, else the site's; `auto` without either. Raises ConfigError where there is no such device."""
    from sgps.device import AUTO, choose

    return choose(named or (site.config.device if site is not None else AUTO))


def make(
    asked: Asked,
    release: Release,
    site: Site | None,
    with_own_patients: bool,
    false_alarms: float,
    encoders: "Spec | None" = None,
    device: "torch.device | None" = None,
) -> "tuple[Classifier, list[str]]":
    """The classifier, and what a person should know besides its own notes.

    device: of synthesis, none is the processor; the site's own patients are always read on the processor, as in its rounds.
    """
    if with_own_patients and site is None:
        raise ConfigError("needs the site's settings", where="--with-own-patients", do="give --config site.yaml")
    from sgps.device import CPU
    from sgps.encoders import ImageEncoder
    from sgps.synthesis import synthesize

    device = device or CPU
    if site is None:
        plain = synthesize(
            asked.exemplars, asked.texts, release, false_alarms=false_alarms, encoders=encoders, device=device
        )
        return plain, []
    from sgps_client.own import own_patients

    catalogue = Catalogue.load(release.folder / CATALOGUE)
    entries = {name: catalogue.find(name) for name in asked.exemplars}
    ids = {entry.id: name for name, entry in entries.items() if entry is not None}
    own = own_patients(site, release, ImageEncoder(release), {i: asked.exemplars[name] for i, name in ids.items()})
    features = {ids[i]: rows for i, rows in own.features.items()}
    classifier = synthesize(
        asked.exemplars,
        asked.texts,
        release,
        own=features,
        memory=own.memory,
        false_alarms=false_alarms,
        encoders=encoders,
        device=device,
    )
    added = [f"{counted(len(rows), 'own patient')} of {name}, added exactly" for name, rows in features.items()]
    missing = [f"the site has no own patients of {name}" for name in asked.exemplars if name not in features]
    return classifier, [*added, *missing, *own.notes]


def facts(
    classifier: "Classifier", out: Path, release: Release, notes: Sequence[str], seconds: float
) -> dict[str, Any]:
    """For --json."""
    record = classifier.record
    return {
        "model": str(out),
        "labels": list(classifier.labels),
        "named": list(classifier.named),
        "release": release.manifest.name,
        "release_sha256": release.sha256,
        "diseases": [d.model_dump(mode="json") for d in record.origin.diseases],
        "threshold": record.calibration.threshold,
        "false_alarm_level": record.calibration.false_alarms,
        "false_alarms_measured": record.calibration.measured[0].model_dump(mode="json"),
        "notes": [*classifier.notes, *notes],
        "seconds": seconds,
        "seconds_synthesis": record.origin.seconds,
    }


def _span(share: "Share") -> str:
    return f"({100 * share.low:.1f} to {100 * share.high:.1f})"


def lines(classifier: "Classifier", out: Path, release: Release, notes: Sequence[str], seconds: float) -> list[str]:
    """For a person."""
    record, calibration = classifier.record, classifier.record.calibration
    rivals = classifier.labels[len(classifier.named) :]
    measured = calibration.measured[0]
    beside = f" beside {', '.join(rivals)}" if rivals else ""
    took = record.origin.seconds
    return [
        f"{out}: {record.architecture}, {len(record.labels)} outputs: {', '.join(classifier.named)}{beside}",
        f"release {release.manifest.name} ({release.sha256[:12]}), licence {record.origin.licence}",
        *classifier.notes,
        *notes,
        f"threshold {calibration.threshold:.3f} for {100 * calibration.false_alarms:g} % false alarms on pictures like the bank's",
        f"false alarms on {measured.n} public pictures kept apart: {100 * measured.rate:.1f} % {_span(measured)}",
        UNKNOWN,
        f"{seconds:.1f} s in all, {took['weights']:.2f} s for the weights, {took['all']:.2f} s with calibration",
    ]
