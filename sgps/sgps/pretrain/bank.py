"""`sgps bank`: a reference bank of a centre's own, from pictures that it may redistribute, and the release that takes it.

The file is the `bank.safetensors` of a release, named by its hash, with metadata: which base network and text encoder it belongs to, the
licence, and the pictures behind it. It holds features and means, no pictures.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from sgps.bank import Bank, BankClass, build
from sgps.catalogue import Catalogue
from sgps.device import CPU
from sgps.encoders import ImageEncoder, text_encoder_of
from sgps.errors import InputError
from sgps.files import read_limited, sha256_file, write_atomic
from sgps.images import left_out
from sgps.open_encoders import Spec
from sgps.plan import Hex
from sgps.pretrain.pictures import Listing, public
from sgps.pretrain.progress import Report, silent
from sgps.release import BANK, CATALOGUE, FILE_LIMIT, FILES, MANIFEST, Provenance, Release, write
from sgps.settings import Settings, problems

Array = NDArray[Any]
FEWEST = 4  # patients of a class: two calibrate, two measure false alarms
_KEY = "bank"  # of the metadata
_BATCH = 128
_NO_PICTURES = "reference bank (features, no pictures)"


class About(Settings):
    """What a bank says of itself. encoder_sha256: of base network and coordinates; text_sha256: of what read the classes' texts. sha256: of
    the pictures. patients: class -> number."""

    encoder_sha256: Hex
    text_sha256: Hex
    name: str
    licence: Annotated[str, Field(min_length=1, max_length=200)]
    source: str
    sha256: Hex
    pictures: int
    patients: dict[str, int]


@dataclass(frozen=True)
class Made:
    """A bank and its record. left_out: pictures of kinds that are not read."""

    bank: Bank
    about: About
    left_out: list[str] = field(default_factory=list)

    def write(self, path: Path) -> str:
        """SHA-256 of the file. Raises InputError when it exists."""
        if path.exists():
            raise InputError("exists already", where=path, do="choose another --out")
        arrays = {n: np.ascontiguousarray(a) for n, a in sorted(self.bank.arrays().items())}
        data = save(arrays, {_KEY: json.dumps(self.about.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)})
        write_atomic(path, data)
        return hashlib.sha256(data).hexdigest()


def read_bank(path: Path) -> Made:
    """Raises InputError when the file is no bank that `sgps bank build` made."""
    do = "make it with `sgps bank build`"
    try:
        bank = Bank.from_arrays(load(read_limited(path, FILE_LIMIT)))
        with safe_open(path, framework="np") as file:
            about = About.model_validate_json((file.metadata() or {})[_KEY])
    except ValidationError as error:
        raise InputError("; ".join(problems(error)), where=path, do=do) from error
    except KeyError as error:
        raise InputError(f"is no bank: {error} is missing in it", where=path, do=do) from error
    except (SafetensorError, ValueError) as error:
        raise InputError(f"is no bank: {error}", where=path, do=do) from error
    return Made(bank, about)


def make(
    release: Release,
    data: Path,
    licence: str,
    source: str = "",
    beside: bool = False,
    encoders: Spec | None = None,
    report: Report = silent,
    device: torch.device = CPU,
) -> Made:
    """data: zip or folder of class folders, each named by a class of the release's catalogue. licence, source: of the pictures; every release
    with this bank names them. beside: keep the release's own classes, but for those that are given anew. device: of the base network.

    Raises InputError for a class that the catalogue does not know or that the release holds out to be measured, a class of fewer than
    four patients, a patient with two classes, one picture under two patients, or when nothing is said of the licence.
    """
    if not licence.strip():
        raise InputError("is empty", where="--licence", do="say under which licence others may have these pictures")
    one = public(data)
    patients = _checked(one, release)
    catalogue = Catalogue.load(release.folder / CATALOGUE)
    texts, encoder = text_encoder_of(release, encoders), ImageEncoder(release, device)
    entries = [catalogue.find(c) for c in sorted(patients)]
    classes = [BankClass(e.id, e.name, e.domain, e.text) for e in entries if e is not None]
    features, label = list[Array](), list[int]()
    flat = [(place, who) for place, kind in enumerate(sorted(patients)) for who in patients[kind]]
    done, total = 0, len(one.name)
    for place, rows in flat:
        parts = [
            encoder.features([one.image(int(r)) for r in rows[start : start + _BATCH]])
            for start in range(0, len(rows), _BATCH)
        ]
        features.append(np.concatenate(parts).mean(0))
        label.append(place)
        done += len(rows)
        report("features", done, total, {})
    before = Bank.of(release)
    found = build(
        classes,
        texts.embed([c.text for c in classes]),
        np.stack(features).astype(np.float32),
        np.array(label),
        same=before.same,
    )
    if beside:
        found = _joined(before, found)
    about = About(
        encoder_sha256=release.manifest.encoder_sha256,
        text_sha256=release.manifest.text_encoder.sha256,
        name=one.source.where.stem,
        licence=licence.strip(),
        source=source.strip() or one.source.where.stem,
        sha256=one.source.sha256(),
        pictures=total,
        patients={c.id: label.count(place) for place, c in enumerate(classes)},
    )
    return Made(found, about, left_out(one.source.names))


def _checked(one: Listing, release: Release) -> dict[str, list[Array]]:
    """Class -> rows of each of its patients."""
    where = one.source.where
    catalogue = Catalogue.load(release.folder / CATALOGUE)
    held_out = {c for p in release.manifest.provenance for c in p.left_out}
    out: dict[str, list[Array]] = {}
    ids = dict[str, str]()
    for kind in sorted(set(one.label.tolist())):
        entry = catalogue.find(kind)
        if entry is None:
            raise InputError(
                f"{kind} is no class of the release's catalogue",
                where=where,
                do="name the folder by one, or leave it out",
            )
        if {kind, entry.id} & held_out:
            raise InputError(
                f"{kind} is held out: the figures of the release are measured on it",
                where=where,
                do="leave its folder out",
            )
        if entry.id in ids:
            raise InputError(f"{kind} and {ids[entry.id]} are one class", where=where, do="put them into one folder")
        ids[entry.id] = kind
        names = one.lesion[one.label == kind]
        out[kind] = [np.flatnonzero((one.label == kind) & (one.lesion == who)) for who in np.unique(names)]
        if len(out[kind]) < FEWEST:
            raise InputError(
                f"{kind} has {len(out[kind])} patients, needs {FEWEST}",
                where=where,
                do="give more, or leave the folder out",
            )
    of = {(str(c), str(who)) for c, who in zip(one.label, one.lesion, strict=True)}
    twice = [who for who, n in Counter(who for _, who in of).items() if n > 1]
    if twice:
        raise InputError(
            f"patient {twice[0]} has two classes",
            where=where,
            do="leave the patient out: one half calibrates, one measures",
        )
    seen = dict[bytes, str]()
    for name, who in zip(one.name.tolist(), one.lesion.tolist(), strict=True):
        digest = hashlib.sha256(one.source.read(name)).digest()
        if seen.setdefault(digest, who) != who:
            raise InputError(f"{name} is a picture of another patient, too", where=where, do="leave it out")
    return out


def _joined(before: Bank, new: Bank) -> Bank:
    """The classes of both; one that both have is the new one."""
    ids = {c.id for c in new.classes}
    kept = [i for i, c in enumerate(before.classes) if c.id not in ids]
    rows = np.flatnonzero(np.isin(before.label, kept))
    place = {old: i for i, old in enumerate(kept)}
    return Bank(
        classes=(*(before.classes[i] for i in kept), *new.classes),
        embedding=np.concatenate([before.embedding[kept], new.embedding]),
        means=np.concatenate([before.means[kept], new.means]),
        inside=np.concatenate([before.inside[kept], new.inside]),
        features=np.concatenate([before.features[rows], new.features]),
        label=np.concatenate([np.array([place[int(c)] for c in before.label[rows]], np.int64), new.label + len(kept)]),
        apart=np.concatenate([before.apart[rows], new.apart]),
        same=new.same,
    )


def put(release: Release, path: Path, out: Path) -> str:
    """Write an unsigned release that has this bank and is otherwise `release`. Returns the SHA-256 of its manifest.

    Raises InputError when the bank belongs to another base network or text encoder, holds fewer than two classes, the release holds rows
    already, or `out` exists.
    """
    made, m = read_bank(path), release.manifest
    about = made.about
    if (about.encoder_sha256, about.text_sha256) != (m.encoder_sha256, m.text_encoder.sha256):
        raise InputError(
            f"belongs to base network {about.encoder_sha256[:16]} and text encoder {about.text_sha256[:16]}, the release has "
            f"{m.encoder_sha256[:16]} and {m.text_encoder.sha256[:16]}",
            where=path,
            do=f"make it with --release {release.folder}",
        )
    if len(made.bank.classes) < 2:
        raise InputError("holds one class: nothing is beside it", where=path, do="make it with --beside")
    if m.rounds or np.any(release.memory().scale):
        raise InputError(
            "is of a federation that has begun",
            where=release.folder,
            do="take the one that it began with, and begin anew",
        )
    entry = Provenance(
        name=about.name,
        licence=about.licence,
        source=about.source,
        images=about.pictures,
        classes=tuple(sorted(about.patients)),
        used_for=_NO_PICTURES,
        sha256=about.sha256,
    )
    manifest = m.model_copy(
        update={
            "fingerprint": None,
            "federation": "none",
            "licence": f"{m.licence}; reference bank: {about.licence}",
            "provenance": (*m.provenance, entry),
        }
    )
    contents: dict[str, bytes | Path] = {**{n: release.folder / n for n in FILES}, BANK: path}
    write(out, contents, manifest, None)
    return sha256_file(out / MANIFEST)
