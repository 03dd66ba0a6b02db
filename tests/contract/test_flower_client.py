"""flwr 1.41 still behaves as the site's link assumes: the real Fleet API on loopback, orders, resumed replies, lost nodes."""

import contextlib
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sgps.errors import NetworkError
from sgps_client import flower_link
from sgps_client.flower_link import Fleet, NodeUnknown, StillOnline, Withdrawn

pytestmark = [pytest.mark.enable_socket]


def test_the_pin_and_the_switches() -> None:
    import os
    from importlib.metadata import version

    assert version("flwr").startswith("1.41.")
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert os.environ["HF_HUB_OFFLINE"] == "1"


class Centre:
    """Flower's app on loopback without TLS, driven as a coordinator drives it."""

    def __init__(self) -> None:
        import uvicorn

        from sgps_server import flower_link as server_link

        self.fleets: list[Fleet] = []
        self.app, self.state = server_link.build_app()
        self.roster = server_link.Roster(self.state)
        self.link = server_link.Link(self.state)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.server = uvicorn.Server(
            uvicorn.Config(self.app, host="127.0.0.1", port=port, lifespan="off", ws="none", log_level="error")
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started and self.thread.is_alive():
            time.sleep(0.02)

    def site(self, name: str) -> Fleet:
        key = ec.generate_private_key(ec.SECP384R1())
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        self.roster.admit(name, pem)
        self.fleets.append(Fleet(self.url, ssl.create_default_context(), key))
        return self.fleets[-1]

    def order(self, node: int, kind: str = "train") -> str:
        from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

        content = RecordDict(
            {
                "arrays": ArrayRecord({"memory.rows": Array(np.zeros((3, 4), np.float32))}),
                "plan": ConfigRecord({"text": "{}", "signature": "00"}),
            }
        )
        return str(next(iter(self.link.push_messages([self.link.create_message(content, kind, node, "1")]))))

    def close(self) -> None:
        for fleet in self.fleets:
            fleet.close()
        self.link.close()
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture
def centre(socket_enabled: None) -> Iterator[Centre]:
    found = Centre()
    yield found
    found.close()


def reply_to(message: Any, value: float = 1.0) -> Any:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

    arrays = ArrayRecord({"memory.rows": Array(np.full((3, 4), value, np.float32))})
    return Message(RecordDict({"arrays": arrays, "reply": ConfigRecord({"status": "accepted"})}), reply_to=message)


def received(centre: Centre, order: str) -> Any:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if found := centre.link.collect([order]):
            return found[0][1]
        time.sleep(0.05)
    return None


def test_an_order_travels_once_and_its_reply_comes_back(centre: Centre) -> None:
    fleet = centre.site("north")
    node = fleet.activate()
    order = centre.order(node)
    raw = fleet.next()
    assert raw
    assert fleet.next() == b""  # delivered once: that is why the worker keeps it on disk
    instruction = fleet.open(raw)
    assert dict(instruction.content.config_records["plan"]) == {"text": "{}", "signature": "00"}
    fleet.answer(instruction, reply_to(instruction))
    got = received(centre, order)
    assert got.content.array_records["arrays"]["memory.rows"].numpy().sum() == 12


def test_the_same_reply_again_is_the_same_message_and_resumes_a_broken_upload(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sgps.errors import NetworkError

    fleet = centre.site("resume")
    order = centre.order(fleet.activate())
    raw = fleet.next()
    message = fleet.open(raw)

    def cut(*_: Any, **__: Any) -> None:
        raise flower_link.ObjectPushError("x", 1, "session")

    with monkeypatch.context() as patch:
        patch.setattr(flower_link, "push_objects", cut)
        first = reply_to(message)
        with pytest.raises(NetworkError, match="cut"):
            fleet.answer(message, first)
    again = fleet.open(raw)  # as a restarted worker does
    second = reply_to(again)
    fleet.answer(again, second)
    assert first.object_id == second.object_id
    assert received(centre, order) is not None


def test_a_restarted_site_takes_its_node_up_again(centre: Centre) -> None:
    fleet = centre.site("adopt")
    node = fleet.activate()
    with pytest.raises(StillOnline):
        fleet.activate()
    fleet.node_id = 0
    fleet.adopt(node)
    assert fleet.node_id == node
    order = centre.order(node)
    assert fleet.next()
    centre.link.withdraw(order)


def test_a_goodbye_lets_the_node_be_activated_again(centre: Centre) -> None:
    fleet = centre.site("goodbye")
    fleet.activate()
    fleet.deactivate()
    assert fleet.activate()


def test_a_node_id_of_an_earlier_coordinator_is_told_apart(centre: Centre) -> None:
    fleet = centre.site("stale")
    with pytest.raises(NodeUnknown):
        fleet.adopt(12345)
    assert fleet.node_id == 0


def test_a_withdrawn_order_is_dropped(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_link, "PULL_SECONDS", 1.0)
    fleet = centre.site("late")
    order = centre.order(fleet.activate())
    raw = fleet.next()
    centre.link.withdraw(order)
    with pytest.raises(Withdrawn):
        fleet.open(raw)


def test_an_order_that_is_too_large_is_dropped(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = centre.site("large")
    order = centre.order(fleet.activate())
    raw = fleet.next()
    monkeypatch.setattr(flower_link, "ORDER_BYTES", 100)
    with pytest.raises(Withdrawn, match="more than"):
        fleet.open(raw)
    centre.link.withdraw(order)


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"\x0a\x02\x08\x01"])
def test_bytes_that_are_no_order_are_dropped(centre: Centre, raw: bytes) -> None:
    fleet = centre.site("north")
    with pytest.raises(Withdrawn):
        fleet.open(raw)


def test_only_orders_to_train_reach_the_app(centre: Centre) -> None:
    from sgps_client.app import app

    fleet = centre.site("query")
    node = fleet.activate()
    order = centre.order(node, "query")
    instruction = fleet.open(fleet.next())
    with pytest.raises(Withdrawn, match="another kind"):
        flower_link.run_app(app, instruction, node, {"site": "/nowhere"})
    centre.link.withdraw(order)


def test_the_link_has_no_call_for_an_app_bundle() -> None:
    source = Path(flower_link.__file__).read_text(encoding="utf-8")
    for word in ("GetFab", "fab_hash", "fab_content", "get_run", "subprocess", "importlib", "exec("):
        assert word not in source


def test_an_answer_that_unpacks_to_any_size_is_not_read() -> None:
    class Bomb(BaseHTTPRequestHandler):
        asked: str | None = None

        def do_POST(self) -> None:
            Bomb.asked = self.headers["accept-encoding"]
            body = gzip.compress(bytes(32 << 20))
            self.send_response(200)
            self.send_header("content-encoding", "gzip")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # nobody need read it
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Bomb) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fleet = Fleet(
            f"http://127.0.0.1:{server.server_port}",
            ssl.create_default_context(),
            ec.generate_private_key(ec.SECP384R1()),
        )
        try:
            with pytest.raises(NetworkError, match="unknown or too great length"):
                fleet.activate()
        finally:
            fleet.close()
            server.shutdown()
    assert Bomb.asked == "identity"
