"""A round of any kind as an ordinary Flower strategy: orders out, noised sums in, the kind's result of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from sgps.memory import Array
from sgps.plan import Plan, SignedPlan
from sgps.release import Release
from sgps_server.kinds import Result, Sent, result
from sgps_server.replies import Accepted, Rejected, check, receipt_of

MakePlan = Callable[[int, Sequence[str]], tuple[Plan, SignedPlan, Mapping[str, Array]]]
Sites = Callable[[], Mapping[int, tuple[str, str]]]
_HEADER = 1024  # bytes that an array takes beside its numbers


class RoundStrategy(Strategy):
    """Every order carries the same signed plan and the same arrays to start from.

    make_plan: (round, participants) -> plan, signed, and its start. sites: node id -> (site name, registered public key) of those that
    may contribute. release: the one that rounds start from. pooled: (round, site) -> what was accepted before. outcome: of the last
    round that was aggregated.
    """

    def __init__(
        self, make_plan: MakePlan, sites: Sites, release: Release, most_patients: int,
        pooled: Mapping[tuple[int, str], Sent] | None = None,
    ) -> None:  # fmt: skip
        self._make_plan, self._sites, self._most_patients = make_plan, sites, most_patients
        self.release = release
        self.start_arrays = to_record(release.memory().arrays())
        self.pooled = dict(pooled or {})
        self.plan: Plan | None = None
        self.outcome: Result | None = None
        self._signed: SignedPlan | None = None
        self._start: Mapping[str, Array] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Orders for every site that is online and has not contributed to this round. `arrays` and `config` are not sent: what a round
        starts from is its kind's, and the plan says all."""
        known = self._sites()
        here = {
            n: known[n][0] for n in grid.get_node_ids() if n in known and (server_round, known[n][0]) not in self.pooled
        }
        if not here:
            return []
        self.issue(server_round, sorted(here.values()))
        return [self.order(node) for node in sorted(here, key=lambda n: here[n])]

    def orders(self, server_round: int, grid: Grid) -> list[Message]:
        """`configure_train` for our own loop."""
        return list(self.configure_train(server_round, self.start_arrays, ConfigRecord(), grid))

    def issue(self, server_round: int, sites: Sequence[str]) -> None:
        """Make the plan that orders carry and replies answer."""
        self.plan, self._signed, self._start = self._make_plan(server_round, sites)

    def order(self, node: int) -> Message:
        """The current plan as a message for one node. Raises Rejected when there is no plan."""
        if self.plan is None or self._signed is None:
            raise Rejected("no_plan")
        signed = ConfigRecord({"text": self._signed.text, "signature": self._signed.signature})
        return Message(
            RecordDict({"arrays": to_record(self._start), "plan": signed}),
            dst_node_id=node,
            message_type=MessageType.TRAIN,
            group_id=str(self.plan.round),
            ttl=self.plan.deadline - self.plan.issued,
        )

    def accept(self, reply: Message | None) -> Accepted:
        """Check one reply to the current plan and keep its contribution. Raises Rejected."""
        if reply is None or self.plan is None:
            raise Rejected("unreadable")
        if reply.has_error():
            raise Rejected("error")
        record, fields = records(reply.content)
        site, key = self.sender(reply, fields)
        if site not in self.plan.sites:
            raise Rejected("not_a_participant")
        shapes = {name: tuple(a.shape) for name, a in self._start.items()}
        try:
            arrays = decode(record, shapes)
        except (
            Rejected
        ) as error:  # a payload that makes no sense has left the site all the same: its receipt goes into the echo
            receipt = receipt_of(fields) if fields.get("plan") == self.plan.sha256() else ""
            raise Rejected(error.code, receipt=receipt) from None
        issued = {r: sent.terms for (r, _), sent in self.pooled.items() if r != self.plan.round}.values()
        accepted = check(site, key, self.plan, shapes, arrays, fields, self._most_patients, issued)
        self.pooled[(accepted.round, accepted.site)] = accepted.sent
        return accepted

    def sender(self, reply: Message, fields: Mapping[str, str | int]) -> tuple[str, str]:
        """Name and registered key of the site that sent a reply: the node's, which the gate ties to its certificate."""
        return self._sites().get(reply.metadata.src_node_id, ("", ""))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check what has not been accepted yet, then the result of the round. None when it has no contribution."""
        for reply in replies:
            try:
                self.accept(reply)
            except Rejected:
                continue
        self.outcome = result(self.release, server_round, self.pooled)
        if self.outcome is None:
            return None, None
        count = sum(r == server_round for r, _ in self.pooled)
        return to_record(self.outcome.arrays), MetricRecord({"replies": count})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: an evaluation at a site would be one more thing that leaves it."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        """Nothing to log: the coordinator reports its rounds itself."""


def to_record(arrays: Mapping[str, Array]) -> ArrayRecord:
    return ArrayRecord({name: FlowerArray(array) for name, array in arrays.items()})


def records(content: RecordDict) -> tuple[ArrayRecord, dict[str, str | int]]:
    """A reply's arrays, not decoded yet, and its fields. Raises Rejected."""
    if set(content) != {"arrays", "reply"}:
        raise Rejected("records")
    record, config = content["arrays"], content["reply"]
    if not isinstance(record, ArrayRecord) or not isinstance(config, ConfigRecord):
        raise Rejected("records")
    fields: dict[str, Any] = dict(config.items())
    if any(isinstance(v, bool) or not isinstance(v, str | int) for v in fields.values()):
        raise Rejected("fields")
    return record, fields


def decode(record: ArrayRecord, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Plain arrays of the names of `shapes`. Raises Rejected.

    Flower decodes an array when it is asked for, from bytes that a site chose: sizes are compared first, and any error of the
    decoder is the site's.
    """
    arrays: dict[str, Array] = {}
    for name, item in record.items():
        if name not in shapes:
            raise Rejected("names")
        if len(item.data) > 8 * math.prod(shapes[name]) + _HEADER:
            raise Rejected("shape")
        try:
            arrays[name] = item.numpy()
        except Exception:  # noqa: BLE001
            raise Rejected("unreadable") from None
        if not isinstance(arrays[name], np.ndarray):
            raise Rejected("unreadable")
    return arrays
