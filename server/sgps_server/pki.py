"""The federation's own certificate authority: P-384, TLS 1.3 at both ends.

A site's certificate is for clients only and its common name is the site; the coordinator's is for servers only. The CA's key lies
in the federation folder and signs nothing but these two kinds.
"""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sgps.errors import SignatureError
from sgps.files import read_limited, write_atomic

CA_DAYS, SERVER_DAYS, SITE_DAYS, RENEW_DAYS = 3650, 730, 365, 30
_LIMIT = 1 << 16
_SKEW = datetime.timedelta(minutes=5)


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """SubjectPublicKeyInfo as PEM text: the form in which Flower sends and compares node keys."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@dataclass(frozen=True)
class Authority:
    """CA key and certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, folder: Path, name: str) -> "Authority":
        """A new CA in `folder` (ca.key, ca.crt)."""
        key = ec.generate_private_key(ec.SECP384R1())
        subject = _name(f"{name} federation CA")
        certificate = (
            _builder(subject, subject, key.public_key(), key, CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA384())
        )
        _write_key(folder / "ca.key", key)
        write_atomic(folder / "ca.crt", certificate.public_bytes(Encoding.PEM))
        return cls(key, certificate)

    @classmethod
    def open(cls, folder: Path) -> "Authority":
        """Raises SignatureError when the files are not a CA."""
        try:
            key = load_pem_private_key(read_limited(folder / "ca.key", _LIMIT), None)
            certificate = x509.load_pem_x509_certificate(read_limited(folder / "ca.crt", _LIMIT))
        except ValueError as error:
            raise SignatureError(
                "holds no certificate authority", where=folder, do="put it back from the backup"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise SignatureError(
                "key and certificate of the CA do not belong together", where=folder, do="put it back from the backup"
            )
        return cls(key, certificate)

    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def site(self, name: str, key: ec.EllipticCurvePublicKey, days: int = SITE_DAYS) -> x509.Certificate:
        """A certificate for the client `name`."""
        return self._leaf(name, key, days, ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def server(self, folder: Path, hosts: list[str]) -> None:
        """A new key and certificate for the coordinator (server.key, server.crt) that is valid for `hosts`."""
        key = ec.generate_private_key(ec.SECP384R1())
        certificate = self._leaf(
            "sgps-server", key.public_key(), SERVER_DAYS, ExtendedKeyUsageOID.SERVER_AUTH, alternatives(hosts)
        )
        _write_key(folder / "server.key", key)
        write_atomic(folder / "server.crt", certificate.public_bytes(Encoding.PEM))

    def _leaf(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        days: int,
        purpose: x509.ObjectIdentifier,
        names: list[x509.GeneralName],
    ) -> x509.Certificate:
        builder = (
            _builder(_name(name), self.certificate.subject, key, self.key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA384())


def server_needs_renewal(folder: Path, hosts: list[str]) -> bool:
    """Whether server.crt ends within a month, does not name every one of `hosts`, or is none for the key in server.key."""
    pair = [read_limited(folder / name, _LIMIT) for name in ("server.crt", "server.key")]
    try:
        certificate, key = x509.load_pem_x509_certificate(pair[0]), load_pem_private_key(pair[1], None)
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return True
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return (
        left < datetime.timedelta(days=RENEW_DAYS)
        or any(name not in named for name in alternatives(hosts))
        or key.public_key() != certificate.public_key()
    )


def server_hosts(url_hosts: list[str], listen_host: str) -> list[str]:
    """Names that the coordinator answers to: those of its addresses and, where it can be reached there, of its own machine."""
    hosts = [*url_hosts]
    loopback = {"localhost", "127.0.0.1", "::1"}
    if listen_host not in {"0.0.0.0", "::"}:  # noqa: S104  compared, not bound
        hosts.append(listen_host)
    if loopback & set(hosts):
        hosts += sorted(loopback)
    return list(dict.fromkeys(hosts))


def alternatives(hosts: list[str]) -> list[x509.GeneralName]:
    """Host names and addresses as subject alternative names."""
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
