"""Who gets in, with what, and how a federation folder comes to be."""

import base64
import datetime
import json
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import tiny_release

from sgps.errors import ConfigError, InputError, SignatureError
from sgps.files import sha256_file
from sgps.kit import Kit
from sgps.release import MANIFEST, Release
from sgps.signing import load_public
from sgps_server import audit, enrolment, pki
from sgps_server.config import Folder
from sgps_server.registry import Registry


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tiny_release.make(tmp_path_factory.mktemp("release") / "r")
    return Release.open(folder, sha256=sha256_file(folder / MANIFEST))


@pytest.fixture
def folder(tmp_path: Path, source: Release) -> Folder:
    enrolment.init(tmp_path / "centre", "derm", "https://sgps.example.org:8443", source)
    return Folder(tmp_path / "centre")


def csr(
    path: Path, *names: str, curve: ec.EllipticCurve | None = None, key: ec.EllipticCurvePrivateKey | None = None
) -> Path:
    key = key or ec.generate_private_key(curve or ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    path.write_bytes(
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .sign(key, hashes.SHA384())
        .public_bytes(Encoding.PEM)
    )
    return path


def test_init_makes_a_whole_folder_whose_settings_and_release_open(folder: Folder) -> None:
    settings = folder.settings()
    assert (settings.name, settings.listen.host, settings.listen.port) == ("derm", "0.0.0.0", 8443)
    release = Release.open(folder.releases / "0000", key=load_public(folder.keys / "plan.pub"))
    assert (release.manifest.name, release.manifest.federation) == ("0000", "derm")
    assert folder.root.stat().st_mode & 0o777 == 0o700
    for secret in ("ca/ca.key", "keys/plan.key", "keys/server.key"):
        assert (folder.root / secret).stat().st_mode & 0o777 == 0o600
    assert [e["event"] for e in audit.read(folder.audit)] == ["init"]


def test_init_leaves_nothing_when_it_fails(tmp_path: Path, source: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise InputError("disk full")

    monkeypatch.setattr(enrolment.releases, "first", broken)
    with pytest.raises(InputError, match="disk full"):
        enrolment.init(tmp_path / "centre", "derm", "https://localhost:8443", source)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("Not A Name", "https://localhost:8443"),
        ("derm", "https://localhost"),
        ("derm", "http://localhost:1"),
        ("derm", "https://:8443"),
        ("derm", "https://köln.example:8443"),
        ("derm", "https://localhost:99999"),
    ],
)
def test_init_refuses_names_and_addresses_that_cannot_work(
    tmp_path: Path, source: Release, name: str, url: str
) -> None:
    with pytest.raises(ConfigError):
        enrolment.init(tmp_path / "centre", name, url, source)
    assert list(tmp_path.iterdir()) == []


def test_init_never_writes_over_a_folder(folder: Folder, source: Release) -> None:
    before = (folder.keys / "plan.key").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        enrolment.init(folder.root, "derm", "https://localhost:8443", source)
    assert (folder.keys / "plan.key").read_bytes() == before


def test_a_kit_holds_a_client_certificate_for_the_requests_own_key(folder: Folder, tmp_path: Path) -> None:
    request = enrolment.read_request(csr(tmp_path / "n.csr", "north"))
    enrolment.approve(folder, request, tmp_path / "north.kit")
    kit = Kit.read(tmp_path / "north.kit")
    certificate = x509.load_pem_x509_certificate(kit.certificate.encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(kit.ca.encode()))
    assert certificate.public_key() == request.key
    assert [str(a.value) for a in certificate.subject] == ["north"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=364) < left <= datetime.timedelta(days=365)
    assert "PRIVATE" not in (tmp_path / "north.kit").read_text()


def test_the_settings_template_of_a_kit_has_no_budget(folder: Folder, tmp_path: Path) -> None:
    """Privacy has no silent default: the site writes its own."""
    from sgps.settings import parse

    enrolment.approve(folder, enrolment.read_request(csr(tmp_path / "n.csr", "north")), tmp_path / "north.kit")
    found = parse(Kit.read(tmp_path / "north.kit").site_yaml, "site.yaml")
    assert found["federation"]["fingerprint"] == Kit.read(tmp_path / "north.kit").fingerprint
    assert "cohorts" not in found
    assert "budget" not in json.dumps(found)


@pytest.mark.parametrize("names", [(), ("North",), ("north", "south"), ("../etc",), ("a" * 41,)])
def test_a_request_must_name_one_site(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="common name"):
        enrolment.read_request(csr(tmp_path / "n.csr", *names))


def test_a_request_must_have_the_right_curve_and_its_own_signature(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="P-384"):
        enrolment.read_request(csr(tmp_path / "a.csr", "north", curve=ec.SECP256R1()))
    der = bytearray(x509.load_pem_x509_csr(csr(tmp_path / "b.csr", "north").read_bytes()).public_bytes(Encoding.DER))
    der[der.index(b"north")] = ord("m")
    (tmp_path / "b.csr").write_bytes(x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM))
    with pytest.raises(InputError, match="not signed by its own key"):
        enrolment.read_request(tmp_path / "b.csr")
    (tmp_path / "c.csr").write_bytes(b"no request")
    for place, value in (("2b81040022", "2b81040006"), ("020100", "020107")):  # a curve, a version that are not known
        der = x509.load_pem_x509_csr(csr(tmp_path / "d.csr", "north").read_bytes()).public_bytes(Encoding.DER)
        odd = base64.encodebytes(der.replace(bytes.fromhex(place), bytes.fromhex(value), 1)).decode()
        (tmp_path / f"{value}.csr").write_text(
            f"-----BEGIN CERTIFICATE REQUEST-----\n{odd}-----END CERTIFICATE REQUEST-----\n"
        )
    for name in ("c.csr", "2b81040006.csr", "020107.csr"):
        with pytest.raises(InputError, match="not a certificate request"):
            enrolment.read_request(tmp_path / name)


def test_a_name_belongs_to_one_key_and_a_key_to_one_name(folder: Folder, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    enrolment.approve(folder, enrolment.read_request(csr(tmp_path / "1.csr", "north", key=key)), tmp_path / "1.kit")
    with pytest.raises(InputError, match="taken"):
        enrolment.approve(folder, enrolment.read_request(csr(tmp_path / "2.csr", "north")), tmp_path / "2.kit")
    with pytest.raises(InputError, match="belongs to north"):
        enrolment.approve(folder, enrolment.read_request(csr(tmp_path / "3.csr", "south", key=key)), tmp_path / "3.kit")
    assert not (tmp_path / "2.kit").exists()
    assert list(Registry(folder.registry).sites()) == ["north"]


def test_the_same_request_again_renews(folder: Folder, tmp_path: Path) -> None:
    request = enrolment.read_request(csr(tmp_path / "1.csr", "north"))
    assert not enrolment.approve(folder, request, tmp_path / "1.kit")
    assert enrolment.approve(folder, request, tmp_path / "2.kit")
    assert Kit.read(tmp_path / "1.kit").certificate != Kit.read(tmp_path / "2.kit").certificate


def test_a_revoked_key_never_comes_back_under_any_name(folder: Folder, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    enrolment.approve(folder, enrolment.read_request(csr(tmp_path / "1.csr", "north", key=key)), tmp_path / "1.kit")
    registry = Registry(folder.registry)
    assert registry.key("north")
    enrolment.revoke(folder, "north")
    assert registry.key("north") is None  # the same object: a change on disk is seen at once
    for name in ("north", "south"):
        with pytest.raises(InputError, match="was revoked"):
            enrolment.approve(
                folder, enrolment.read_request(csr(tmp_path / f"{name}.csr", name, key=key)), tmp_path / f"{name}.kit"
            )
    enrolment.approve(folder, enrolment.read_request(csr(tmp_path / "n.csr", "north")), tmp_path / "n.kit")
    with pytest.raises(InputError, match="no site east"):
        enrolment.revoke(folder, "east")
    assert [e["event"] for e in audit.read(folder.audit)] == ["init", "approved", "revoked", "approved"]


def test_the_server_certificate_names_its_address_and_is_renewed_when_that_changes(folder: Folder) -> None:
    certificate = x509.load_pem_x509_certificate((folder.keys / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["sgps.example.org"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not pki.server_needs_renewal(folder.keys, ["sgps.example.org"])
    assert pki.server_needs_renewal(folder.keys, ["other.example.org"])
    older = (folder.keys / "server.crt").read_bytes()
    pki.Authority.open(folder.ca).server(folder.keys, ["sgps.example.org"])
    for pair in ((older, None), (b"junk", None), (None, b"junk")):
        for name, content in zip(("server.crt", "server.key"), pair, strict=True):
            if content is not None:
                (folder.keys / name).write_bytes(content)
        assert pki.server_needs_renewal(folder.keys, ["sgps.example.org"])
        pki.Authority.open(folder.ca).server(folder.keys, ["sgps.example.org"])
    assert not pki.server_needs_renewal(folder.keys, ["sgps.example.org"])
    assert pki.server_hosts(["localhost"], "127.0.0.1") == ["localhost", "127.0.0.1", "::1"]


def test_a_ca_of_mixed_halves_is_refused(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    pki.Authority.make(tmp_path / "other", "x")
    (folder.ca / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(SignatureError, match="do not belong together"):
        pki.Authority.open(folder.ca)
