"""What the coordinator must not forget: contributions, receipts, the open round. Durable before anything is built on it.

    state/contributions/0001.north.safetensors   the noised sums as they came, one file each, never changed
    state/checkpoint.json                        everything else, and the hashes of those files

A contribution is stored when it arrives, not when its round closes: patients pay for it once and it cannot be made again.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sgps.errors import StateError
from sgps.files import read_limited, write_atomic
from sgps.plan import Hex, SiteName
from sgps.settings import Settings, problems
from sgps_privacy.errors import Refused
from sgps_privacy.terms import Terms
from sgps_server.kinds import Sent

_LIMIT, _ARRAYS_LIMIT = 256 << 20, 64 << 20  # bytes
_BACKUP = "restore state/ from a backup"


class Record(Settings):
    """One accepted contribution. sha256: of its arrays' file. statement: the JSON text that the site signed; key: with which key."""

    round: int
    site: SiteName
    receipt: Hex
    sha256: Hex
    sigma: float
    statement: str
    signature: str
    key: str


class Open(Settings):
    """The round that has been issued and not closed. Terms and code stay those of its first attempt, so that sites that answered
    resend the same bytes whatever federation.yaml says meanwhile; so do quorum as the plans tell it. sites: whom the last attempt asked. gone: who
    had withdrawn when the round began to close; a later withdrawal counts from the next release on."""

    round: int
    attempt: int
    terms: dict[str, Any]
    code: tuple[Hex, ...]
    quorum: int = 1
    sites: tuple[SiteName, ...] = ()
    closing: bool = False
    gone: tuple[SiteName, ...] = ()


class State(Settings):
    """The content of checkpoint.json. done: rounds closed. terms: of every round issued. receipts: last one of each site that
    arrived."""

    done: Annotated[int, Field(ge=0)] = 0
    open: Open | None = None
    terms: dict[int, dict[str, Any]] = {}
    accepted: tuple[Record, ...] = ()
    receipts: dict[SiteName, Hex] = {}


class Checkpoint:
    """State on disk. Raises StateError when a file is damaged or missing."""

    def __init__(self, folder: Path) -> None:
        self._path, self._arrays = folder / "checkpoint.json", folder / "contributions"
        self._arrays.mkdir(exist_ok=True)
        self.state = read_state(folder)
        self.contributions = {(r.round, r.site): self._load(r) for r in self.state.accepted}

    def save(self, **changes: Any) -> None:
        """Change the state, durably."""
        self.state = State.model_validate({**dict(self.state), **changes})
        write_atomic(self._path, (self.state.model_dump_json(indent=1, exclude_none=True) + "\n").encode())

    def receipt(self, site: str, receipt: str) -> None:
        self.save(receipts={**self.state.receipts, site: receipt})

    def accept(
        self, round: int, site: str, sent: Sent, *, receipt: str, statement: str, signature: str, key: str
    ) -> Record:
        """Store one contribution."""
        data = save({n: np.ascontiguousarray(a) for n, a in sent.arrays.items()})
        write_atomic(self._arrays / f"{round:04d}.{site}.safetensors", data)
        record = Record(
            round=round,
            site=site,
            receipt=receipt,
            sha256=hashlib.sha256(data).hexdigest(),
            sigma=sent.terms.sigma,
            statement=statement,
            signature=signature,
            key=key,
        )
        self.contributions[(round, site)] = sent
        self.save(accepted=(*self.state.accepted, record), receipts={**self.state.receipts, site: receipt})
        return record

    def _load(self, record: Record) -> Sent:
        path = self._arrays / f"{record.round:04d}.{record.site}.safetensors"
        data = read_limited(path, _ARRAYS_LIMIT)
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise StateError("does not have the hash of the checkpoint", where=path, do=_BACKUP)
        try:
            return Sent(Terms.from_mapping(self.state.terms[record.round]), load(data))
        except (SafetensorError, KeyError, Refused) as error:
            raise StateError("holds no contribution", where=path, do=_BACKUP) from error


def read_state(folder: Path) -> State:
    """What checkpoint.json says; an empty state before the first round."""
    path = folder / "checkpoint.json"
    if not path.exists():
        return State()
    try:
        return State.model_validate_json(read_limited(path, _LIMIT))
    except ValidationError as error:
        raise StateError("; ".join(problems(error)), where=path, do=_BACKUP) from error
