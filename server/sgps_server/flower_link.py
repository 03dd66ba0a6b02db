"""Everything the coordinator uses of Flower's internals. Written for flwr 1.41: tests/contract/test_flower_server.py must pass
before the pin moves.

Flower's own FastAPI app and its LinkState live in this process. The app's lifespan is never started, so there is no child process,
no second port and no task token to steal; the rounds drive the LinkState directly. All of Flower's state is in memory: what must
survive a crash is in `checkpoint` and `registry`.
"""

import base64
import os
import threading
import time
from collections.abc import Iterable
from typing import Any

from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode, SubStatus
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.serverapp import Grid
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from sgps.errors import ConfigError, StateError

FLEET = {
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
}
"""The eight calls that a site needs. Not get-fab, not register-node, nothing of Control or Runtime."""
PUSH, ACTIVATE = "/v1/fleet/push-messages", "/v1/fleet/activate-node"
KEY_HEADER = FLEET_HTTP_PUBLIC_KEY_HEADER.encode()
MOST_OBJECTS = 64  # in one message; a `rows` reply has about eight
_POLL = 0.05
_LOST = {ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE}


def build_app() -> tuple[Any, Any]:
    """Flower's ASGI app and its LinkState. Raises ConfigError when the environment would end or open Flower's build."""
    for name in (
        "FLWR_OIDC_ENABLED",
        "FLWR_ENABLE_EVENT_LOG",
        "FLWR_INTERNAL_GRPC_CONTROL_API",
        "FLWR_INTERNAL_GRPC_FLEET_API",
    ):
        if os.environ.get(name):
            raise ConfigError("must not be set", where=name, do="unset it: it changes what Flower opens")
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        insecure=True,  # of Flower's own port, which is never opened: TLS is ours, in `door`
        certificates=None,
        superexec_auth_secret=os.urandom(32),
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=":flwr-in-memory:",
        isolation="process",
        runtime_dependency_install=False,
    )
    app = create_app(config, SuperLinkLifespan)
    return app, app.state.linkstate_factory.state()


def key_header(pem: str) -> bytes:
    """The header with which a site of this public key names itself."""
    return base64.b64encode(pem.encode())


def honest_sender(body: bytes) -> bool:
    """A site may only answer, and only as itself. Flower ties node.node_id to the key; this ties the message to both."""
    try:
        request = PushMessagesRequest.FromString(body)
    except DecodeError:
        return False
    heads = [m.metadata for m in request.messages_list]
    return bool(heads) and all(
        h.src_node_id == request.node.node_id and h.dst_node_id == SUPERLINK_NODE_ID and h.reply_to_message_id
        for h in heads
    )


def few_objects(body: bytes) -> bool:
    """Whether the messages announce no more objects than replies need."""
    trees: list[ObjectTree] = list(PushMessagesRequest.FromString(body).message_object_trees)
    count = 0
    while trees:
        count += 1
        if count > MOST_OBJECTS:
            return False
        trees.extend(trees.pop().children)
    return True


def lost(reply: Message) -> bool:
    """Whether Flower itself made this reply because the site is gone."""
    return reply.has_error() and reply.error.code in _LOST


class Roster:
    """Site names and Flower's node ids. Kept in step with the registry."""

    def __init__(self, state: Any) -> None:
        self._state, self._nodes, self._lock = state, {}, threading.Lock()  # type: Any, dict[str, tuple[str, int]], threading.Lock

    def admit(self, name: str, key: str) -> int:
        """The site's node id; made at the first call, made anew when its key changed."""
        with self._lock:
            known = self._nodes.get(name)
            if known and known[0] == key:
                return known[1]
            if known:
                self._state.delete_node(NOOP_FLWR_AID, known[1])
            node = int(self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key.encode(), 0, name=name))
            self._nodes[name] = (key, node)
            return node

    def sync(self, keys: dict[str, str]) -> None:
        """Enrol every site of `keys` and put out every other."""
        for name, key in keys.items():
            self.admit(name, key)
        with self._lock:
            for name in [n for n in self._nodes if n not in keys]:
                self._state.delete_node(NOOP_FLWR_AID, self._nodes.pop(name)[1])

    def names(self) -> dict[int, str]:
        with self._lock:
            return {node: name for name, (_, node) in self._nodes.items()}


class Link(Grid):
    """One Flower run, driven straight on the LinkState: the Grid that an ordinary Strategy talks to."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self._heads: dict[str, Message] = {}  # replies whose objects are still on their way
        self._id = state.create_run("sgps/rows", "1", "", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.MODEL)
        self._run = state.get_run_info(run_ids=[self._id])[0]
        self._task = self._run.primary_task_id
        if not (state.claim_task(self._task) and state.activate_task(self._task)):
            raise StateError("Flower did not start its run", where="flwr", do="check that flwr 1.41 is installed")
        # Flower ends a run whose claim has not been renewed for a minute, by the clock on the wall: one that was set, or a machine that
        # slept, would end the rounds. A run whose claim is gone lives as long as this process.
        state.task_token_to_task_id.pop(state.task_token_store.pop(self._task).token)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = self._task, self._id, SUPERLINK_NODE_ID

    def close(self) -> None:
        """End the run: sites that ask for orders are told that it is over."""
        self._state.finish_task(self._task, SubStatus.COMPLETED, "")

    def set_run(self, run: Run) -> None:
        """A link has one run for life. Raises StateError for another."""
        if run.run_id != self._id:
            raise StateError("a link cannot change its run", where="flwr", do="start again")

    @property
    def run(self) -> Run:
        return self._run  # type: ignore[no-any-return]  # LinkState carries no types here

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Sites whose heartbeat is not overdue."""
        return set(self._state.get_nodes(self._id))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Store messages and their objects for the sites to fetch. Raises StateError when Flower takes one not."""
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        session = self._state.start_session(self._id)
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            stored, missing = self._state.store_message_and_object_tree(
                remove_content_from_message(message), get_object_tree(message), session
            )
            objects = get_all_nested_objects(message)
            for name in missing:
                self._state.store_object(self._id, session, name, objects[name].deflate())
        if not stored:
            raise StateError("Flower did not take an order", where="flwr", do="check the log and start again")
        return message.metadata.message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are complete. One that makes no sense is left out; `collect` tells which."""
        return [reply for _, reply in self.collect(message_ids) if reply is not None]

    def collect(self, message_ids: Iterable[str]) -> list[tuple[str, Message | None]]:
        """Pairs (order, reply); the reply is None where a site sent something that cannot be read.

        Flower hands a reply out before its objects have arrived, so its head is kept until they are here. Whatever has been
        collected is withdrawn.
        """
        asked = set(message_ids) & self._state.get_message_ids_from_run_id(self._id)  # unknown ids would raise KeyError
        asked -= {head.metadata.reply_to_message_id for head in self._heads.values()}
        for head in self._state.get_message_res(asked, self._id) if asked else ():
            self._heads[head.metadata.message_id] = head
        done: list[tuple[str, Message | None]] = []
        store = self._state.object_store
        for name, head in list(self._heads.items()):
            order = head.metadata.reply_to_message_id
            if head.has_error():
                done.append((order, head))
            else:
                try:
                    parts = [t.object_id for t in iterate_object_tree(store.get_object_tree(name))]
                except NoObjectInStoreError:  # the upload stopped and Flower threw it away
                    del self._heads[name]
                    continue
                contents = {part: self._state.get_object(self._id, part) for part in parts}
                if not all(contents.values()):
                    continue
                done.append((order, _inflate(name, head, contents)))
            self.withdraw(order)
            store.delete(name)
            del self._heads[name]
        return done

    def withdraw(self, order: str) -> None:
        """A site that comes back late cannot fetch the order any more and spends nothing for it."""
        self._state.delete_messages({order})
        self._state.object_store.delete(order)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        waiting, replies = set(self.push_messages(messages)), []
        end = time.monotonic() + timeout if timeout is not None else None
        while waiting and (end is None or time.monotonic() < end):
            for order, reply in self.collect(waiting):
                waiting.discard(order)
                if reply is not None:
                    replies.append(reply)
            time.sleep(_POLL)
        for order in waiting:
            self.withdraw(order)
        return replies


def _inflate(name: str, head: Message, contents: dict[str, bytes]) -> Message | None:
    """A site can send anything, and nothing that it sends may stop the rounds: so every error of Flower's decoders is caught."""
    try:
        reply = inflate_object_from_contents(name, contents)
    except Exception:  # noqa: BLE001
        return None
    if not isinstance(reply, Message) or reply.metadata.src_node_id != head.metadata.src_node_id:
        return None
    return reply
