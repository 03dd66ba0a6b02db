"""Flower 1.41 as `sgps_server.flower_link` takes it: what must hold before the pin moves. Whole rounds over sockets are in
tests/e2e/test_server_rounds.py."""

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute

from sgps.errors import ConfigError
from sgps_server import flower_link
from sgps_server.flower_link import FLEET, Link, Roster, build_app, lost
from sgps_server.pki import public_pem


def pem() -> str:
    return public_pem(ec.generate_private_key(ec.SECP384R1()).public_key())


@pytest.fixture(scope="module")
def flower() -> tuple[Any, Any]:
    return build_app()


@pytest.fixture(scope="module")
def link(flower: tuple[Any, Any]) -> Iterator[Link]:
    found = Link(flower[1])
    yield found
    found.close()


@pytest.fixture
def node(flower: tuple[Any, Any]) -> int:
    found = Roster(flower[1]).admit(f"site-{time.monotonic_ns()}", pem())
    assert flower[1].activate_node(found, 10)
    return found


def order(node: int) -> Message:
    zeros = ArrayRecord({"memory.rows": Array(np.zeros((3, 4), np.float32))})
    content = RecordDict({"arrays": zeros, "plan": ConfigRecord({"text": "{}"})})
    return Message(content, dst_node_id=node, message_type=MessageType.TRAIN, group_id="1", ttl=60.0)


def reply(state: Any, node: int, value: float) -> tuple[Message, Message]:
    """What a site does: take the order, make the answer. (order's head, reply)."""
    (head,) = state.get_message_ins(node, 1)
    answer = Message(RecordDict({"arrays": ArrayRecord({"x": Array(np.full(5, value, np.float32))})}), reply_to=head)
    answer.metadata.__dict__["_message_id"] = answer.object_id
    return head, answer


def store(state: Any, answer: Message, first: int | None = None) -> Callable[[], None]:
    """What the Fleet API does with it: head and tree, then objects. Stores the `first` of them; the result stores the rest."""
    run = answer.metadata.run_id
    session = state.start_session(run)
    with no_object_id_recompute():
        taken, missing = state.store_message_and_object_tree(
            remove_content_from_message(answer), get_object_tree(answer), session
        )
        parts = {name: part.deflate() for name, part in get_all_nested_objects(answer).items() if name in missing}
    assert taken
    names = list(parts)

    def put(chosen: list[str]) -> None:
        for name in chosen:
            state.store_object(run, session, name, parts[name])

    put(names[:first])
    return lambda: put(names[first:])


def test_the_pin_and_the_switches() -> None:
    assert version("flwr").startswith("1.41.")
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


def test_the_eight_calls_exist_and_the_app_has_many_that_no_site_may_reach(flower: tuple[Any, Any]) -> None:
    paths = set(flower[0].openapi()["paths"])
    assert paths >= FLEET
    assert len(FLEET) == 8
    assert any(p.startswith("/v1/control/") for p in paths)


def test_a_variable_that_opens_flower_further_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
    with pytest.raises(ConfigError, match="must not be set"):
        build_app()


def test_a_link_is_a_grid_whose_nodes_are_those_that_beat(link: Link, node: int) -> None:
    assert isinstance(link, Grid)
    assert node in set(link.get_node_ids())


def test_an_order_arrives_and_its_reply_comes_back_once_complete(
    flower: tuple[Any, Any], link: Link, node: int
) -> None:
    state = flower[1]
    (name,) = link.push_messages([order(node)])
    assert link.collect([name]) == []
    _, answer = reply(state, node, 7.0)
    rest = store(state, answer, first=1)  # Flower hands a reply out before its objects have come
    assert link.collect([name]) == []
    rest()
    ((found, message),) = link.collect([name])
    assert found == name
    assert message is not None
    assert message.content["arrays"]["x"].numpy().tolist() == [7.0] * 5
    assert message.metadata.src_node_id == node
    assert link.collect([name]) == []


def test_a_reply_of_bytes_that_mean_nothing_is_collected_as_unreadable(
    flower: tuple[Any, Any], link: Link, node: int
) -> None:
    (name,) = link.push_messages([order(node)])
    head, answer = reply(flower[1], node, 1.0)
    assert (
        flower_link._inflate(answer.object_id, head, dict.fromkeys(get_all_nested_objects(answer), b"nonsense")) is None
    )
    link.withdraw(name)


def test_a_withdrawn_order_cannot_be_fetched(flower: tuple[Any, Any], link: Link, node: int) -> None:
    (name,) = link.push_messages([order(node)])
    link.withdraw(name)
    assert flower[1].get_message_ins(node, 1) == []


def test_a_clock_that_jumps_ends_no_run(
    flower: tuple[Any, Any], link: Link, node: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a machine that slept: it is the same to whoever looks at the clock on the wall."""
    for module in ("supercore.corestate.in_memory_corestate", "server.superlink.linkstate.in_memory_linkstate"):
        monkeypatch.setattr(f"flwr.{module}.now", lambda: datetime.now(UTC) + timedelta(hours=1))
    assert flower[1].get_task_by_token("whatever makes Flower look for claims that lapsed") is None
    assert link.push_messages([order(node)])


def test_a_site_that_stopped_beating_is_reported_as_lost(flower: tuple[Any, Any], link: Link) -> None:
    silent = Roster(flower[1]).admit("silent", pem())
    flower[1].activate_node(silent, 0.2)
    (name,) = link.push_messages([order(silent)])
    time.sleep(1.0)
    ((found, message),) = link.collect([name])
    assert found == name
    assert message is not None
    assert lost(message)
    assert silent not in set(link.get_node_ids())


def test_a_site_put_out_of_the_roster_is_no_node_any_more(flower: tuple[Any, Any], link: Link) -> None:
    roster, key = Roster(flower[1]), pem()
    out = roster.admit("gone", key)
    assert roster.admit("gone", key) == out
    flower[1].activate_node(out, 10)
    roster.sync({})
    assert out not in set(link.get_node_ids())
    assert roster.admit("gone", pem()) != out


def test_messages_carry_what_the_gate_looks_at(flower: tuple[Any, Any], link: Link, node: int) -> None:
    from flwr.common.serde import message_to_proto

    (name,) = link.push_messages([order(node)])
    _, answer = reply(flower[1], node, 1.0)
    with no_object_id_recompute():
        request = PushMessagesRequest(
            messages_list=[message_to_proto(remove_content_from_message(answer))],
            message_object_trees=[get_object_tree(answer)],
        )
    request.node.node_id = node
    assert flower_link.honest_sender(request.SerializeToString())
    assert flower_link.few_objects(request.SerializeToString())
    request.node.node_id = node + 1
    assert not flower_link.honest_sender(request.SerializeToString())
    link.withdraw(name)
