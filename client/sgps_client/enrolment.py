"""How a site joins: a key pair born here, a stock PKCS#10 request that leaves, and a kit that comes back.

One EC key pair (P-384) serves TLS and Flower's node registry. The private key is written once, mode 0600, and never leaves.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from pydantic import TypeAdapter, ValidationError

from sgps.errors import ConfigError, InputError, SignatureError
from sgps.files import read_limited, write_atomic
from sgps.kit import Kit
from sgps.plan import SiteName
from sgps.settings import LIMIT, parse, problems
from sgps.signing import fingerprint, parse_public
from sgps_client.config import FILE_NAME, SiteConfig

PEM_LIMIT = 1 << 16  # bytes


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The site's private key. Raises ConfigError when the file holds none."""
    try:
        key = load_pem_private_key(read_limited(path, PEM_LIMIT), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "holds no private key", where=path, do="put it back from the backup, or enroll anew"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
        raise ConfigError("is not an EC key on P-384", where=path, do="enroll anew")
    return key


def public_der(key: ec.EllipticCurvePublicKey | object) -> bytes:
    """SubjectPublicKeyInfo, for comparing keys; empty for another kind of key."""
    return (
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if isinstance(key, ec.EllipticCurvePublicKey)
        else b""
    )


def key_sha256(folder: Path) -> str:
    """Hex SHA-256 of the site's public key, which both ends compare by telephone."""
    return hashlib.sha256(public_der(load_key(folder / "keys" / "site.key").public_key())).hexdigest()


def certificate(pem: bytes, where: object) -> x509.Certificate:
    """Raises ConfigError when the bytes hold no certificate."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError("holds no certificate", where=where, do="install the kit again") from error


def common_name(cert: x509.Certificate) -> str:
    names = cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def request(folder: Path, name: str) -> Path:
    """Makes the key if there is none, and writes NAME.csr. Returns its path. A key that exists is used again, never replaced."""
    try:
        TypeAdapter(SiteName).validate_python(name)
    except ValidationError as error:
        do = "use 1 to 40 of a-z, 0-9 and -, beginning with a letter or digit"
        raise InputError("is not a name for a site", where=repr(name), do=do) from error
    keys = folder / "keys"
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = keys / "site.key"
    if not file.exists():
        pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomic(file, pem, 0o600)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(load_key(file), hashes.SHA384())
    target = folder / f"{name}.csr"
    write_atomic(target, csr.public_bytes(Encoding.PEM))
    return target


@dataclass(frozen=True)
class Installed:
    """What `install` did. fresh: site.yaml was written from the kit's template; otherwise the present one was left alone."""

    site: str
    federation: str
    fingerprint: str
    expires: datetime
    settings: Path
    fresh: bool


def install(folder: Path, file: Path, expected: str | None = None) -> Installed:
    """Checks a kit against the key that was born here, then writes certificates, the pinned plan key and site.yaml.

    expected: the federation's fingerprint as the coordinator told it by another way. Raises SignatureError when something in the
    kit does not fit, InputError when it is no kit; nothing is written then.
    """
    kit = Kit.read(file)
    key = load_key(folder / "keys" / "site.key")
    cert, authority = certificate(kit.certificate.encode(), file), certificate(kit.ca.encode(), file)
    found = fingerprint(parse_public(kit.plan_key, file))
    if expected is not None and expected.replace(":", "").lower() != found:
        raise SignatureError(
            f"is of the federation {found}, not of the expected one", where=file, do="ask the coordinator"
        )
    if found != kit.fingerprint:
        raise SignatureError(
            "plan key and fingerprint do not fit together", where=file, do="ask the coordinator for the kit again"
        )
    if public_der(cert.public_key()) != public_der(key.public_key()):
        raise SignatureError(
            "is for another key than the one that was made here", where=file, do="send this site's own .csr"
        )
    if common_name(cert) != kit.site:
        raise SignatureError(
            f"the certificate is not for {kit.site}", where=file, do="ask the coordinator for the kit again"
        )
    check_issued(cert, authority, file)
    template = parse(kit.site_yaml, file)
    if not isinstance(template, dict) or template.get("site") != kit.site:
        raise SignatureError(
            "its site.yaml is for another site", where=file, do="ask the coordinator for the kit again"
        )
    keys, settings = folder / "keys", folder / FILE_NAME
    if settings.exists() and _federation(settings) not in (None, found):
        raise SignatureError(
            "is of another federation than the settings",
            where=file,
            do="make a site folder of its own for each federation",
        )
    write_atomic(keys / "site.crt", kit.certificate.encode())
    write_atomic(keys / "ca.crt", kit.ca.encode())
    write_atomic(keys / "plan.pub", kit.plan_key.encode())
    fresh = not settings.exists()
    if fresh:
        write_atomic(settings, kit.site_yaml.encode())
    return Installed(kit.site, kit.federation, found, cert.not_valid_after_utc, settings, fresh)


def _federation(settings: Path) -> object:
    """The fingerprint that a site.yaml names, which may be unfinished otherwise; None when it names none."""
    found = parse(read_limited(settings, LIMIT).decode("utf-8", "replace"), settings)
    part = found.get("federation") if isinstance(found, dict) else None
    return part.get("fingerprint") if isinstance(part, dict) else None


def check_issued(cert: x509.Certificate, authority: x509.Certificate, where: object) -> None:
    """Raises SignatureError when `authority` did not issue `cert`, or `cert` is not valid now."""
    try:
        cert.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise SignatureError(
            "the certificate is not from the federation's CA", where=where, do="install the kit again"
        ) from error
    now = datetime.now(UTC)
    if not cert.not_valid_before_utc <= now <= cert.not_valid_after_utc:
        what = f"the certificate is valid from {cert.not_valid_before_utc:%Y-%m-%d %H:%M} to {cert.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        raise SignatureError(what, where=where, do="check the clock, or ask the coordinator for a new kit")


def template_problems(text: str, where: object) -> list[str]:
    """What a person still has to fill in: one line for each key that does not fit."""
    try:
        SiteConfig.model_validate(parse(text, where))
    except ValidationError as error:
        return problems(error)
    return []
