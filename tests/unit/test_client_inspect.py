"""Statements in a release: as they are written now, and as version 0.2 wrote them."""

import json
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sgps.settings import dump, parse
from sgps_client.inspect import _signed
from sgps_privacy import statement
from sgps_privacy.errors import PrivacyError
from sgps_privacy.events import Event
from sgps_privacy.terms import Terms

KEY = ec.generate_private_key(ec.SECP384R1())
TERMS = Terms("rows", 1.391, 1.0, 1, (1.0,), (("memory.rows",),), 1)
STATED = statement.statement(
    TERMS, [Event(1.391, 1.0, 1)], delta=1e-5, cap=3.0, numbers=15, code_hash="c" * 64, plan_hash="d" * 64
)


def entry(*, old: bool, **changes: Any) -> dict[str, Any]:
    """As it is read from release.yaml, where every scalar is text."""
    text = json.dumps(STATED, sort_keys=True, separators=(",", ":"))
    key = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    signature = KEY.sign(text.encode(), ec.ECDSA(hashes.SHA256())).hex()
    proof = {"round": 1, "text": text, "signature": signature, "key": key, "receipt": "a" * 64}
    found: dict[str, Any] = parse(dump({**(STATED if old else {}), **proof, **changes}), "release.yaml")
    return found


@pytest.mark.parametrize("old", [False, True])
def test_a_statement_is_what_the_site_signed(old: bool) -> None:
    assert _signed(entry(old=old)) == STATED
    with pytest.raises(InvalidSignature):
        _signed(entry(old=old, text=json.dumps({**STATED, "epsilon": 0.1})))


def test_fields_beside_a_statement_that_are_not_those_that_were_signed_are_refused() -> None:
    for changes in ({"old": True, "epsilon": 0.1}, {"old": False, "epsilon": STATED["epsilon"]}):
        with pytest.raises(PrivacyError, match="not those that were signed"):
            _signed(entry(**changes))
