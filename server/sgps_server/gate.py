"""The guard in front of Flower's app: TLS peer, node key, registry, path, size and sender must all fit before Flower sees a call.

uvicorn does not tell an ASGI app who the TLS peer is, so `Protocol` remembers it for as long as the connection lives. A site's TLS
key and its Flower node key are one key, and the registry holds it: a certificate opens the door only with its own node key.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from sgps_server.audit import Audit
from sgps_server.flower_link import ACTIVATE, FLEET, KEY_HEADER, PUSH, few_objects, honest_sender, key_header
from sgps_server.pki import public_pem
from sgps_server.registry import Registry
from sgps_server.serving import Shelf

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MOST_BODY = 8 << 20  # bytes; Flower sends arrays in 5 MiB chunks
BODY_SECONDS = 60.0  # within which a body must be here
_QUIET = 10.0  # seconds: equal refusals within are counted, not written one by one


@dataclass(frozen=True)
class Peer:
    """Who holds the other end of a TLS connection, by its certificate."""

    site: str
    key: str
    expires: float


_peers: dict[tuple[str, int], Peer] = {}


class Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # chosen at import
    """HTTP over a connection whose peer is known."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        peer = read_peer(tls.getpeercert(True)) if tls is not None else None
        if peer is not None and self.client is not None:
            _peers[self.client] = peer

    def connection_lost(self, exc: Exception | None) -> None:
        _peers.pop(self.client, None)
        super().connection_lost(exc)


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


class Gate:
    """ASGI app. admit: called with a site and its key before Flower sees it activate. report: progress."""

    def __init__(
        self, app: Any, registry: Registry, audit: Audit, shelf: Shelf, admit: Callable[[str, str], object],
        report: Callable[..., None],
    ) -> None:  # fmt: skip
        self._app, self._registry, self._audit, self._shelf = app, registry, audit, shelf
        self._admit, self._report = admit, report
        self._quiet: dict[tuple[str, int, str], tuple[float, int]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        fleet = scope["method"] == "POST" and scope["path"] in FLEET
        if not fleet and not (scope["method"] == "GET" and scope["path"].startswith("/sgps/")):
            await answer(send, 404)
            return
        peer = _peers.get(tuple(scope["client"] or ()))
        name = peer.site if peer else "?"
        if peer is None or self._registry.key(peer.site) != peer.key:
            await self._refuse(scope, send, 403, name, "not_enrolled")
        elif peer.expires < time.time():
            await self._refuse(scope, send, 403, name, "certificate_expired")
        elif fleet:
            await self._fleet(scope, receive, send, peer)
        else:
            await self._get(scope, send, peer)

    async def _fleet(self, scope: Scope, receive: Receive, send: Send, peer: Peer) -> None:
        claimed = [value for header, value in scope["headers"] if header == KEY_HEADER]
        if claimed != [key_header(peer.key)]:  # exactly one: of two, Flower would read one and we the other
            await self._refuse(scope, send, 403, peer.site, "another_node_key")
            return
        try:
            body = await asyncio.wait_for(_body(receive), BODY_SECONDS)
        except TimeoutError:
            await self._refuse(scope, send, 408, peer.site, "too_slow")
            return
        if body is None:
            await self._refuse(scope, send, 413, peer.site, "too_large")
            return
        if scope["path"] == PUSH and not honest_sender(body):
            await self._refuse(scope, send, 403, peer.site, "forged_sender")
            return
        if scope["path"] == PUSH and not few_objects(body):
            await self._refuse(scope, send, 413, peer.site, "too_many_objects")
            return
        if scope["path"] == ACTIVATE:
            await asyncio.to_thread(self._admit, peer.site, peer.key)
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> MutableMapping[str, Any]:
            return parts.pop() if parts else await receive()

        await self._app(scope, replay, send)

    async def _get(self, scope: Scope, send: Send, peer: Peer) -> None:
        found = await asyncio.to_thread(self._shelf.find, scope["path"])
        if found is None:
            await answer(send, 404)
            return
        if isinstance(found, bytes):
            await answer(send, 200, found, "application/json")
            return
        await send_file(send, found.path)
        if found.memory:
            await asyncio.to_thread(self._report, "fetched", site=peer.site, release=found.release)

    async def _refuse(self, scope: Scope, send: Send, status: int, site: str, why: str) -> None:
        now, kind = time.monotonic(), (site, status, why)
        since, count = self._quiet.get(kind, (-_QUIET, 0))
        if now - since < _QUIET:
            self._quiet[kind] = (since, count + 1)
        else:
            self._quiet[kind] = (now, 0)
            path = scope["path"][:100]
            await asyncio.to_thread(
                self._audit.add, "refused", site=site, status=status, why=why, path=path, unwritten=count
            )
            await asyncio.to_thread(self._report, "refused", site=site, status=status, why=why)
        await answer(send, status)


async def _body(receive: Receive) -> bytes | None:
    """The whole body, or None when it is too large or was cut."""
    body = bytearray()
    while True:
        part = await receive()
        if part["type"] != "http.request":
            return None
        body += part.get("body", b"")
        if len(body) > MOST_BODY:
            return None
        if not part.get("more_body"):
            return bytes(body)


async def answer(send: Send, status: int, body: bytes = b"", kind: str = "text/plain") -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    if status >= 400:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_file(send: Send, path: Any) -> None:
    """A file in pieces of 1 MiB."""
    with path.open("rb") as file:
        size = path.stat().st_size
        headers = [(b"content-type", b"application/octet-stream"), (b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while part := await asyncio.to_thread(file.read, 1 << 20):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
