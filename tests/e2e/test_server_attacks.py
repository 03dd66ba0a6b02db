"""What an outsider, and what a rogue hospital can try at the coordinator's port. Each is refused, and the federation lives on."""

import contextlib
import json
import ssl
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import fake_site
import federation as fed
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_to_proto
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

pytestmark = [pytest.mark.enable_socket, pytest.mark.slow]
KIND = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}


@pytest.fixture(scope="module")
def f(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fed.Federation]:
    """A coordinator that waits, one honest site (north) that is online, and one rogue (mallory) that is enrolled."""
    found = fed.Federation(tmp_path_factory.mktemp("attacks"), quorum=3)
    try:
        for name in ("north", "mallory"):
            found.enrol(name)
        found.start()
        found.start_site("north")
        found.wait(lambda: found.events("online"))
        yield found
        assert found.processes[0].poll() is None, "the coordinator died"
        fed.server("audit", "verify", "--config", found.folder.config)
    finally:
        found.close()


@pytest.fixture
def mallory(f: fed.Federation) -> fake_site.Identity:
    return fake_site.Identity(f.work / "mallory")


def headers(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """Flower's three headers, signed by a node key."""
    stamp = now().isoformat()
    return {
        **KIND,
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())).decode(),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, stamp.encode())).decode(),
    }


def refusals(f: fed.Federation, why: str) -> list[dict[str, object]]:
    return [e for e in f.audit("refused") if e["why"] == why]


def test_no_answer_without_a_client_certificate(f: fed.Federation, mallory: fake_site.Identity) -> None:
    bare = ssl.create_default_context(cafile=str(f.work / "mallory" / "ca.pem"))
    with httpx.Client(verify=bare, trust_env=False) as client:
        for path in ("/v1/fleet/pull-messages", "/health", "/docs"):
            with pytest.raises(httpx.TransportError):
                client.get(f"{mallory.url}{path}")


def test_no_answer_to_a_certificate_of_another_authority(
    f: fed.Federation, tmp_path: Path, mallory: fake_site.Identity
) -> None:
    other = fed.Federation(tmp_path)
    other.enrol("mallory")
    context = fake_site.Identity(tmp_path / "mallory").tls()
    context.load_verify_locations(f.work / "mallory" / "ca.pem")
    with httpx.Client(verify=context, trust_env=False) as client, pytest.raises(httpx.TransportError):
        client.get(mallory.url)


def test_tls_below_1_3_is_refused(mallory: fake_site.Identity) -> None:
    context = mallory.tls()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(verify=context, trust_env=False) as client, pytest.raises(httpx.TransportError):
        client.get(mallory.url)


def test_no_operators_call_no_task_no_app_and_no_page_is_there(mallory: fake_site.Identity) -> None:
    body, head = ListNodesRequest().SerializeToString(), headers(mallory.key)
    with mallory.client() as client:
        for path in (
            "/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/get-fab",
            "/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/../control/list-nodes", "/v1/fleet/pull-messages/",
        ):  # fmt: skip
            assert client.post(path, content=body, headers=head).status_code == 404, path
        for path in ("/docs", "/openapi.json", "/health", "/", "/sgps/status", "/v1/fleet/pull-messages"):
            assert client.get(path, headers=head).status_code == 404, path


def test_headers_of_one_site_are_worth_nothing_with_anothers_certificate(
    f: fed.Federation, mallory: fake_site.Identity
) -> None:
    """A replay from captured headers: north's, fresh and rightly signed, over mallory's connection."""
    stolen = headers(fake_site.Identity(f.work / "north").key)
    body = PullMessagesRequest(node=Node(node_id=int((f.work / "north" / "node_id").read_text()))).SerializeToString()
    with mallory.client() as client:
        assert client.post("/v1/fleet/pull-messages", content=body, headers=stolen).status_code == 403
    assert refusals(f, "another_node_key")[-1]["site"] == "mallory"


def test_a_second_key_header_is_refused(f: fed.Federation, mallory: fake_site.Identity) -> None:
    """Of two equal headers Flower would read the first and a mapping keep the last."""
    north = fake_site.Identity(f.work / "north").key
    for order in ((mallory.key, north), (north, mallory.key), (mallory.key, mallory.key)):
        pairs = [(k, v) for key in order for k, v in headers(key).items() if k == FLEET_HTTP_PUBLIC_KEY_HEADER]
        pairs += [(k, v) for k, v in headers(north).items() if k != FLEET_HTTP_PUBLIC_KEY_HEADER]
        with mallory.client() as client:
            assert client.post("/v1/fleet/pull-messages", content=b"", headers=pairs).status_code == 403


def active(mallory: fake_site.Identity) -> int:
    """Mallory's own node id; it stays active over the module."""
    file = mallory.folder / "node_id"
    if not file.exists():
        request = ActivateNodeRequest(public_key=public_key_to_bytes(mallory.key.public_key()), heartbeat_interval=1800)
        with contextlib.closing(mallory.fleet()) as fleet:
            file.write_text(str(fleet.ActivateNode(request).node_id))
    return int(file.read_text())


def forged(run: int, source: int, target: int, reply_to: str) -> PushMessagesRequest:
    zeros = ArrayRecord({"memory.rows": Array(np.zeros((3, 4), np.float32))})
    content = RecordDict({"arrays": zeros, "plan": ConfigRecord({"text": "{}", "signature": "00"})})
    metadata = Metadata(
        run_id=run, message_id="", src_node_id=source, dst_node_id=target, reply_to_message_id=reply_to, group_id="666",
        created_at=time.time(), ttl=600.0, message_type="train",
    )  # fmt: skip
    message = make_message(content=content, metadata=metadata)
    message.metadata.__dict__["_message_id"] = message.object_id
    with no_object_id_recompute():
        return PushMessagesRequest(
            messages_list=[message_to_proto(remove_content_from_message(message))],
            message_object_trees=[get_object_tree(message)],
            clientapp_runtime_list=[0.0],
        )


@pytest.mark.parametrize(
    "case", ["order from the coordinator", "reply of another site", "order to another site", "garbage", "empty"]
)
def test_a_forged_sender_is_refused(f: fed.Federation, mallory: fake_site.Identity, case: str) -> None:
    me, victim, run = active(mallory), int((f.work / "north" / "node_id").read_text()), 1
    request = {
        "order from the coordinator": lambda: forged(run, 1, victim, ""),
        "reply of another site": lambda: forged(run, victim, 1, "a" * 64),
        "order to another site": lambda: forged(run, me, victim, ""),
        "garbage": PushMessagesRequest,
        "empty": PushMessagesRequest,
    }[case]()
    request.node.node_id = me
    body = b"\xff\xff\xff" if case == "garbage" else request.SerializeToString()
    with mallory.client() as client:
        assert client.post("/v1/fleet/push-messages", content=body, headers=headers(mallory.key)).status_code == 403
    assert refusals(f, "forged_sender")[-1]["site"] == "mallory"
    assert f.site_events("north", "plan") == []


def test_a_body_beyond_the_limit_and_a_tree_of_many_objects_are_refused(
    f: fed.Federation, mallory: fake_site.Identity
) -> None:
    with mallory.client() as client:
        try:
            answer = client.post(
                "/v1/fleet/push-object", content=bytes(9 << 20), headers=headers(mallory.key)
            ).status_code
        except httpx.WriteError:  # the door closed while the body was still on its way
            answer = 413
        assert answer == 413
        request = forged(1, active(mallory), 1, "a" * 64)
        request.node.node_id = active(mallory)
        tree: ObjectTree = request.message_object_trees[0]
        for n in range(100):
            tree.children.add().object_id = f"{n:064x}"
        answer = client.post(
            "/v1/fleet/push-messages", content=request.SerializeToString(), headers=headers(mallory.key)
        ).status_code
        assert answer == 413
    assert refusals(f, "too_large")
    assert refusals(f, "too_many_objects")


def test_many_equal_refusals_do_not_fill_the_audit(f: fed.Federation, mallory: fake_site.Identity) -> None:
    before = len(f.audit())
    with mallory.client() as client:
        for _ in range(30):
            assert client.post("/v1/fleet/pull-messages", content=b"", headers=KIND).status_code == 403
    assert len(f.audit()) - before <= 2


def test_a_revoked_site_is_locked_out_at_once_even_on_an_open_connection(f: fed.Federation) -> None:
    f.enrol("eve")
    eve = fake_site.Identity(f.work / "eve")
    with eve.client() as client:

        def call() -> int:
            return client.post("/v1/fleet/pull-messages", content=b"", headers=headers(eve.key)).status_code

        assert call() == 401  # enrolled while the coordinator runs: Flower answers, which does not know the node yet
        assert eve.ask("Status").federation == "derm"
        fed.server("sites", "revoke", "eve", "--config", f.folder.config)
        assert call() == 403
        with pytest.raises(grpc.RpcError) as raised:
            eve.ask("Status")
        assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "eve" not in json.loads(fed.server("status", "--json", "--config", f.folder.config).stdout)["sites"]


def test_an_old_certificate_does_not_open_for_a_new_key_of_the_same_name(f: fed.Federation) -> None:
    f.enrol("oscar")
    old = fake_site.Identity(f.work / "oscar")
    context = old.tls()
    fed.server("sites", "revoke", "oscar", "--config", f.folder.config)
    (f.work / "oscar").rename(f.work / "oscar-old")
    f.enrol("oscar")
    new = fake_site.Identity(f.work / "oscar")
    assert new.ask("Status").federation == "derm"
    with httpx.Client(base_url=old.url, verify=context, trust_env=False) as client:
        assert client.post("/v1/fleet/pull-messages", content=b"", headers=headers(new.key)).status_code == 403
    identity = grpc.ssl_channel_credentials(
        (f.work / "oscar" / "ca.pem").read_bytes(),
        (f.work / "oscar-old" / "keys" / "site.key").read_bytes(),
        (f.work / "oscar-old" / "certificate.pem").read_bytes(),
    )
    with grpc.secure_channel(f"localhost:{f.port + 1}", identity, options=(("grpc.enable_http_proxy", 0),)) as line:
        with pytest.raises(grpc.RpcError) as raised:
            line.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)
        assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
