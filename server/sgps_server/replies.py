"""What a site's reply must be before it counts. Everything in it is untrusted; whatever is wrong becomes one word for the audit."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from sgps.memory import Array
from sgps.plan import Plan
from sgps_privacy import accountant, egress
from sgps_privacy import statement as statements
from sgps_privacy.errors import CODES, PrivacyError
from sgps_privacy.events import Event
from sgps_privacy.terms import Terms
from sgps_server.kinds import Sent

# Characters of a statement, four times an honest one: every release carries the statements of all rounds.
MOST_TEXT = 1 << 13
OTHER_CODE = "plan_code"  # a site's word for: the plan does not accept the code installed here
_TAIL = 8.0  # standard deviations; noise beyond them comes up once in 1e15 replies
_HEX = frozenset("0123456789abcdef")


class Rejected(Exception):
    """A reply that does not count. code: one word, ours or the site's. refusal: the site itself said no. receipt: what it carried.
    site_code: hash of the site's code, where that is the reason."""

    def __init__(self, code: str, *, refusal: bool = False, receipt: str = "", site_code: str = "") -> None:
        super().__init__(code)
        self.code, self.refusal, self.receipt, self.site_code = code, refusal, receipt, site_code


@dataclass(frozen=True)
class Accepted:
    """A reply that counts."""

    round: int
    site: str
    sent: Sent
    receipt: str
    statement: str
    signature: str
    key: str


def check(
    site: str, key: str, plan: Plan, shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, Array],
    fields: Mapping[str, str | int], most_patients: int, issued: Iterable[Terms] = (),
) -> Accepted:  # fmt: skip
    """Raises Rejected with the first thing that is wrong. key: the site's registered public key, PEM. issued: terms of earlier rounds,
    which the site's statement may speak of too."""
    if set(fields) != set(egress.FIELDS):
        raise Rejected("fields")
    receipt = receipt_of(fields)
    if fields["status"] in CODES:  # a site that could not open the plan refuses without naming it
        code = str(fields["status"])
        raise Rejected(code, refusal=True, site_code=_hex(fields["code"]) if code == OTHER_CODE else "")
    if fields["plan"] != plan.sha256():
        raise Rejected("another_plan")
    if fields["status"] != egress.ACCEPTED:
        raise Rejected("status")
    if not receipt:
        raise Rejected("receipt")
    try:
        _check_content(key, plan, shapes, arrays, fields, most_patients, issued)
    except Rejected as error:
        raise Rejected(error.code, receipt=receipt) from None
    sent = Sent(Terms.from_mapping(plan.terms), dict(arrays))
    return Accepted(plan.round, site, sent, receipt, str(fields["statement"]), str(fields["signature"]), key)


def receipt_of(fields: Mapping[str, str | int]) -> str:
    """The ledger's receipt that a reply carries, or ""."""
    return _hex(fields.get("receipt"))


def _hex(found: object) -> str:
    """A SHA-256 in hex as it came from a site, or ""."""
    return found if isinstance(found, str) and len(found) == 64 and set(found) <= _HEX else ""


def _check_content(
    key: str, plan: Plan, shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, Array], fields: Mapping[str, str | int],
    most_patients: int, issued: Iterable[Terms],
) -> None:  # fmt: skip
    if fields["code"] not in plan.code:
        raise Rejected("code")
    if set(arrays) != set(shapes):
        raise Rejected("names")
    if any(arrays[n].shape != shapes[n] for n in shapes):
        raise Rejected("shape")
    if any(arrays[n].dtype != np.float32 for n in shapes):
        raise Rejected("type")
    if not all(np.isfinite(arrays[n]).all() for n in shapes):
        raise Rejected("not_finite")
    terms = Terms.from_mapping(plan.terms)
    total = math.sqrt(sum(float(np.sum(np.square(a, dtype=np.float64))) for a in arrays.values()))
    if not total <= norm_bound(terms, sum(a.size for a in arrays.values()), most_patients):
        raise Rejected("norm")
    found = _statement(str(fields["statement"]), str(fields["signature"]), key)
    _check_statement(found, plan, terms, shapes, str(fields["code"]), issued)
    try:  # the promise's own rules, at this end too
        egress.Reply.from_parts(arrays, fields)
    except PrivacyError:
        raise Rejected("form") from None


def norm_bound(terms: Terms, numbers: int, most_patients: int) -> float:
    """The largest plausible L2 norm of a reply: in each step `most_patients` equal records at the clip, and the noise of all steps,
    which adds as squares.

    The norm of d independent normals exceeds sqrt(d) + t standard deviations with probability below exp(-t^2 / 2) (Laurent and
    Massart 2000, lemma 1). It is a public number: it knows no site's slots.
    """
    noise = terms.sigma * math.sqrt(terms.steps) * (math.sqrt(numbers) + _TAIL)
    return terms.clip * (terms.steps * most_patients + noise) * terms.rate / terms.denominator


def signed_by(key: str, text: str, signature: str) -> bool:
    """Whether `signature` (hex, ECDSA over SHA-256) is that of the PEM key over the text."""
    public = load_pem_public_key(key.encode())
    try:
        if not isinstance(public, ec.EllipticCurvePublicKey):
            return False
        public.verify(bytes.fromhex(signature), text.encode(), ec.ECDSA(SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _statement(text: str, signature: str, key: str) -> dict[str, Any]:
    """The statement, once its signature by the site's registered key is verified."""
    if len(text) > MOST_TEXT:
        raise Rejected("statement_size")
    if not signed_by(key, text, signature):
        raise Rejected("statement_signature")
    try:
        found = json.loads(text)
        statements.check(found)
    except (ValueError, TypeError, RecursionError, PrivacyError):
        raise Rejected("statement_form") from None
    return dict(found)


def _check_statement(
    found: Mapping[str, Any], plan: Plan, terms: Terms, shapes: Mapping[str, tuple[int, ...]], code: str,
    issued: Iterable[Terms],
) -> None:  # fmt: skip
    """It speaks of this plan, and every figure in it follows from the facts in it. Where sampling is among its events, all of them must be
    those of plans that were issued, each as often at most: the accountant of any others would take any memory and time."""
    numbers = sum(math.prod(s) for s in shapes.values())
    facts = {
        "kind": terms.kind, "sigma": terms.sigma, "q": terms.q, "steps": terms.steps, "clip": terms.clip,
        "groups": len(terms.clips), "denominator": terms.denominator, "numbers": numbers, "plan_hash": plan.sha256(),
        "code_hash": code,
    }  # fmt: skip
    if (
        any(found[name] != value for name, value in facts.items())
        or [terms.sigma, terms.q, terms.steps] not in found["events"]
    ):
        raise Rejected("statement_facts")
    try:
        events = statements.read_events(found)
        asked = Counter(Event(t.sigma, t.q, t.steps) for t in (terms, *issued))
        if any(e.q < 1 for e in events) and not Counter(events) <= asked:
            raise Rejected("statement_facts")
        again = statements.statement(
            terms, events, delta=found["delta"], cap=found["cap_epsilon"], numbers=numbers, code_hash=code,
            plan_hash=plan.sha256(), most_numbers=found["most_numbers"],
        )  # fmt: skip
    except (
        PrivacyError,
        ArithmeticError,
        ValueError,
        MemoryError,
    ):  # a site chose the numbers: what they break is its fault
        raise Rejected("statement_facts") from None
    if not all(_agree(name, found[name], value) for name, value in again.items()) or (
        not accountant.epsilon(events, found["delta"]) <= found["cap_epsilon"] * (1 + 1e-6)
    ):
        raise Rejected("statement_figures")


def _agree(name: str, stated: Any, value: Any) -> bool:
    """Whether a site states what this end computes. The column that names the patient is the site's own, and so is the version of
    its accountant."""
    if name == "unit":
        return True
    if name == "accountant":
        return bool(stated.partition("(")[2] == value.partition("(")[2])
    return math.isclose(stated, value, rel_tol=1e-6) if isinstance(value, float) else bool(stated == value)
