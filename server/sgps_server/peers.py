"""Who calls: the holder of a TLS certificate, judged by the registry at every call. Both ports ask here."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sgps_server.audit import Audit
from sgps_server.pki import public_pem
from sgps_server.registry import Registry

QUIET = 10.0  # seconds: equal refusals within are counted, not written one by one


@dataclass(frozen=True)
class Peer:
    """Who holds the other end of a TLS connection, by its certificate."""

    site: str
    key: str
    expires: float


def read_peer(certificate: bytes | None) -> Peer | None:
    """DER certificate, already verified by TLS -> its holder; None when it is not of a site's form."""
    if certificate is None:
        return None
    found = x509.load_der_x509_certificate(certificate)
    names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    key = found.public_key()
    if len(names) != 1 or not isinstance(key, ec.EllipticCurvePublicKey):
        return None
    return Peer(str(names[0].value), public_pem(key), found.not_valid_after_utc.timestamp())


class Porter:
    """Lets in whom the registry holds, and writes down whom it turned away. Safe for several threads."""

    def __init__(self, registry: Registry, audit: Audit, report: Callable[..., None]) -> None:
        self._registry, self._audit, self._report = registry, audit, report
        self._quiet: dict[tuple[str, str, str], tuple[float, int]] = {}
        self._lock = threading.Lock()

    def objection(self, peer: Peer | None) -> str:
        """Why this peer may not call now, in one word; empty when it may."""
        if peer is None or self._registry.key(peer.site) != peer.key:
            return "not_enrolled"
        return "certificate_expired" if peer.expires < time.time() else ""

    def refused(self, site: str, status: int | str, why: str, path: str) -> None:
        """Audit and progress: at most one line for equal refusals within some seconds."""
        now, kind = time.monotonic(), (site, str(status), why)
        with self._lock:
            since, count = self._quiet.get(kind, (-QUIET, 0))
            if now - since < QUIET:
                self._quiet[kind] = (since, count + 1)
                return
            self._quiet[kind] = (now, 0)
        self._audit.add("refused", site=site, status=status, why=why, path=path[:100], unwritten=count)
        self._report("refused", site=site, status=status, why=why)
