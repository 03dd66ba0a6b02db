"""The guard in front of Flower's app: TLS peer, node key, registry, path, size and sender must all fit before Flower sees a call.

uvicorn does not tell an ASGI app who the TLS peer is, so `Protocol` remembers it for as long as the connection lives. A site's TLS
key and its Flower node key are one key, and the registry holds it: a certificate opens the door only with its own node key.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from sgps_server.flower_link import ACTIVATE, FLEET, KEY_HEADER, PUSH, few_objects, honest_sender, key_header
from sgps_server.peers import Peer, Porter, read_peer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MOST_BODY = 8 << 20  # bytes; Flower sends arrays in 5 MiB chunks
BODY_SECONDS = 60.0  # within which a body must be here


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


class Gate:
    """ASGI app. admit: called with a site and its key before Flower sees it activate."""

    def __init__(self, app: Any, porter: Porter, admit: Callable[[str, str], object]) -> None:
        self._app, self._porter, self._admit = app, porter, admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] != "POST" or scope["path"] not in FLEET:
            await answer(send, 404)
            return
        peer = _peers.get(tuple(scope["client"] or ()))
        why = self._porter.objection(peer)
        if peer is None or why:
            await self._refuse(scope, send, 403, peer.site if peer else "?", why)
        else:
            await self._fleet(scope, receive, send, peer)

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
        except EOFError:
            return  # a site that stops or loses its line has done nothing wrong, and hears no answer
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

    async def _refuse(self, scope: Scope, send: Send, status: int, site: str, why: str) -> None:
        await asyncio.to_thread(self._porter.refused, site, status, why, scope["path"])
        await answer(send, status)


async def _body(receive: Receive) -> bytes | None:
    """The whole body, or None when it is too large. Raises EOFError when the line was cut."""
    body = bytearray()
    while True:
        part = await receive()
        if part["type"] != "http.request":
            raise EOFError
        body += part.get("body", b"")
        if len(body) > MOST_BODY:
            return None
        if not part.get("more_body"):
            return bytes(body)


async def answer(send: Send, status: int) -> None:
    """An empty answer."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"0")]
    if status >= 400:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
