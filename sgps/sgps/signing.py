"""Ed25519 signatures over bytes, key files, and the canonical JSON that is signed.

Keys are PEM (PKCS#8 and SubjectPublicKeyInfo), so that any tool of the trade can read them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from sgps.errors import SignatureError
from sgps.files import read_limited, write_atomic


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces. NaN and infinity raise ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def make_key(private: Path, public: Path) -> Ed25519PrivateKey:
    """A new key pair in two PEM files; the private one is readable by its owner only."""
    key = Ed25519PrivateKey.generate()
    write_atomic(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    write_atomic(public, public_pem(key.public_key()).encode())
    return key


def public_pem(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def load_private(path: Path) -> Ed25519PrivateKey:
    """Raises SignatureError when the file holds no Ed25519 private key."""
    try:
        key = load_pem_private_key(read_limited(path, 1 << 16), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError("holds no private key", where=path, do="put it back from the backup") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError("is not an Ed25519 key", where=path, do="put it back from the backup")
    return key


def parse_public(pem: str, where: object) -> Ed25519PublicKey:
    """Raises SignatureError when the text holds no Ed25519 public key."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(
            "holds no public key", where=where, do="name the key that signs, or install the kit again"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(
            "is not an Ed25519 key", where=where, do="name the key that signs, or install the kit again"
        )
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    return parse_public(read_limited(path, 1 << 16).decode("utf-8", "replace"), path)


def fingerprint(key: Ed25519PublicKey) -> str:
    """Hex SHA-256 of the key's SubjectPublicKeyInfo: the name of a federation that nobody can choose anew."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def verify(key: Ed25519PublicKey, signature: bytes, data: bytes, where: object) -> None:
    """Raises SignatureError when `signature` is not this key's signature of `data`."""
    try:
        key.verify(signature, data)
    except InvalidSignature as error:
        raise SignatureError(
            "the signature does not fit the pinned key", where=where, do="get the file from the coordinator again"
        ) from error
