"""What a site remembers of the coordinator's record: its last line, signed, to ask for it again later.

The record is a chain of hashes, so a later head that still holds an earlier one has changed nothing before it. The coordinator could
lie about that; but it signs every answer, and of two answers that contradict each other one is a lie in writing.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from sgps.errors import SignatureError, StateError
from sgps.files import read_limited, write_atomic
from sgps.plan import Hex
from sgps.settings import Settings
from sgps.signing import verify
from sgps_client.config import Site
from sgps_client.coordinator import Coordinator

_LIMIT = 1 << 16  # bytes


class Known(Settings):
    """The line that was asked for, and whether the record has it."""

    head: Hex
    lines: int
    there: bool


class Head(Settings):
    """What the coordinator signs: hash and number of the last line of its record at a time (seconds since the epoch)."""

    kind: Literal["audit head"]
    federation: Hex
    head: Hex
    lines: int
    time: float
    known: Known | None


@dataclass(frozen=True)
class Seen:
    """The record as it was found. since: when this site saw the line before; None at the first time."""

    lines: int
    since: float | None


def _file(site: Site, what: str = "record") -> Path:
    return site.state / f"{what}-{site.config.federation.fingerprint[:16]}.json"


def look(site: Site, coordinator: Coordinator) -> Seen:
    """Ask for the head of the record, and for the one that was seen before; remember the new one.

    Raises SignatureError when the record does not hold what it held, or what is said of it is not signed by the pinned key; the old
    answer is kept then, and the new one beside it. NetworkError when there is no answer.
    """
    before = _read(site)
    text, signature = coordinator.audit_head(None if before is None else (before.head, before.lines))
    verify(site.pinned_key(), signature, text.encode(), f"{coordinator.url} audit head")
    now = _parse(text, coordinator.url)
    if now.federation != site.config.federation.fingerprint:
        raise SignatureError("speaks of another federation", where=coordinator.url, do="tell the coordinator")
    kept = json.dumps({"text": text, "signature": signature.hex()}).encode()
    site.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if before is None:
        write_atomic(_file(site), kept, 0o600)
        return Seen(now.lines, None)
    asked = now.known
    if asked is None or (asked.head, asked.lines) != (before.head, before.lines):
        raise SignatureError("answers another question about its record", where=coordinator.url, do="ask again")
    if not asked.there or now.lines < before.lines:
        write_atomic(_file(site, "record-contradicted"), kept, 0o600)
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(before.time))
        raise SignatureError(
            f"the coordinator's record no longer holds the line that was its last on {when}: it was cut or replaced",
            where=_file(site),
            do="ask the coordinating centre; both of its signed answers are kept",
        )
    write_atomic(_file(site), kept, 0o600)
    return Seen(now.lines, before.time)


def _read(site: Site) -> Head | None:
    file = _file(site)
    if not file.exists():
        return None
    try:
        return _parse(str(json.loads(read_limited(file, _LIMIT))["text"]), file)
    except (ValueError, KeyError, TypeError, SignatureError) as error:
        raise StateError("is damaged", where=file, do="remove it: the record is looked at anew") from error


def _parse(text: str, where: object) -> Head:
    try:
        return Head.model_validate_json(text)
    except ValidationError as error:
        raise SignatureError(
            "says something else of its record than its head", where=where, do="tell the coordinator"
        ) from error
