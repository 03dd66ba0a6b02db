"""Keys are born at the site; a kit is used only when everything in it fits the key and the site."""

import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
from site_bench import Authority, settings

from sgps.errors import InputError, SgpsError, SignatureError
from sgps.kit import Kit
from sgps.settings import dump
from sgps.signing import fingerprint, public_pem
from sgps_client import enrolment

KEY = Ed25519PrivateKey.generate()
MARK = fingerprint(KEY.public_key())


def kit(folder: Path, authority: Authority, csr: Path, **changes: Any) -> Path:
    fields: dict[str, Any] = {
        "site": "north", "federation": "derm", "fingerprint": MARK, "url": "https://localhost:8443",
        "plan_key": public_pem(KEY.public_key()), "ca": authority.pem, "certificate": authority.issue(csr),
        "site_yaml": dump(settings(MARK)), **changes,
    }  # fmt: skip
    path = folder / "north.kit"
    path.write_text(Kit(**fields).model_dump_json())
    return path


def test_the_request_is_stock_pkcs10_and_the_private_key_stays(tmp_path: Path) -> None:
    path = enrolment.request(tmp_path, "north")
    csr = x509.load_pem_x509_csr(path.read_bytes())
    assert csr.is_signature_valid
    assert csr.subject.rfc4514_string() == "CN=north"
    key = tmp_path / "keys" / "site.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert b"PRIVATE" not in path.read_bytes()
    before = key.read_bytes()
    enrolment.request(tmp_path, "north")
    assert key.read_bytes() == before  # asked again, the same key: never replaced


@pytest.mark.parametrize("name", ["North", "a b", "", "../x", "-x", "a" * 41])
def test_a_bad_name_makes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="not a name"):
        enrolment.request(tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_a_kit_that_fits_is_installed(tmp_path: Path) -> None:
    authority = Authority()
    done = enrolment.install(tmp_path, kit(tmp_path, authority, enrolment.request(tmp_path, "north")), MARK.upper())
    assert (done.site, done.fingerprint, done.fresh) == ("north", MARK, True)
    assert {p.name for p in (tmp_path / "keys").iterdir()} == {"site.key", "site.crt", "ca.crt", "plan.pub"}
    (tmp_path / "site.yaml").write_text("# mine\n")
    assert not enrolment.install(tmp_path, tmp_path / "north.kit").fresh
    assert (tmp_path / "site.yaml").read_text() == "# mine\n"


def test_a_kit_of_another_federation_does_not_replace_the_pinned_key(tmp_path: Path) -> None:
    authority, csr = Authority(), enrolment.request(tmp_path, "north")
    enrolment.install(tmp_path, kit(tmp_path, authority, csr))
    forger = Ed25519PrivateKey.generate().public_key()
    mark = fingerprint(forger)
    forged = kit(
        tmp_path, Authority(), csr, plan_key=public_pem(forger), fingerprint=mark, site_yaml=dump(settings(mark))
    )
    with pytest.raises(SignatureError, match="another federation"):
        enrolment.install(tmp_path, forged)
    assert (tmp_path / "keys" / "plan.pub").read_text() == public_pem(KEY.public_key())


def other(tmp_path: Path) -> Path:
    return enrolment.request(tmp_path / "elsewhere", "north")


@pytest.mark.parametrize(
    "fault", ["other key", "other name", "other ca", "fingerprint", "expected", "expired", "template", "no certificate"]
)
def test_a_kit_that_does_not_fit_writes_nothing(tmp_path: Path, fault: str) -> None:
    authority, csr = Authority(), enrolment.request(tmp_path, "north")
    (tmp_path / "elsewhere").mkdir()
    changes: dict[str, dict[str, Any]] = {
        "other key": {"certificate": authority.issue(other(tmp_path))},
        "other name": {"certificate": authority.issue(csr, name="south")},
        "other ca": {"ca": Authority().pem},
        "fingerprint": {"fingerprint": "0" * 64},
        "expected": {},
        "expired": {"certificate": authority.issue(csr, days=-1)},
        "template": {"site_yaml": dump(settings(MARK, site="south"))},
        "no certificate": {"certificate": "nothing"},
    }
    path = kit(tmp_path, authority, csr, **changes[fault])
    with pytest.raises(SgpsError):
        enrolment.install(tmp_path, path, "1" * 64 if fault == "expected" else None)
    assert {p.name for p in (tmp_path / "keys").iterdir()} == {"site.key"}
    assert not (tmp_path / "site.yaml").exists()


def test_what_is_no_kit_is_refused(tmp_path: Path) -> None:
    enrolment.request(tmp_path, "north")
    (tmp_path / "north.kit").write_text("{}")
    with pytest.raises(InputError, match="is not a kit"):
        enrolment.install(tmp_path, tmp_path / "north.kit")


def test_an_expired_certificate_says_so(tmp_path: Path) -> None:
    authority, csr = Authority(), enrolment.request(tmp_path, "north")
    path = kit(tmp_path, authority, csr, certificate=authority.issue(csr, days=-1))
    with pytest.raises(SignatureError, match="valid from"):
        enrolment.install(tmp_path, path)
