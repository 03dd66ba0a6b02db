"""The allow-list: everything that may leave a site, and the only way to build it.

A reply has exactly the keys of `KEYS`. No count, loss, norm, time, class list, file name or exception text fits into
it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sgps_privacy import statement as statements
from sgps_privacy.errors import CODES, PrivacyError

KEYS = ("arrays", "weight", "plan_id", "code_hash", "status", "receipt", "statement")
FIELDS = (
    "weight",
    "plan",
    "code",
    "status",
    "receipt",
    "statement",
    "signature",
)  # beside the arrays, as a reply travels
ACCEPTED = "accepted"
WEIGHT = 1
_WORD = re.compile(r"[0-9A-Za-z:._+-]{0,128}")
_NAME = re.compile(r"[0-9A-Za-z._-]{1,200}")
_HEX = re.compile(r"([0-9a-f]{2}){0,256}")
_META = "reply"  # one entry only: safetensors does not keep the order of several


@dataclass(frozen=True)
class Reply:
    """A whole message of a site. Built by `accept`, `refuse` and `decode`; any other content raises PrivacyError.

    arrays: the noised sums, name -> float32. weight: 1. plan_id, code_hash: identifiers that the plan gave. status:
    `ACCEPTED` or one of `errors.CODES`. receipt: hash of the ledger's COMMIT, "" inside the outbox and in a refusal.
    statement: of `statement.statement`, empty in a refusal.
    """

    arrays: Mapping[str, NDArray[np.float32]]
    weight: int
    plan_id: str
    code_hash: str
    status: str
    receipt: str
    statement: Mapping[str, Any]

    def __post_init__(self) -> None:
        if type(self.weight) is not int or self.weight != WEIGHT:
            raise PrivacyError(f"the weight of a reply is {WEIGHT}")
        if not all(
            isinstance(word, str) and _WORD.fullmatch(word) for word in (self.plan_id, self.code_hash, self.receipt)
        ):
            raise PrivacyError("plan id, code hash and receipt are identifiers of at most 128 characters")
        if self.status == ACCEPTED:
            self._check_arrays()
            statements.check(self.statement)
        elif self.status not in CODES or self.arrays or self.receipt or self.statement:
            raise PrivacyError("a refusal holds one code and nothing else")

    def _check_arrays(self) -> None:
        if not self.arrays:
            raise PrivacyError("an accepted reply holds the noised arrays")
        for name, array in self.arrays.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise PrivacyError("a parameter name holds letters, digits, dots, underscores and hyphens only")
            if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not np.isfinite(array).all():
                raise PrivacyError(f"{name}: not a finite float32 array")

    def parts(self, signature: str = "") -> tuple[dict[str, NDArray[np.float32]], dict[str, str | int]]:
        """Arrays, and the fields of `FIELDS` as flat text and numbers: how a reply travels.

        signature: hex, of the site's key over the statement's text as it stands in the fields; "" while it is not made
        yet. Raises PrivacyError for another text, and for the signature of a refusal, which has no statement.
        """
        if not _HEX.fullmatch(signature) or (signature and not self.statement):
            raise PrivacyError("a signature is hex and belongs to a statement")
        text = _canonical(self.statement) if self.statement else ""
        values = (self.weight, self.plan_id, self.code_hash, self.status, self.receipt, text, signature)
        return dict(self.arrays), dict(zip(FIELDS, values, strict=True))

    @classmethod
    def from_parts(cls, arrays: Mapping[str, NDArray[np.float32]], fields: Mapping[str, Any]) -> Reply:
        """The inverse of `parts`. Raises PrivacyError for any other set of fields, and for a statement in another than
        the canonical form. The caller limits their size first and verifies `fields["signature"]` over
        `fields["statement"]`."""
        if set(fields) != set(FIELDS) or not all(isinstance(fields[f], str) for f in FIELDS[1:]):
            raise PrivacyError("a reply has exactly the fields " + ", ".join(FIELDS))
        if not _HEX.fullmatch(fields["signature"]) or bool(fields["signature"]) != bool(fields["statement"]):
            raise PrivacyError("a statement comes with its signature, a refusal with neither")
        try:
            found = json.loads(fields["statement"]) if fields["statement"] else {}
        except (ValueError, RecursionError):
            raise PrivacyError("the statement is not JSON") from None
        if not isinstance(found, dict):
            raise PrivacyError("the statement is no mapping")
        f = fields
        reply = cls(dict(arrays), f["weight"], f["plan"], f["code"], f["status"], f["receipt"], found)
        if f["statement"] and (not found or _canonical(found) != f["statement"]):
            raise PrivacyError("the statement is not in canonical form")
        return reply

    def with_receipt(self, receipt: str) -> Reply:
        """The reply as it is sent: the outbox's bytes and the ledger's receipt."""
        return replace(self, receipt=receipt)


def _canonical(mapping: Mapping[str, Any]) -> str:
    return json.dumps(mapping, sort_keys=True, separators=(",", ":"), allow_nan=False)


def accept(
    arrays: Mapping[str, NDArray[np.float32]],
    *,
    plan_id: str,
    code_hash: str,
    statement: Mapping[str, Any],
    receipt: str = "",
) -> Reply:
    """The reply to a round that was carried out. The arrays are copied."""
    copies = {name: np.array(a, order="C") if isinstance(a, np.ndarray) else a for name, a in arrays.items()}
    return Reply(copies, WEIGHT, plan_id, code_hash, ACCEPTED, receipt, dict(statement))


def refuse(code: str, *, plan_id: str = "", code_hash: str = "") -> Reply:
    """The reply to a round that was not: one of `errors.CODES`."""
    return Reply({}, WEIGHT, plan_id, code_hash, code, "", {})


def encode(reply: Reply) -> bytes:
    """safetensors: float32 arrays, everything else as canonical JSON in the metadata. The same reply gives the same
    bytes."""
    if type(reply) is not Reply:
        raise PrivacyError("only a Reply leaves the site")
    rest = {key: getattr(reply, key) for key in KEYS if key != "arrays"}
    return save(dict(reply.arrays), {_META: _canonical(rest)})


def decode(data: bytes) -> Reply:
    """The inverse. Raises PrivacyError for bytes that `encode` does not produce. The caller limits their number
    first."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        meta = header["__metadata__"]
        rest, arrays = json.loads(meta[_META]), load(data)
        if set(meta) != {_META} or set(rest) != set(KEYS) - {"arrays"}:
            raise PrivacyError("a reply has exactly the keys " + ", ".join(KEYS))
        reply = Reply(arrays, **rest)
        same = encode(reply) == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise PrivacyError(f"these bytes are no reply ({type(error).__name__})") from None
    if not same:
        raise PrivacyError("these bytes are no reply in canonical form")
    return reply
