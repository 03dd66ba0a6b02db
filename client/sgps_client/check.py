"""`check`: every problem at once, each with its fix. Nothing is spent and nothing but a look at the coordinator leaves the site."""

import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from sgps.code import contributor_code
from sgps.command import of_disk
from sgps.errors import ConfigError, NetworkError, SgpsError, SignatureError, StateError
from sgps.release import Release
from sgps.signing import fingerprint, load_public
from sgps_client import enrolment, witness
from sgps_client.check_cohorts import cohorts
from sgps_client.config import Site
from sgps_client.coordinator import Coordinator, Status
from sgps_client.findings import BAD, NOTE, Finding, good, raised
from sgps_client.records import within
from sgps_client.store import Store
from sgps_client.tls import proxy_for, shake_hands, tls_context
from sgps_privacy.errors import PrivacyError, Refused

SOON = 30  # days
LEAST_FREE = 500 << 20  # bytes: a release and its successor, outbox, log
CONNECT_SECONDS = 10.0


def run(file: Path) -> list[Finding]:
    """All findings, problems included. Raises nothing that a person can mend: that becomes a finding.

    A fault in the settings does not hide the rest: what stands there without it is looked at all the same.
    """
    try:
        site = Site.load(file)
        role = "contributes" if site.config.role == "contribute" else "only receives: nothing is read, nothing is spent"
        found = [good("settings", f"{file}: {site.name} {role}")]
    except ConfigError as error:
        found = [raised("settings", one) for one in error.each or (error,)]
        left = Site.salvaged(file)
        if left is None:
            return found
        site = left
    except SgpsError as error:
        return [raised("settings", error)]
    found.append(good("code", f"contributor code {contributor_code()}: the one that a plan must accept"))
    found += _all(_device, site)
    found += _all(_keys, site)
    status = _Box()
    found += _all(lambda s: _network(s, status), site)
    found += _all(_disk, site)
    release = _Box()
    found += _all(lambda s: _release(s, release, status), site)
    if site.config.role == "contribute":
        found += _all(lambda s: cohorts(s, release.release), site)
    return found


class _Box:
    """What one look found that a later one needs."""

    status: Status | None = None
    release: Release | None = None


def _all(look: Callable[[Site], Iterator[Finding]], site: Site) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(look(site))  # what came before a fault is kept
    except (SgpsError, Refused, PrivacyError, OSError) as error:
        found.append(raised("check", error))
    return found


# --- device --------------------------------------------------------------------------------------------------------------
def _device(site: Site) -> Iterator[Finding]:
    """Nothing to say of `auto` and `cpu`, which are everywhere."""
    if site.config.device != "cuda":
        return
    from sgps.device import choose, described

    try:
        yield good("settings", f"device: {described(choose(site.config.device))}; rounds use the processor")
    except ConfigError as error:
        what = f"`device: cuda`: {error.what}; rounds use the processor all the same, `synthesize` and `serve` would refuse"
        yield Finding("settings", BAD, what, error.do, error.exit_code)


# --- keys ----------------------------------------------------------------------------------------------------------------
def _keys(site: Site) -> Iterator[Finding]:
    key = cert = None
    try:
        key = enrolment.load_key(site.tls_key)
        mode = stat.S_IMODE(site.tls_key.stat().st_mode)
        if mode & 0o077:
            yield Finding("keys", BAD, f"{site.tls_key} can be read by others", f"chmod 600 {site.tls_key}", 3)
    except SgpsError as error:
        yield raised("keys", error)
    try:
        cert = enrolment.certificate(site.certificate.read_bytes(), site.certificate)
        authority = enrolment.certificate(site.ca.read_bytes(), site.ca)
        enrolment.check_issued(cert, authority, site.certificate)
        days = (cert.not_valid_after_utc - datetime.now(UTC)).days
        text = f"the certificate is valid for {days} more days"
        yield good("keys", text) if days > SOON else Finding("keys", NOTE, text, "ask the coordinator for a new kit")
    except SgpsError as error:
        yield raised("keys", error)
    except OSError as error:
        yield Finding("keys", BAD, f"{error.filename} is missing", f"sgps-client enroll --kit {site.name}.kit", 3)
    if cert is not None and enrolment.common_name(cert) != site.name:
        what = f"the certificate is for {enrolment.common_name(cert)!r}, the settings say {site.name}"
        yield Finding("keys", BAD, what, f"correct `site:` in {site.file}", 3)
    if key is not None and cert is not None:
        if enrolment.public_der(key.public_key()) == enrolment.public_der(cert.public_key()):
            yield good("keys", "key and certificate belong together")
        else:
            yield Finding(
                "keys",
                BAD,
                "key and certificate do not belong together",
                "install the kit that answers this site's .csr",
                4,
            )
    try:
        if fingerprint(load_public(site.plan_key)) != site.config.federation.fingerprint:
            yield Finding(
                "keys",
                BAD,
                "the pinned plan key is not that of the federation in the settings",
                "install the kit again",
                4,
            )
        else:
            yield good(
                "keys", f"federation {site.config.federation.name}, fingerprint {site.config.federation.fingerprint}"
            )
    except SgpsError as error:
        yield raised("keys", error)


# --- network and clock ---------------------------------------------------------------------------------------------------
def _network(site: Site, box: _Box) -> Iterator[Finding]:
    rounds, releases = site.config.federation.url, site.releases_url
    contributes = site.config.role == "contribute"
    ways = [_way("federation.url", rounds)] if contributes else []
    ways.append(_way("federation.releases_url", releases))
    yield from ways
    if any(way.bad for way in ways):
        return
    try:
        context = tls_context(site)
    except ConfigError:
        return  # said under keys already
    try:
        if contributes:
            shake_hands(rounds, context)
        with Coordinator(site) as coordinator:
            asked = time.time()
            status = coordinator.status()
            ahead, off = status.clock(asked, time.time())
            record = _record(site, coordinator)
    except NetworkError as error:
        yield raised("network", error)
        return
    box.status = status
    if status.fingerprint != site.config.federation.fingerprint:
        yield Finding(
            "network", BAD, f"{releases} is the coordinator of another federation", "correct `federation:`", 3
        )
    missing = f"; waits for {', '.join(status.waiting_for)}" if status.waiting_for else ""
    yield good("network", f"mutual TLS works; {status.state}, round {status.round} of {status.rounds}{missing}")
    text = f"this clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if off:
        yield Finding("clock", BAD, text, "set it by NTP: the coordinator takes 5 s ahead and 300 s behind at most", 6)
    else:
        yield good("clock", text)
    yield record


def _way(setting: str, url: str) -> Finding:
    """Whether the address can be reached at all, unless a proxy stands before it. setting: where it stands."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    if proxy := proxy_for(host):
        through = urlsplit(proxy)
        return Finding("network", NOTE, f"{host}:{port} through the proxy {through.hostname}:{through.port}")
    try:
        within(CONNECT_SECONDS, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except (OSError, TimeoutError) as error:
        what, do = _connect_trouble(setting, host, port, error)
        return Finding("network", BAD, what, do, 6)
    return good("network", f"{host}:{port} answers")


def _record(site: Site, coordinator: Coordinator) -> Finding:
    """Whether the coordinator's record still holds what it held."""
    try:
        seen = witness.look(site, coordinator)
    except (SignatureError, StateError) as error:
        return raised("record", error)
    before = "this site looks at it for the first time"
    if seen.since is not None:
        before = f"it holds the line that was its last on {datetime.fromtimestamp(seen.since, UTC):%Y-%m-%d %H:%M} UTC"
    return good("record", f"the coordinator's record has {seen.lines} lines; {before}")


def _connect_trouble(setting: str, host: str, port: int, error: Exception) -> tuple[str, str]:
    if isinstance(error, socket.gaierror):
        return (
            f"the name {host} is not known here",
            f"check `{setting}`, DNS, and whether a proxy is needed (HTTPS_PROXY)",
        )
    if isinstance(error, ConnectionRefusedError):
        return (
            f"{host}:{port} refuses: nobody listens",
            f"is the coordinator running? check host and port in `{setting}`",
        )
    if isinstance(error, TimeoutError):
        return (
            f"{host}:{port} does not answer within {CONNECT_SECONDS:.0f} s",
            "a firewall? outgoing connections to it must be open",
        )
    return f"{host}:{port} cannot be reached: {error}", f"check `{setting}` and the firewall"


# --- disk and release ----------------------------------------------------------------------------------------------------
def _disk(site: Site) -> Iterator[Finding]:
    for folder in (site.state, site.releases, site.log.parent):
        there = next(p for p in (folder, *folder.parents) if p.exists())
        try:
            with tempfile.NamedTemporaryFile(dir=there) as file:
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            what, do = of_disk(OSError(error.errno, error.strerror, str(there)))
            yield Finding("disk", BAD, what, do, 7)
            continue
        free = shutil.disk_usage(there).free
        if free < LEAST_FREE:
            yield Finding(
                "disk", BAD, f"{there} has {free >> 20} MiB left", f"make room: {LEAST_FREE >> 20} MiB at least", 7
            )
        else:
            yield good("disk", f"{folder.name}: can be written, {free >> 30} GiB free")


def _release(site: Site, box: _Box, seen: _Box) -> Iterator[Finding]:
    store = Store(site)
    for name in store.names():
        try:
            store.open(name)
        except SgpsError as error:
            yield Finding("release", NOTE, f"{name}: {error.what}", "it is fetched again at `start`")
    box.release = store.newest()
    if box.release is not None:
        yield good("release", f"{box.release.folder.name} is verified; {len(box.release.manifest.classes)} classes")
    elif seen.status is not None:
        yield Finding(
            "release",
            NOTE,
            f"none is here yet; {seen.status.latest.name} is fetched at `start`",
            "or now: sgps-client pull",
        )
    else:
        yield Finding(
            "release",
            BAD,
            "none is here and the coordinator does not answer",
            "sgps-client pull, once it can be reached",
            2,
        )
