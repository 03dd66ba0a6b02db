"""The gate's own rules, call by call; over real sockets they stand in tests/e2e/test_server_attacks.py."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from sgps_server import audit, gate, peers, pki
from sgps_server.audit import Audit
from sgps_server.flower_link import ACTIVATE, FLEET, KEY_HEADER, key_header
from sgps_server.gate import Gate
from sgps_server.peers import Peer, Porter
from sgps_server.registry import Registry, Site

CLIENT = ("127.0.0.1", 5)
KEY = pki.public_pem(ec.generate_private_key(ec.SECP384R1()).public_key())


class World:
    """A gate, what passed it, and what it said."""

    def __init__(self, folder: Path) -> None:
        Registry.make(folder / "registry.json")
        self.registry, self.audit = Registry(folder / "registry.json"), folder / "audit.jsonl"
        self.registry.add("north", Site(key=KEY, role="contribute", approved=0.0, expires=1.0))
        self.passed: list[tuple[str, bytes]] = []
        self.admitted: list[str] = []
        self.gate = Gate(self.flower, Porter(self.registry, Audit(self.audit), lambda *_, **__: None), self.admit)

    def admit(self, name: str, key: str) -> None:
        self.admitted.append(name)

    async def flower(self, scope: Any, receive: Any, send: Any) -> None:
        self.passed.append((scope["path"], (await receive())["body"]))
        await gate.answer(send, 200)

    def call(
        self, path: str, parts: list[bytes] | None = None, method: str = "POST", hangs: bool = False, cut: bool = False
    ) -> int | None:
        """Status of the answer; None when there was none."""
        sent: list[dict[str, Any]] = []
        queue = [b""] if parts is None else list(parts)

        async def receive() -> dict[str, Any]:
            if not queue and cut:
                return {"type": "http.disconnect"}
            if not queue and hangs:
                await asyncio.sleep(60)
            return {"type": "http.request", "body": queue.pop(0), "more_body": bool(queue) or hangs or cut}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "client": CLIENT,
            "headers": [(KEY_HEADER, key_header(KEY))],
        }
        asyncio.run(self.gate(scope, receive, send))
        return int(sent[0]["status"]) if sent else None

    def refusals(self) -> list[str]:
        return [e["why"] for e in audit.read(self.audit) if e["event"] == "refused"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    gate._peers[CLIENT] = Peer("north", KEY, time.time() + 100)
    yield World(tmp_path)
    gate._peers.pop(CLIENT, None)


def test_a_call_that_fits_passes_whole(world: World) -> None:
    assert world.call("/v1/fleet/pull-messages", [b"ab", b"", b"cd"]) == 200
    assert world.passed == [("/v1/fleet/pull-messages", b"abcd")]
    assert world.call(ACTIVATE) == 200
    assert world.admitted == ["north"]


def test_a_certificate_that_ended_since_the_connection_was_made_opens_nothing(world: World) -> None:
    gate._peers[CLIENT] = Peer("north", KEY, time.time() - 1)
    assert world.call("/v1/fleet/pull-messages") == 403
    assert world.call("/v1/fleet/push-messages") == 403
    assert world.refusals() == ["certificate_expired"]  # equal refusals are counted, not written one by one


@pytest.mark.parametrize("peer", [None, Peer("south", KEY, 9e9), Peer("north", "another key", 9e9)])
def test_nobody_unknown_passes(world: World, peer: Peer | None) -> None:
    gate._peers.pop(CLIENT)
    if peer:
        gate._peers[CLIENT] = peer
    for path in sorted(FLEET):
        assert world.call(path) == 403
    assert world.passed == []


def test_a_body_that_never_ends_is_cut_by_size_and_by_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.call("/v1/fleet/push-object", [bytes(1 << 20)] * 9) == 413
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.05)
    assert world.call("/v1/fleet/push-object", [b"x"], hangs=True) == 408
    assert world.passed == []
    assert world.refusals() == ["too_large", "too_slow"]


def test_a_line_that_breaks_is_no_refusal(world: World) -> None:
    assert world.call("/v1/fleet/pull-messages", [b"x"], cut=True) is None
    assert world.passed == []
    assert world.refusals() == []


def test_methods_and_paths_are_compared_exactly(world: World) -> None:
    for method, path in (
        ("GET", "/v1/fleet/pull-messages"), ("GET", "/"), ("POST", "/v1/fleet/PULL-MESSAGES"), ("PUT", "/v1/fleet/push-object"),
        ("POST", "/v1/fleet/pull-messages/"), ("POST", "//v1/fleet/pull-messages"), ("HEAD", "/v1/fleet/pull-messages"),
    ):  # fmt: skip
        assert world.call(path, method=method) == 404
    assert world.passed == []


def test_a_peer_is_read_from_its_certificate(tmp_path: Path) -> None:
    authority, key = pki.Authority.make(tmp_path, "derm"), ec.generate_private_key(ec.SECP384R1()).public_key()
    certificate = authority.site("north", key, days=3)
    peer = peers.read_peer(certificate.public_bytes(Encoding.DER))
    assert peer is not None
    assert (peer.site, peer.key) == ("north", pki.public_pem(key))
    assert 0 < peer.expires - time.time() <= 3 * 86400
    assert peers.read_peer(None) is None
