"""Everything the site uses of Flower's internals. Written for flwr 1.41: tests/contract/test_flower_client.py guards the pin.

There is no call for an app bundle here, and no code path that would run one.
"""

import ssl
from collections.abc import Callable, Mapping
from typing import Any

from sgps_client.offline import switch_off

switch_off()  # before flwr is imported

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from sgps.errors import NetworkError, SgpsError
from sgps_client.tls import TIMEOUT, explain

BEAT = 10  # seconds; the smallest that Flower takes. A silent site counts as gone after two of them
OBJECTS, OBJECT_BYTES, ORDER_BYTES = (
    1000,
    16 << 20,
    64 << 20,
)  # most objects of an order, bytes of one answer, bytes in all
PULL_SECONDS = 120.0


class NodeUnknown(NetworkError):
    """401: the coordinator started afresh, so the node id is void."""


class NotEnrolled(NetworkError):
    """403: the registry does not hold this site's certificate and key."""


class StillOnline(NetworkError):
    """412: the node of an earlier process has not lapsed yet."""


class Withdrawn(SgpsError):
    """The order makes no sense or is not there any more: nothing to answer."""


class Fleet:
    """The Fleet calls of one site. Trouble on the way is a NetworkError; trying again is the caller's business."""

    def __init__(self, url: str, tls: ssl.SSLContext, key: EllipticCurvePrivateKey) -> None:
        self.url, self.node_id = url, 0
        self._public = public_key_to_bytes(key.public_key())
        self._api = FleetHttpClient(
            url, interceptors=[NodeAuthHttpInterceptor(key, key.public_key())], verify=tls, timeout=TIMEOUT
        )
        self._api._client.follow_redirects = False  # a coordinator has no business sending a site elsewhere
        self._api._client.headers["accept-encoding"] = "identity"
        self._api._client.event_hooks = {"response": [_bounded]}

    @property
    def _node(self) -> Node:
        return Node(node_id=self.node_id)

    def activate(self) -> int:
        """A new node id."""
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=BEAT)
        self.node_id = int(self._call(self._api.ActivateNode, request).node_id)
        return self.node_id

    def adopt(self, node_id: int) -> None:
        """Go on as a node that is active already. Flower would refuse to activate it until it has lapsed."""
        self._call(
            self._api.SendNodeHeartbeat, SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=BEAT)
        )
        self.node_id = node_id

    def heartbeat(self) -> None:
        self._call(self._api.SendNodeHeartbeat, SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=BEAT))

    def deactivate(self) -> None:
        """Say goodbye, so that the coordinator need not wait for silence."""
        self._call(self._api.DeactivateNode, DeactivateNodeRequest(node_id=self.node_id))
        self.node_id = 0

    def next(self) -> bytes:
        """The head of the next order, or b"". Flower delivers it once only: put it on disk."""
        response = self._call(self._api.PullMessages, PullMessagesRequest(node=self._node))
        return bytes(response.SerializeToString()) if response.messages_list else b""

    def open(self, raw: bytes) -> Message:
        """Fetch the objects of an order and check every hash: `pull_objects` alone does not. Raises Withdrawn."""
        try:
            response = PullMessagesResponse.FromString(raw)
            head, tree = message_from_proto(response.messages_list[0]), response.message_object_trees[0]
            ids = [node.object_id for node in iterate_object_tree(tree)]
            if len(ids) > OBJECTS:
                raise Withdrawn("an order of too many objects", do="it was dropped")
            fetch = make_pull_object_fn_protobuf(self._api.PullObject, self._node, head.metadata.run_id)
            objects = pull_objects(ids, _limited(fetch), max_time=PULL_SECONDS, initial_backoff=0.1)
            if any(get_object_id(data) != name for name, data in objects.items()):
                raise Withdrawn("an object of the order does not match its hash", do="it was dropped")
            message = inflate_object_from_contents(head.metadata.message_id, objects)
        except (httpx.HTTPError, NetworkError) as error:
            raise self._explained(error) from error
        except ObjectPullError as error:
            raise Withdrawn("the coordinator has withdrawn the order", do="nothing to do") from error
        except Withdrawn:
            raise
        except Exception as error:  # bytes of an order can be anything; they must not stop the site
            raise Withdrawn(f"an order that cannot be read ({type(error).__name__})", do="it was dropped") from error
        if not isinstance(message, Message) or not message.has_content():
            raise Withdrawn("an order without content", do="it was dropped")
        message.metadata.__dict__["_message_id"] = head.metadata.message_id
        return message

    def answer(self, order: Message, reply: Message) -> None:
        """Send a reply. Its head takes the order's times, so that a second try is the very same message: Flower takes up the
        broken upload again, while it drops a second, different reply without an error."""
        run = order.metadata.run_id
        reply.metadata.created_at, reply.metadata.ttl = order.metadata.created_at, order.metadata.ttl
        reply.metadata.__dict__["_message_id"] = reply.object_id
        try:
            with no_object_id_recompute():
                head = PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[0.0],
                )
                taken = self._call(self._api.PushMessages, head)
                send = make_push_object_fn_protobuf(self._api.PushObject, self._node, run, taken.session_id)
                push_objects(get_all_nested_objects(reply), send, object_ids_to_push=set(taken.objects_to_push))
            done = ConfirmMessageReceivedRequest(
                node=self._node, run_id=run, message_object_id=order.metadata.message_id
            )
            self._call(self._api.ConfirmMessageReceived, done)
        except (httpx.HTTPError, ObjectPushError) as error:
            raise self._explained(error) from error

    def close(self) -> None:
        self._api.close()

    def _call(self, call: Any, request: Any) -> Any:
        try:
            return call(request)
        except (httpx.HTTPError, ValueError, OSError) as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> SgpsError:
        if isinstance(error, httpx.HTTPStatusError):
            status, text = error.response.status_code, error.response.text[:200]
            if status == 401:
                return NodeUnknown(
                    "the coordinator does not know this node any more", where=self.url, do="it is registered again"
                )
            if status == 403 and "2007" in text:
                return Withdrawn("the run is over", do="nothing to do")
            if status == 403:
                return NotEnrolled("this site is not enrolled or was revoked", where=self.url, do="ask the coordinator")
            if status == 412:
                return StillOnline(
                    "an earlier connection of this site has not lapsed yet", where=self.url, do="wait some seconds"
                )
        if isinstance(error, ObjectPushError):
            return NetworkError("the upload was cut", where=self.url, do="it is taken up again")
        return error if isinstance(error, NetworkError) else explain(error, self.url)


def _limited(fetch: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """`fetch` until the objects are larger than an order may be. Raises Withdrawn then."""
    sizes: list[int] = []

    def limited(name: str) -> bytes:
        data = fetch(name)
        sizes.append(len(data))
        if sum(sizes) > ORDER_BYTES:
            raise Withdrawn(f"an order of more than {ORDER_BYTES:,} bytes", do="it was dropped")
        return data

    return limited


def _bounded(response: httpx.Response) -> None:
    """Called before the body is read. What is packed may unpack to any size, so nothing packed is taken."""
    length, packed = response.headers.get("content-length", "0"), response.headers.get("content-encoding", "identity")
    chunked = "chunked" in response.headers.get("transfer-encoding", "")
    if not length.isdigit() or int(length) > OBJECT_BYTES or chunked or packed != "identity":
        raise NetworkError("an answer of unknown or too great length", where=response.url, do="tell the coordinator")


def run_app(app: ClientApp, message: Message, node_id: int, node_config: Mapping[str, str]) -> Message:
    """Calls the installed ClientApp in this process, as Flower would. Raises Withdrawn for an order that is not to train."""
    if message.metadata.message_type != MessageType.TRAIN:
        raise Withdrawn("an order of another kind than TRAIN", do="it was dropped")
    context = Context(
        run_id=message.metadata.run_id, node_id=node_id, state=RecordDict(), node_config={**node_config}, run_config={}
    )
    return app(message, context)
