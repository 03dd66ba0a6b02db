"""Every byte that leaves a site in a whole run, recorded by a relay that ends TLS, decoded to the last one, and held against the
allow-list; and replies whose form no private record decides."""

import csv
import dataclasses
import socket
import subprocess
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import federation as fed
import site_bench
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from flwr.app import Message
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from relay import Relay, Request, requests

from sgps.release import FILES, Release
from sgps.signing import fingerprint, load_private, load_public
from sgps.wire import releases_pb2
from sgps_client import enrolment
from sgps_client.config import Site
from sgps_client.round import open_ledger
from sgps_privacy import egress
from sgps_privacy.errors import CODES

FLEET: dict[str, Any] = {
    "/v1/fleet/activate-node": fleet_pb2.ActivateNodeRequest,
    "/v1/fleet/deactivate-node": fleet_pb2.DeactivateNodeRequest,
    "/v1/fleet/send-node-heartbeat": heartbeat_pb2.SendNodeHeartbeatRequest,
    "/v1/fleet/pull-messages": fleet_pb2.PullMessagesRequest,
    "/v1/fleet/pull-object": message_pb2.PullObjectRequest,
    "/v1/fleet/push-messages": fleet_pb2.PushMessagesRequest,
    "/v1/fleet/push-object": message_pb2.PushObjectRequest,
    "/v1/fleet/confirm-message-received": message_pb2.ConfirmMessageReceivedRequest,
}
HEADERS = {
    "host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length", "flwr-public-key",
    "flwr-timestamp", "flwr-signature",
}  # fmt: skip
CALLS: dict[str, Any] = {
    "/sgps.releases.v1.Releases/Status": releases_pb2.StatusRequest,
    "/sgps.releases.v1.Releases/List": releases_pb2.ListRequest,
    "/sgps.releases.v1.Releases/Inspect": releases_pb2.InspectRequest,
    "/sgps.releases.v1.Releases/Pull": releases_pb2.PullRequest,
    "/sgps.releases.v1.Releases/AuditHead": releases_pb2.AuditHeadRequest,
}
SECRETS = (
    "Jane",
    "jane",
    "melanoma",
    "patient 0",
    "patient 1",
    "p0-0",
    "p4-1",
    ".png",
    "akiec",
    "vasc",
    "table.csv",
)
# Exceptions thrown on purpose, with a name: by the loss on every record, and by the engine after the charge.
LOSS_RAISES = """
import dataclasses
from sgps_client import kinds
def loss(release, names):
    def fails(theta, record):
        raise RuntimeError("Jane Doe, images/Jane-Doe-0.png: melanoma")
    return fails
kinds.WORK = {**kinds.WORK, "rows": dataclasses.replace(kinds.WORK["rows"], loss=loss)}
"""
ENGINE_RAISES = """
from sgps_privacy.engine import PrivateRound
def run(*_):
    raise RuntimeError("Jane Doe, images/Jane-Doe-0.png: melanoma")
PrivateRound.run = run
"""
START = "import sys; from sgps_client.cli import main; sys.argv = ['sgps-client', 'start', '--config', sys.argv[1], '--json']; main()"


# --- the sites: the same five patients, but for what the name says ------------------------------------------------------


def another_patient(folder: Path) -> None:
    for i in range(2):
        noise = np.random.default_rng(99 + i).integers(0, 255, (700, 500, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"p2-{i}.png")


def other_numbers(folder: Path) -> None:
    """Four more pictures of one patient, of other sizes and other classes, and a patient fewer."""
    lines = (folder / "table.csv").read_text().splitlines()
    rows = [row for row in csv.reader(lines) if row[1] != "patient 4"]
    for i in range(4):
        name = f"p1-{7 + i}"
        noise = np.random.default_rng(i).integers(0, 255, (90 + 40 * i, 200, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{name}.png")
        rows.append([name, "patient 1", site_bench.CLASSES[i % 3]])
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def a_failing_record(folder: Path) -> None:
    """The pictures of a patient that cannot be read, in files with her name."""
    text = (folder / "table.csv").read_text().replace("patient 3", "Jane Doe").replace("p3-", "Jane-Doe-")
    (folder / "table.csv").write_text(text)
    for i in range(2):
        (folder / "images" / f"p3-{i}.png").unlink()
        (folder / "images" / f"Jane-Doe-{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n Jane Doe")


VARIANTS = {
    "north": (None, ""),
    "south": (another_patient, ""),
    "coast": (other_numbers, ""),
    "brook": (a_failing_record, LOSS_RAISES),
    "gorge": (None, ENGINE_RAISES),
}
ANSWERING = ("north", "south", "coast", "brook")


def enrolled(f: fed.Federation, name: str, port: int) -> Site:
    """A site that finds its coordinator behind the relay on `port`."""
    folder = f.work / name
    request = enrolment.request(folder, name)
    fed.server("sites", "approve", request, "--config", f.folder.config, "--out", folder / "site.kit")
    enrolment.install(folder, folder / "site.kit")
    mark = fingerprint(load_public(f.folder.keys / "plan.pub"))
    site_bench.draw_patients(folder)
    bench = site_bench.Bench(folder, load_private(f.folder.keys / "plan.key"), mark)
    bench.write(url=f"https://localhost:{port}", site=name, images_per_patient=20)
    change = VARIANTS[name][0]
    if change is not None:
        change(folder)
    return bench.site


@dataclass(frozen=True)
class Run:
    relays: dict[str, Relay]
    sites: dict[str, Site]
    work: Path
    release: Release


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One round, each site behind a relay of its own."""
    work = tmp_path_factory.mktemp("wire")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(fed.tiny_release, "make", lambda target: site_bench.make_release(target, None))
        f = fed.Federation(work, answer_after=12, patience=30, quorum=4, wait_for=5, deadline_after=120)
        stack.callback(f.close)
        sites, relays = dict[str, Site](), dict[str, Relay]()
        for name in VARIANTS:
            port = fed.free_port()
            sites[name] = enrolled(f, name, port)
            relays[name] = stack.enter_context(Relay(work / name, f.folder.ca, port, f.port))
        f.start("--linger", 180)
        for name, (_, fault) in VARIANTS.items():
            with (work / name / "out.log").open("ab") as log:
                command = [sys.executable, "-c", fault + START, str(sites[name].file)]
                f.processes.append(subprocess.Popen(command, env=fed.environment(), stdout=log, stderr=log))
        for process in f.processes[1:]:
            f.wait(lambda p=process: p.poll() is not None, 250)
        assert [p.returncode for p in f.processes[1:]] == [0] * 5
        release = Release.open(f.folder.releases / "0001", key=load_public(f.folder.keys / "plan.pub"))
        yield Run(relays, sites, work, release)


pytestmark = [pytest.mark.enable_socket, pytest.mark.slow, pytest.mark.timeout(600)]


# --- decoding ----------------------------------------------------------------------------------------------------------


def parsed(request: Request) -> Any:
    """A body as the message it has to be, without a field that the message does not know."""
    message = FLEET[request.path].FromString(request.body)
    size = message.ByteSize()
    message.DiscardUnknownFields()
    assert message.ByteSize() == size == len(request.body)
    return message


def of(relay: Relay, path: str) -> list[Any]:
    return [parsed(r) for r in relay.requests() if r.path == f"/v1/fleet/{path}"]


@dataclass(frozen=True)
class Sent:
    """A reply as it left. objects: hash -> bytes. head: the message that announced them."""

    head: Any
    objects: dict[str, bytes]
    message: Message

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.message.content.config_records["reply"])

    @property
    def arrays(self) -> dict[str, Any]:
        return {n: a.numpy() for n, a in self.message.content.array_records["arrays"].items()}

    def form(self) -> list[int]:
        """Lengths of all that travelled, but for two that no record decides: a DER signature is a byte shorter now and then, by its
        key, and so is the name that the coordinator gave to a node, in the head and in the object of the message itself."""
        signature, (tree,) = str(self.fields["signature"]).encode(), self.head.message_object_trees
        bodies = [data for name, data in self.objects.items() if name != tree.object_id]
        head = type(self.head)()
        head.CopyFrom(self.head)
        head.node.Clear()
        for message in head.messages_list:
            message.metadata.src_node_id = message.metadata.dst_node_id = 0
        return [head.ByteSize(), *sorted(len(data.replace(signature, b"") if signature else data) for data in bodies)]


def sent(relay: Relay) -> Sent:
    """The one reply of a site."""
    pushes = {p.SerializeToString(deterministic=True): p for p in of(relay, "push-messages")}
    (head,) = pushes.values()
    objects = {p.object_id: p.object_content for p in of(relay, "push-object")}
    assert all(get_object_id(data) == name for name, data in objects.items())
    (tree,) = head.message_object_trees
    assert {node.object_id for node in iterate_object_tree(tree)} == set(objects)
    message = inflate_object_from_contents(tree.object_id, dict(objects))
    assert isinstance(message, Message)
    return Sent(head, objects, message)


def orders(relay: Relay) -> dict[str, Any]:
    """Metadata of the orders that a site got, by the message's id."""
    found = {}
    for answer in relay.answers("/v1/fleet/pull-messages"):
        for message in fleet_pb2.PullMessagesResponse.FromString(answer).messages_list:
            found[message.metadata.message_id] = message.metadata
    return found


# --- the claims --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_request_is_one_of_eight_calls_with_known_headers_and_fields(run: Run, name: str) -> None:
    found = run.relays[name].requests()
    assert len(found) > 10
    for request in found:
        assert request.line == f"POST {request.path} HTTP/1.1" and request.path in FLEET
        assert set(request.headers) <= HEADERS
        assert request.headers["host"].startswith("localhost:")
        parsed(request)
    for pull in of(run.relays[name], "pull-messages"):
        assert not pull.message_ids


@pytest.mark.parametrize("name", VARIANTS)
def test_calls_for_releases_name_releases_and_nothing_of_the_site(run: Run, name: str) -> None:
    calls = run.relays[name].calls
    assert {c.method for c in calls} <= set(CALLS)
    assert any(c.method.endswith("/Pull") for c in calls)
    names = {"0000", "0001"}
    for call in calls:
        assert set(call.metadata) <= {"user-agent"} and call.metadata["user-agent"].startswith("grpc-python/")
        for data in call.messages:
            message = CALLS[call.method].FromString(data)
            message.DiscardUnknownFields()
            assert message.ByteSize() == len(data)
            if call.method.endswith("/Pull"):
                assert message.release.name in names and message.file in FILES
            if call.method.endswith("/Inspect"):
                assert message.name in names


@pytest.mark.parametrize("name", VARIANTS)
def test_a_reply_is_the_allow_list_and_has_no_byte_beside_it(run: Run, name: str) -> None:
    found = sent(run.relays[name])
    assert set(found.message.content) == {"arrays", "reply"}
    reply = egress.Reply.from_parts(found.arrays, found.fields)
    assert reply.status == (egress.ACCEPTED if name in ANSWERING else "round_lost")
    assert reply.status == egress.ACCEPTED or (not found.arrays and reply.status in CODES)
    again = {key: each.deflate() for key, each in get_all_nested_objects(found.message).items()}
    assert again == found.objects  # what the decoder did not keep, it would not give back
    metadata = found.head.messages_list[0].metadata
    assert not found.head.messages_list[0].HasField("error") and list(found.head.clientapp_runtime_list) == [0.0]
    assert (metadata.message_type, metadata.group_id) == ("train", "1")  # the round, as in the order
    order, inner = orders(run.relays[name])[metadata.reply_to_message_id], found.message.metadata
    for known in (metadata, inner):
        assert (known.created_at, known.ttl) == (
            order.created_at,
            order.ttl,
        )  # a clock of the site's would tell how slow it was
    assert (inner.message_type, inner.group_id, inner.reply_to_message_id) == (
        "train",
        "1",
        metadata.reply_to_message_id,
    )
    if found.fields["statement"]:
        key = enrolment.load_key(run.sites[name].tls_key).public_key()
        text = str(found.fields["statement"]).encode()
        key.verify(bytes.fromhex(str(found.fields["signature"])), text, ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("name", ANSWERING)
def test_what_left_is_what_the_ledger_committed(run: Run, name: str) -> None:
    found = sent(run.relays[name])
    with open_ledger(run.sites[name]) as ledger:
        (charge,) = (e for e in ledger.history() if e["kind"] == "CHARGE")
        (commit,) = (e for e in ledger.history() if e["kind"] == "COMMIT")
        payload = ledger.outbox.read(charge["hash"])
    assert payload is not None
    reply = egress.Reply.from_parts(found.arrays, found.fields)
    assert egress.encode(dataclasses.replace(reply, receipt="")) == payload
    assert reply.receipt == commit["hash"]


def test_no_reply_tells_by_form_length_or_code_what_the_records_are(run: Run) -> None:
    """One patient another one, other numbers of pictures and patients, a record that fails and a loss that raises on all."""
    replies = {name: sent(run.relays[name]) for name in ANSWERING}
    first = replies["north"]
    for name, found in replies.items():
        assert found.form() == first.form(), name
        assert {n: a.shape for n, a in found.arrays.items()} == {n: a.shape for n, a in first.arrays.items()}
        assert {**found.fields, "receipt": "", "signature": ""} == {**first.fields, "receipt": "", "signature": ""}, (
            name
        )
    answers = ("push-messages", "push-object", "pull-object", "confirm-message-received")
    counts = {
        n: Counter(r.path for r in run.relays[n].requests() if r.path.rsplit("/")[-1] in answers) for n in ANSWERING
    }
    assert len({tuple(sorted(c.items())) for c in counts.values()}) == 1, counts
    arrays = [np.concatenate([a.ravel() for a in found.arrays.values()]) for found in replies.values()]
    assert all(not np.array_equal(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


@pytest.mark.parametrize("name", VARIANTS)
def test_no_name_no_label_no_path_and_no_exception_is_on_the_wire(run: Run, name: str) -> None:
    """The exceptions are in the site's own log, which shows that they were thrown."""
    everything = run.relays[name].sent()
    key = enrolment.load_key(run.sites[name].tls_key).public_key()
    for request in run.relays[name].requests():
        # Hundreds of signatures in letters hold any three of them by chance; what is one by the site's key, hides no name.
        stamp, signature = (request.headers[h].encode() for h in ("flwr-timestamp", "flwr-signature"))
        key.verify(b64decode(signature), stamp, ECDSA(hashes.SHA256()))
        everything = everything.replace(signature, b"")
    assert b"memory.rows" in everything or name not in ANSWERING  # it is the decrypted text that is searched
    for word in (*SECRETS, str(run.work), "Traceback", "RuntimeError"):
        for form in (word.encode(), word.encode("utf-16-le"), word.encode().hex().encode()):
            assert form not in everything, word
    host = socket.gethostname().encode()
    assert len(host) < 4 or host == b"localhost" or host not in everything
    pictures = [path.read_bytes()[40:72] for path in (run.work / name / "images").iterdir()]
    assert all(len(part) < 32 or part not in everything for part in pictures)
    log = (run.work / name / "log" / "client.jsonl").read_text()
    assert ("Jane Doe" in log) == (name == "gorge")  # a record that fails is the zero record, and nobody is told


def test_the_decoder_finds_a_byte_too_many() -> None:
    beat = heartbeat_pb2.SendNodeHeartbeatRequest(heartbeat_interval=10).SerializeToString()
    good = b"POST /v1/fleet/send-node-heartbeat HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s"
    (request,) = requests(good % (len(beat), beat))
    assert parsed(request).heartbeat_interval == 10
    for more in (b"Jane Doe", b"\r\n", b"GET / HTTP/1.1\r\nx-patient: Jane\r\n"):
        with pytest.raises(ValueError, match="cut off"):
            requests(good % (len(beat), beat) + more)
    unknown = beat + bytes([15 << 3 | 2, 4]) + b"Jane"  # field 15, which the message does not have
    (request,) = requests(good % (len(unknown), unknown))
    with pytest.raises(AssertionError):
        parsed(request)


def test_all_ends_with_a_release_of_the_four_that_answered(run: Run) -> None:
    assert run.release.manifest.rounds[0].sites == tuple(sorted(ANSWERING))
