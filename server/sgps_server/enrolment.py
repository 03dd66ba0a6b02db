"""A federation comes into being, and sites come into it."""

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from sgps.default_plan import DEFAULT_PLAN
from sgps.errors import ConfigError, InputError
from sgps.files import new_folder, read_limited, write_atomic
from sgps.kit import Kit
from sgps.release import Release
from sgps.settings import parse, problems
from sgps.signing import fingerprint, load_public, make_key, public_pem
from sgps.wire import next_port
from sgps_server import releases
from sgps_server.audit import Audit
from sgps_server.checkpoint import read_state
from sgps_server.config import Federation, Folder, host_of
from sgps_server.kinds import kinds_of, separable
from sgps_server.pki import SITE_DAYS, Authority, server_hosts
from sgps_server.pki import public_pem as key_pem
from sgps_server.registry import Registry, Site, key_sha256
from sgps_server.templates import FEDERATION, SITE

_CSR_LIMIT = 1 << 16  # bytes
_SITE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True)
class Request:
    """A checked certificate request."""

    site: str
    key: ec.EllipticCurvePublicKey

    @property
    def sha256(self) -> str:
        """Of the public key; the site's own program shows the same, and the two are compared by telephone."""
        return key_sha256(key_pem(self.key))


def init(target: Path, name: str, url: str, release: Release, listen: str = "") -> str:
    """Make a federation folder, whole or not at all. Returns the fingerprint of its plan key.

    url: where sites find the coordinator, https://host:port. listen: address to open, the same host by default when it is a
    loopback one, else all. release: verified; becomes releases/0000. Raises InputError, ConfigError.
    """
    try:
        port, host = urlsplit(url).port, host_of(url)
    except ValueError as error:
        raise ConfigError(str(error), where=url, do="use the form https://host:8443") from error
    if port is None or port == 65535:  # the next one is for releases
        raise ConfigError("names no port", where=url, do="use the form https://host:8443, up to port 65534")
    listen = listen or (host if host in {"localhost", "127.0.0.1", "::1"} else "0.0.0.0")  # noqa: S104  a coordinator is for others
    text = FEDERATION.format(
        name=name,
        url=url,
        host=f'"{listen}"',
        port=port,
        releases_port=port + 1,
        releases_url=next_port(url),
        rounds=DEFAULT_PLAN.rounds,
        kind=DEFAULT_PLAN.kind,
        centre_sites=str(DEFAULT_PLAN.centre_sites).lower(),
        epsilon=DEFAULT_PLAN.epsilon,
        delta=f"{DEFAULT_PLAN.delta:.1e}",  # YAML takes 1e-05 for text
    )
    try:
        Federation.model_validate(parse(text, "federation.yaml"))
    except ValidationError as error:
        raise ConfigError("; ".join(problems(error)), where="init", do="choose another name or address") from error
    with new_folder(target, mode=0o700) as work:
        folder = Folder(work)
        for part in (folder.ca, folder.keys, folder.registry.parent, folder.releases, folder.state):
            part.mkdir(mode=0o700)
        write_atomic(folder.config, text.encode())
        Authority.make(folder.ca, name).server(folder.keys, server_hosts([host], listen))
        key = make_key(folder.keys / "plan.key", folder.keys / "plan.pub")
        Registry.make(folder.registry)
        releases.first(release, folder.releases / releases.name_of(0), name, key)
        mark = fingerprint(key.public_key())
        Audit(folder.audit).add(
            "init", federation=name, fingerprint=mark, release=releases.latest(folder.releases).sha256
        )
    return mark


def read_request(path: Path) -> Request:
    """A PKCS#10 file -> the site that asks. Raises InputError when it is not a sound request for one site with a P-384 key."""
    again = "ask the site for the file that `sgps-client enroll` wrote"
    try:
        csr = x509.load_pem_x509_csr(read_limited(path, _CSR_LIMIT))
        sound, key = csr.is_signature_valid, csr.public_key()
        common = [str(a.value) for a in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise InputError("is not a certificate request", where=path, do=again) from error
    if not sound:
        raise InputError("is not signed by its own key", where=path, do=again)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise InputError("its key is not of the curve P-384", where=path, do=again)
    if len(common) != 1 or not _SITE.fullmatch(common[0]):
        raise InputError(
            "its common name is not a site name", where=path, do="a site name has small letters, digits and hyphens"
        )
    return Request(common[0], key)


def approve(
    folder: Folder,
    request: Request,
    out: Path,
    role: Literal["contribute", "receive"] = "contribute",
    days: int = SITE_DAYS,
) -> bool:
    """Sign a request, enrol the site and write its kit. True when it was a renewal: the same name with the same key.

    Raises InputError when the kit's file exists, the name is taken, or the key was revoked or is another site's.
    """
    if out.exists():
        raise InputError("exists already", where=out, do="choose another name with --out")
    settings, authority = folder.settings(), Authority.open(folder.ca)
    plan_key = load_public(folder.keys / "plan.pub")
    certificate = authority.site(request.site, request.key, days)
    site = Site(
        key=key_pem(request.key),
        role=role,
        approved=datetime.datetime.now(datetime.UTC).timestamp(),
        expires=certificate.not_valid_after_utc.timestamp(),
    )
    renewed = Registry(folder.registry).add(request.site, site)
    mark = fingerprint(plan_key)
    kit = Kit(
        site=request.site,
        federation=settings.name,
        fingerprint=mark,
        url=settings.url,
        plan_key=public_pem(plan_key),
        ca=authority.pem(),
        certificate=certificate.public_bytes(Encoding.PEM).decode(),
        site_yaml=SITE.format(
            site=request.site, role=role, name=settings.name, url=settings.url, releases_url=settings.releases_url, fingerprint=mark, delta=f"{settings.delta:g}",
            epsilon=f"{settings.epsilon:g}", kinds=", ".join(kinds_of(settings)),
        ),
    )  # fmt: skip
    write_atomic(out, (kit.model_dump_json(indent=1) + "\n").encode())
    Audit(folder.audit).add("approved", site=request.site, role=role, key=request.sha256, renewed=renewed)
    return renewed


def revoke(folder: Folder, name: str) -> None:
    """Lock a site out at once; what it contributed stays in the memory. Raises InputError when it is not enrolled."""
    site = Registry(folder.registry).revoke(name)
    Audit(folder.audit).add("revoked", site=name, key=key_sha256(site.key))


def withdraw(folder: Folder, name: str) -> tuple[int, ...]:
    """Lock a site out, and leave what it contributed out of every release from the next one on.

    Returns the rounds of the class memory that lose its part. What it gave to rounds of `episodes` has become part of the generator
    and of everything that was trained after it: that stays. Raises InputError when the site is unknown here.
    """
    state, registry = read_state(folder.state), Registry(folder.registry)
    if name in registry.sites():
        revoke(folder, name)
    elif name not in {r.site for r in state.accepted}:
        raise InputError(
            f"no site {name} is enrolled or has contributed", where=folder.root, do="see `sgps-server sites list`"
        )
    registry.withdraw(name)
    rounds = tuple(r.round for r in state.accepted if r.site == name and separable(state.terms[r.round]))
    Audit(folder.audit).add("withdrawn", site=name, rounds=list(rounds))
    return rounds
