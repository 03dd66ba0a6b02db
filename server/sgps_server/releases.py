"""The coordinator's releases: 0000 is what the federation began with, N+1 is N with the result of one more round."""

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sgps.code import contributor_code
from sgps.errors import InputError, StateError
from sgps.files import new_folder, read_limited, sha256_file, torn, write_atomic
from sgps.release import (
    FILES,
    MANIFEST,
    MANIFEST_LIMIT,
    MEMORY,
    SIGNATURE,
    Carry,
    Manifest,
    Release,
    Round,
    manifest_bytes,
    write,
)
from sgps.signing import fingerprint
from sgps_server.checkpoint import Record
from sgps_server.kinds import Result
from sgps_server.replies import MOST_TEXT

ANCHOR = "audit"  # key of a manifest's figures: hash of the audit line that the release was made after
_NAME = re.compile(r"[0-9]{4,}")
_SLACK = 4096  # bytes of a manifest that a round changes beside who contributed and what they state


@dataclass(frozen=True)
class Named:
    """A release by name and the hash of its manifest."""

    name: str
    sha256: str


def name_of(number: int) -> str:
    return f"{number:04d}"


def names(folder: Path) -> list[str]:
    """Names of all releases, oldest first. A half-written one has another form of name."""
    return sorted((p.name for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=int)


def latest(folder: Path) -> Named:
    """Raises StateError when there is none."""
    found = names(folder)
    if not found:
        raise StateError("holds no release", where=folder, do="restore it from a backup")
    return named(folder, found[-1])


def named(folder: Path, name: str) -> Named:
    """Raises InputError when there is no such release."""
    return Named(name, hashlib.sha256(read_limited(folder / name / MANIFEST, MANIFEST_LIMIT)).hexdigest())


def check_untouched(source: Release) -> None:
    """Raises InputError when sites of another federation have given something to a release: their contributions and statements are
    not here, so the next round would lose them, and maps of rows would be taken for this federation's."""
    if np.any(source.memory().scale) or source.manifest.rounds or source.manifest.carried:
        raise InputError(
            "holds contributions of another federation",
            where=source.folder,
            do="take one that no round has changed, as `sgps pretrain release` makes it",
        )


def first(source: Release, target: Path, federation: str, key: Ed25519PrivateKey) -> None:
    """Sign a release anew as this federation's 0000. Raises InputError when it holds another federation's contributions."""
    check_untouched(source)
    manifest = source.manifest.model_copy(
        update={
            "name": name_of(0),
            "federation": federation,
            "fingerprint": fingerprint(key.public_key()),
            "figures": {n: f for n, f in source.manifest.figures.items() if n != ANCHOR},  # a line of another record
        }
    )
    write(target, {name: source.folder / name for name in FILES}, manifest, key)


def check_room(
    before: Release, rounds: Sequence[int], asked: Mapping[str, str], records: Sequence[Record],
    terms: Mapping[int, dict[str, Any]],
) -> None:  # fmt: skip
    """Raises StateError unless a manifest has room for what is there and for an answer of each site that is about to be asked, each as
    long as one that is accepted can be. To be called before any is asked: a round that no release can hold would be paid for in vain.

    before: the newest release. rounds: that the sites will answer. asked: site -> its key. records: contributions that count.
    """
    number, text = rounds[0], "{" + " x" * (MOST_TEXT // 2)  # a blank at every place where YAML may break a line
    longest = [
        Record(
            round=n, site=s, receipt="0" * 64, sha256="0" * 64, sigma=1.0, statement=text, signature="0" * 512, key=key
        )
        for n in rounds
        for s, key in asked.items()
    ]
    history = _history([*records, *longest], dict.fromkeys(rounds, terms[number]) | dict(terms))
    size = len(manifest_bytes(before.manifest.model_copy(update=history))) + _SLACK
    if size > MANIFEST_LIMIT:
        raise StateError(
            f"round {number} with {len(asked)} sites could give a manifest of {size:,} bytes, {MANIFEST_LIMIT:,} are read",
            where=before.folder,
            do="begin a new federation, or revoke sites until fewer are asked: what all sites stated in all rounds stands in every release",
        )


def following(
    folder: Path, number: int, result: Result, records: Sequence[Record], terms: dict[int, dict[str, Any]], anchor: str,
    key: Ed25519PrivateKey,
) -> Release:  # fmt: skip
    """Write release `number` from the one before and open it.

    result: of the round. records: the contributions of all rounds that count. terms: round -> mechanism facts. When the folder is there
    already (a crash came between this and the checkpoint), it is taken if it holds this result. Raises StateError when it holds
    another.
    """
    target, before = folder / name_of(number), Release.open(folder / name_of(number - 1), key=key.public_key())
    contents: dict[str, bytes | Path] = {name: before.folder / name for name in FILES} | dict(result.files)
    if target.exists():
        found = Release.open(target, key=key.public_key())
        if any(sha256_file(target / n) != hashlib.sha256(data).hexdigest() for n, data in result.files.items()):
            raise StateError("was made from other contributions", where=target, do="restore the folder from a backup")
        return found
    a = before.manifest.architecture
    manifest = before.manifest.model_copy(
        update={
            "name": name_of(number),
            **_history(records, terms),
            "code_sha256": contributor_code(),
            "architecture": a.model_copy(update={"learned": a.learned if result.learned is None else result.learned}),
            "figures": {**before.manifest.figures, ANCHOR: anchor},
        }
    )
    return _written(target, contents, manifest, key)


def carried(
    folder: Path, number: int, source: Release, memory: bytes, steps: tuple[Carry, ...], records: Sequence[Record],
    terms: dict[int, dict[str, Any]], anchor: str, key: Ed25519PrivateKey,
) -> Release:  # fmt: skip
    """Write release `number` of the base network of `source`, with a carried memory (`sgps_server.carry`), and open it.

    steps: all maps that its rows came through. When the folder is there already, it is taken if it came through the same maps: then it
    was signed here before the command died, and only who withdrew since can make a difference. Raises StateError when it did not.
    """
    target, before = folder / name_of(number), Release.open(folder / name_of(number - 1), key=key.public_key())
    if target.exists():
        found = Release.open(target, key=key.public_key())
        maps = [c.map_sha256 for c in found.manifest.carried or ()]
        if maps != [c.map_sha256 for c in steps]:
            raise StateError(
                "is another release",
                where=target,
                do="finish `releases repool` where that was interrupted, else restore the folder from a backup",
            )
        return found
    manifest = source.manifest.model_copy(
        update={
            "name": name_of(number),
            "federation": before.manifest.federation,
            "fingerprint": before.manifest.fingerprint,
            **_history(records, terms),
            "code_sha256": contributor_code(),
            "figures": {**source.manifest.figures, ANCHOR: anchor},
            "carried": steps,
        }
    )
    contents: dict[str, bytes | Path] = {name: source.folder / name for name in FILES} | {MEMORY: memory}
    return _written(target, contents, manifest, key)


def _written(target: Path, contents: dict[str, bytes | Path], manifest: Manifest, key: Ed25519PrivateKey) -> Release:
    for half in torn(target):  # of a life that was killed here
        shutil.rmtree(half)
    write(target, contents, manifest, key)
    return Release.open(target, key=key.public_key())


def _history(records: Sequence[Record], terms: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Fields of a manifest: who contributed to which round, under which terms, and what each has stated."""
    order = sorted(records, key=lambda r: (r.round, r.site))
    statements: dict[str, tuple[dict[str, Any], ...]] = {}
    for r in order:
        statements[r.site] = (*statements.get(r.site, ()), statement_entry(r))
    rounds = tuple(
        Round(
            round=n,
            kind=str(terms[n]["kind"]),
            terms=terms[n],
            sites=tuple(r.site for r in order if r.round == n),
            centred=terms[n]["kind"] == "rows" and terms.get(n - 1, {}).get("kind") == "site_mean",
        )
        for n in sorted({r.round for r in order})
    )
    return {"rounds": rounds, "statements": statements}


def statement_entry(record: Record) -> dict[str, Any]:
    """A site's statement as it stands in a release: the JSON text that the site signed, with its key."""
    proof = {"text": record.statement, "signature": record.signature, "key": record.key, "receipt": record.receipt}
    return {"round": record.round, **proof}


def anchors(folder: Path, key: Ed25519PublicKey) -> dict[str, str]:
    """Release -> hash of the audit line it names. Verifies every release."""
    found = {name: Release.open(folder / name, key=key).manifest.figures.get(ANCHOR) for name in names(folder)}
    return {name: str(head) for name, head in found.items() if head}


def export(folder: Path, name: str, key: Ed25519PublicKey, out: Path) -> Release:
    """Verify a release and copy it to `out`, for a site without a line. Raises InputError when there is no such release."""
    if name not in names(folder):
        raise InputError(f"no release {name}", where=folder, do=f"choose one of {', '.join(names(folder))}")
    release = Release.open(folder / name, key=key)
    with new_folder(out) as work:
        for file in (*FILES, MANIFEST, SIGNATURE):
            write_atomic(work / file, (release.folder / file).read_bytes())
    return release


def describe(release: Release) -> dict[str, Any]:
    """What `releases list` tells."""
    manifest = release.manifest
    return {
        "name": release.folder.name,
        "sha256": release.sha256,
        "rounds": len(manifest.rounds),
        "sites": sorted({site for r in manifest.rounds for site in r.sites}),
        "classes": len(manifest.classes),
    }
