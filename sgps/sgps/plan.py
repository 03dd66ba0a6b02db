"""A plan: the coordinator's signed instruction for one round. The site checks it before it reads a record.

The DP terms are a plain mapping here; `sgps_privacy.terms.Terms` gives them their type at the site.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError, model_validator

from sgps.errors import SignatureError
from sgps.settings import Settings, problems
from sgps.signing import canonical, verify

LIMIT = 1 << 20  # bytes of a plan's text
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SiteName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
ClassId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
KindName = Literal["rows", "site_mean", "episodes"]  # what each carries: sgps.kinds


class Plan(Settings):
    """One round.

    federation: fingerprint of the coordinator's key. release: hash of the manifest of the release that the round starts from. encoder: hash of base network and coordinates (`Release.encoder_sha256`).
    classes: catalogue ids in the order of the arrays. start: hash of the arrays that come with the plan. terms: mechanism facts.
    code: hashes of site code that the coordinator accepts. sites: participants. echo: site -> receipt of its last reply that
    arrived. centres: site -> receipt of the `site_mean` reply whose noised mean centres its records in this `rows` round; empty
    where records are not centred. quorum: replies that make the round. Times are seconds since the epoch (UTC): a site answers at
    `answer_at` and never after `deadline`.
    """

    kind: KindName
    federation: Hex
    round: Annotated[int, Field(ge=1, le=1_000_000)]
    attempt: Annotated[int, Field(ge=1, le=1_000_000)]
    release: Hex
    encoder: Hex
    classes: Annotated[tuple[ClassId, ...], Field(min_length=1, max_length=10_000)]
    start: Hex
    terms: dict[str, Any]
    code: Annotated[tuple[Hex, ...], Field(min_length=1, max_length=100)]
    sites: Annotated[tuple[SiteName, ...], Field(min_length=1, max_length=10_000)]
    echo: dict[SiteName, Hex] = {}
    centres: dict[SiteName, Hex] = {}
    quorum: Annotated[int, Field(ge=1, le=10_000)] = 1
    issued: float
    answer_at: float
    deadline: float

    @model_validator(mode="after")
    def _in_order(self) -> "Plan":
        if not self.issued <= self.answer_at <= self.deadline:
            raise ValueError("issued, answer_at and deadline are not in order")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class appears twice")
        if self.centres and self.kind != "rows":
            raise ValueError("only a rows round is centred")
        return self

    def sha256(self) -> str:
        """Identity of what shapes the payload: not the attempt, the times, the roster or the echo."""
        return hashlib.sha256(canonical(self.model_dump(mode="json", include=set(_SHAPES)))).hexdigest()

    def sign(self, key: Ed25519PrivateKey) -> "SignedPlan":
        text = canonical(self.model_dump(mode="json"))
        return SignedPlan(text=text.decode(), signature=key.sign(text).hex())


_SHAPES = (
    "kind",
    "federation",
    "round",
    "release",
    "encoder",
    "classes",
    "start",
    "terms",
    "code",
    "centres",
    "quorum",
)


class SignedPlan(Settings):
    """The plan's canonical JSON and its Ed25519 signature in hex, as they travel."""

    text: Annotated[str, Field(max_length=LIMIT)]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    def open(self, key: Ed25519PublicKey) -> Plan:
        """Signature first, then the content. Raises SignatureError for either."""
        data = self.text.encode()
        verify(key, bytes.fromhex(self.signature), data, "plan")
        try:
            return Plan.model_validate(json.loads(data))
        except (ValueError, RecursionError) as error:
            lines = problems(error) if isinstance(error, ValidationError) else [str(error)]
            raise SignatureError(
                f"signed, but not a plan: {'; '.join(lines)}", where="plan", do="update the client"
            ) from error


def arrays_sha256(arrays: dict[str, Any]) -> str:
    """Hash over names, types, shapes and bytes of NumPy arrays; independent of how they travel."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(canonical([name, array.dtype.str, list(array.shape)]))
        digest.update(array.tobytes())
    return digest.hexdigest()
