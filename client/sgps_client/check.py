"""`check`: every problem at once, each with its fix. Nothing is spent and nothing but a look at the coordinator leaves the site."""

import os
import shutil
import socket
import ssl
import stat
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sgps.errors import ConfigError, InputError, NetworkError, SgpsError
from sgps.release import Release
from sgps.signing import fingerprint, load_public
from sgps_client import enrolment
from sgps_client.config import Cohort, Site
from sgps_client.coordinator import Coordinator, Status, explain, tls_context
from sgps_client.records import cohort_of, within
from sgps_client.round import open_ledger
from sgps_client.store import Store
from sgps_privacy import accountant
from sgps_privacy.errors import PrivacyError, Refused
from sgps_privacy.events import Event
from sgps_privacy.ledger import Ledger

GOOD, NOTE, BAD = "ok", "note", "problem"
AHEAD, BEHIND = 5.0, 300.0  # seconds of clock difference that the coordinator's server takes
SOON = 30  # days
LEAST_FREE = 500 << 20  # bytes: a release and its successor, outbox, log
CONNECT_SECONDS = 10.0
_FIX = {"keys": "install the kit again", "cohort": "correct the cohort in the settings"}  # where the fault names none
_MARK = {GOOD: "  ok      ", NOTE: "  note    ", BAD: "  PROBLEM "}


@dataclass(frozen=True)
class Finding:
    """One line. area: what was looked at. do: the fix, for a problem. exit_code: of the kind of problem."""

    area: str
    state: str
    what: str
    do: str = ""
    exit_code: int = 1

    @property
    def bad(self) -> bool:
        return self.state == BAD

    def facts(self) -> dict[str, Any]:
        return {"area": self.area, "state": self.state, "what": self.what, "do": self.do}

    def line(self) -> str:
        return f"{_MARK[self.state]}{self.area:<9} {self.what}{f' - {self.do}' if self.do else ''}"


def _good(area: str, what: str) -> Finding:
    return Finding(area, GOOD, what)


def _bad(area: str, error: Exception) -> Finding:
    """From a fault that was raised."""
    if isinstance(error, SgpsError):
        where = f"{error.where}: " if error.where else ""
        return Finding(area, BAD, f"{where}{error.what}", error.do or _FIX.get(area, ""), error.exit_code)
    if isinstance(error, Refused):
        return Finding(area, BAD, error.detail or error.code, exit_code=7)
    return Finding(area, BAD, str(error) or type(error).__name__)


def run(file: Path) -> list[Finding]:
    """All findings, problems included. Raises nothing that a person can mend: that becomes a finding."""
    try:
        site = Site.load(file)
    except SgpsError as error:
        lines = error.what.split("; ") if isinstance(error, ConfigError) else [error.what]
        return [Finding("settings", BAD, f"{error.where}: {line}", error.do, error.exit_code) for line in lines]
    role = "contributes" if site.config.role == "contribute" else "only receives: nothing is read, nothing is spent"
    found = [_good("settings", f"{file}: {site.name} {role}")]
    found += _all(_keys, site)
    status = _Box()
    found += _all(lambda s: _network(s, status), site)
    found += _all(_disk, site)
    release = _Box()
    found += _all(lambda s: _release(s, release, status), site)
    if site.config.role == "contribute":
        found += _all(lambda s: _cohorts(s, release.release), site)
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
        found.append(_bad("check", error))
    return found


# --- keys ----------------------------------------------------------------------------------------------------------------
def _keys(site: Site) -> Iterator[Finding]:
    key = cert = None
    try:
        key = enrolment.load_key(site.tls_key)
        mode = stat.S_IMODE(site.tls_key.stat().st_mode)
        if mode & 0o077:
            yield Finding("keys", BAD, f"{site.tls_key} can be read by others", f"chmod 600 {site.tls_key}", 3)
    except SgpsError as error:
        yield _bad("keys", error)
    try:
        cert = enrolment.certificate(site.certificate.read_bytes(), site.certificate)
        authority = enrolment.certificate(site.ca.read_bytes(), site.ca)
        enrolment.check_issued(cert, authority, site.certificate)
        days = (cert.not_valid_after_utc - datetime.now(UTC)).days
        text = f"the certificate is valid for {days} more days"
        yield _good("keys", text) if days > SOON else Finding("keys", NOTE, text, "ask the coordinator for a new kit")
    except SgpsError as error:
        yield _bad("keys", error)
    except OSError as error:
        yield Finding("keys", BAD, f"{error.filename} is missing", f"sgps-client enroll --kit {site.name}.kit", 3)
    if cert is not None and enrolment.common_name(cert) != site.name:
        what = f"the certificate is for {enrolment.common_name(cert)!r}, the settings say {site.name}"
        yield Finding("keys", BAD, what, f"correct `site:` in {site.file}", 3)
    if key is not None and cert is not None:
        if enrolment.public_der(key.public_key()) == enrolment.public_der(cert.public_key()):
            yield _good("keys", "key and certificate belong together")
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
            yield _good(
                "keys", f"federation {site.config.federation.name}, fingerprint {site.config.federation.fingerprint}"
            )
    except SgpsError as error:
        yield _bad("keys", error)


# --- network and clock ---------------------------------------------------------------------------------------------------
def _network(site: Site, box: _Box) -> Iterator[Finding]:
    url = site.config.federation.url
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get("https")
    if proxy:
        yield Finding("network", NOTE, f"through the proxy {urlsplit(proxy).hostname}:{urlsplit(proxy).port}")
    else:
        try:
            within(CONNECT_SECONDS, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            socket.create_connection((host, port), CONNECT_SECONDS).close()
            yield _good("network", f"{host}:{port} answers")
        except (OSError, TimeoutError) as error:
            what, do = _connect_trouble(host, port, error)
            yield Finding("network", BAD, what, do, 6)
            return
    try:
        tls_context(site)
    except ConfigError:
        return  # said under keys already
    try:
        with Coordinator(site) as coordinator:
            before = time.time()
            status = coordinator.status()
            now = (before + time.time()) / 2
    except (NetworkError, ssl.SSLError) as error:
        yield _bad("network", error if isinstance(error, NetworkError) else explain(error, url))
        return
    box.status = status
    if status.fingerprint != site.config.federation.fingerprint:
        yield Finding("network", BAD, f"{url} is the coordinator of another federation", "correct `federation:`", 3)
    missing = f"; waits for {', '.join(status.waiting_for)}" if status.waiting_for else ""
    yield _good("network", f"mutual TLS works; {status.state}, round {status.round} of {status.rounds}{missing}")
    ahead = now - status.time
    text = f"this clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if ahead > AHEAD or ahead < -BEHIND:
        yield Finding("clock", BAD, text, "set it by NTP: the coordinator takes 5 s ahead and 300 s behind at most", 6)
    else:
        yield _good("clock", text)


def _connect_trouble(host: str, port: int, error: Exception) -> tuple[str, str]:
    if isinstance(error, socket.gaierror):
        return f"the name {host} is not known here", "check `url:`, DNS, and whether a proxy is needed (HTTPS_PROXY)"
    if isinstance(error, ConnectionRefusedError):
        return f"{host}:{port} refuses: nobody listens", "is the coordinator running? check host and port in `url:`"
    if isinstance(error, TimeoutError):
        return (
            f"{host}:{port} does not answer within {CONNECT_SECONDS:.0f} s",
            "a firewall? outgoing connections to it must be open",
        )
    return f"{host}:{port} cannot be reached: {error}", "check `url:` and the firewall"


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
            yield Finding(
                "disk",
                BAD,
                f"{there} cannot be written: {error.strerror}",
                "give this user the right to write there",
                7,
            )
            continue
        free = shutil.disk_usage(there).free
        if free < LEAST_FREE:
            yield Finding(
                "disk", BAD, f"{there} has {free >> 20} MiB left", f"make room: {LEAST_FREE >> 20} MiB at least", 7
            )
        else:
            yield _good("disk", f"{folder.name}: can be written, {free >> 30} GiB free")


def _release(site: Site, box: _Box, seen: _Box) -> Iterator[Finding]:
    store = Store(site)
    for name in store.names():
        try:
            store.open(name)
        except SgpsError as error:
            yield Finding("release", NOTE, f"{name}: {error.what}", "it is fetched again at `start`")
    box.release = store.newest()
    if box.release is not None:
        yield _good("release", f"{box.release.folder.name} is verified; {len(box.release.manifest.classes)} classes")
    elif seen.status is not None and seen.status.release:
        yield Finding(
            "release",
            NOTE,
            f"none is here yet; {seen.status.release} is fetched at `start`",
            "or now: sgps-client pull",
        )
    else:
        yield Finding(
            "release",
            BAD,
            "none is here and the coordinator offers none",
            "sgps-client pull, once it can be reached",
            2,
        )


# --- cohorts and budget --------------------------------------------------------------------------------------------------
def _cohorts(site: Site, release: Release | None) -> Iterator[Finding]:
    if release is None:
        yield Finding(
            "cohorts", NOTE, "not looked at: the classes are those of the release", "sgps-client pull, then check again"
        )
        return
    for cohort in site.config.cohorts:
        yield from _cohort(site, cohort, release)
    if not site.state.joinpath("ledger.sqlite").exists():
        for cohort in site.config.cohorts:
            yield _budget(site, cohort, [])
        return
    with open_ledger(site, CONNECT_SECONDS) as ledger:
        yield _good("ledger", f"{ledger.verify()} entries; the chain holds")
        for cohort in site.config.cohorts:
            yield _budget(site, cohort, _spent(ledger, cohort))


def _cohort(site: Site, cohort: Cohort, release: Release) -> Iterator[Finding]:
    area = "cohort"
    try:
        reader = cohort_of(site, cohort.name, release.manifest.classes)
    except SgpsError as error:
        yield _bad(area, error)
        return
    for problem in reader.problems:
        what, _, do = problem.partition(" - ")
        yield Finding(area, BAD, f"{cohort.name}: {what}", do, 2)
    for note in reader.notes:
        yield Finding(area, NOTE, f"{cohort.name}: {note}")
    patients, slots, cap = reader.patients, site.config.slots or 0, site.config.images_per_patient
    if len(patients) > slots:
        yield Finding(
            area,
            BAD,
            f"{cohort.name}: {len(patients)} patients, {slots} slots",
            "raise `slots:` or split the cohort",
            3,
        )
    images = {patient: reader.images(patient) for patient in patients}
    unread = sum(not _readable(images[p][:cap], site.config.seconds_per_patient) for p in patients)
    over = sum(len(found) > cap for found in images.values())
    classes = {label for found in images.values() for label, _ in found}
    yield _good(
        area,
        f"{cohort.name}: {len(patients)} patients in {slots} slots, {sum(map(len, images.values()))} images, "
        f"{len(classes)} classes; the unit is {cohort.unit_column}",
    )
    if over:
        yield Finding(
            area, NOTE, f"{cohort.name}: {over} patients have more than {cap} images", "the first ones are taken"
        )
    if unread:
        what = f"{cohort.name}: {unread} patients have images that cannot be read, or not in {site.config.seconds_per_patient:g} s"
        yield Finding(area, BAD, what, "mend or remove the images; otherwise these patients count as empty records", 2)


def _readable(images: list[tuple[str, Callable[[], Any]]], seconds: float) -> bool:
    try:
        within(seconds, lambda: [load() for _, load in images])
    except (InputError, TimeoutError, OSError, ValueError):
        return False
    return True


def _spent(ledger: Ledger, cohort: Cohort) -> list[Event]:
    return ledger.spent(cohort.name) if cohort.name in ledger.cohorts() else []


def _budget(site: Site, cohort: Cohort, spent: list[Event]) -> Finding:
    budget, least = cohort.budget, site.config.limits.least_sigma
    now = accountant.epsilon(spent, budget.delta) if spent else 0.0
    text = f"{cohort.name}: epsilon {now:.3f} of {budget.epsilon:g} spent at delta {budget.delta:g}"
    if now > 0.9 * budget.epsilon:
        return Finding("budget", NOTE, text, "little or nothing is left: new patients form a new cohort")
    try:
        sigma = accountant.calibrate(budget.epsilon, budget.delta, 1, spent=spent)
    except PrivacyError:  # so much is left that the least noise of all fits
        sigma = accountant.LEAST_SIGMA
    most = accountant.epsilon([*spent, Event(max(sigma, least), 1.0, 1)], budget.delta)
    return _good(
        "budget",
        f"{text}; a plan needs noise {max(sigma, least):g} or more, and then costs epsilon {most - now:.3f} at most",
    )
