"""A site for tests of the coordinator: real keys, real mutual TLS, Flower's Fleet calls, real noise, and faults on demand.

    python fake_site.py --folder SITE [--fault nan] [--patients 12]

It shares no code with the client, so that a mistake on one side is not made on both. SITE holds keys/site.key and site.kit. The
reply to a plan is written to SITE/outbox before it is sent, and sent again for every attempt. SITE/log.jsonl says what happened.
"""

import argparse
import hashlib
import json
import os
import ssl
import time
from pathlib import Path
from typing import Any

os.environ.update({"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"})

import grpc
import httpx
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import NameOID
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects, push_objects
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from safetensors.numpy import load, save

from sgps.memory import SHARE_COUNT, SHARE_ROW
from sgps.wire import releases_pb2
from sgps_privacy import egress, statement
from sgps_privacy.events import Event
from sgps_privacy.noise import Grid, discrete_gaussian
from sgps_privacy.terms import Terms

ROWS, COUNTS = "memory.rows", "memory.counts"
FAULTS = ("none", "nan", "shape", "name", "norm", "code", "signature", "facts", "budget", "silent")


def request(folder: Path, name: str) -> Path:
    """A new key and certificate request. Returns the request's path."""
    (folder / "keys").mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP384R1())
    (folder / "keys" / "site.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA384())
    path = folder / f"{name}.csr"
    path.write_bytes(csr.public_bytes(Encoding.PEM))
    return path


class Identity:
    """Key, certificate and CA of an enrolled site."""

    def __init__(self, folder: Path) -> None:
        self.kit = json.loads((folder / "site.kit").read_text())
        for name in ("ca", "certificate"):
            (folder / f"{name}.pem").write_text(self.kit[name])
        key = load_pem_private_key((folder / "keys" / "site.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.key, self.folder, self.site, self.url = key, folder, self.kit["site"], self.kit["url"]

    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        context.load_cert_chain(self.folder / "certificate.pem", self.folder / "keys" / "site.key")
        return context

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self.tls(), trust_env=False, timeout=10)

    def ask(self, name: str, /, **fields: Any) -> Any:
        """One call of the release service; a stream's answers as a list. Raises grpc.RpcError."""
        service = releases_pb2.DESCRIPTOR.services_by_name["Releases"]
        method = service.methods_by_name[name]
        request = getattr(releases_pb2, method.input_type.name)(**fields)
        host, port = self.url.removeprefix("https://").rsplit(":", 1)
        parts = (self.folder / "ca.pem", self.folder / "keys" / "site.key", self.folder / "certificate.pem")
        identity = grpc.ssl_channel_credentials(*(part.read_bytes() for part in parts))
        options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
        with grpc.secure_channel(f"{host}:{int(port) + 1}", identity, options=options) as line:
            kind = line.unary_stream if method.server_streaming else line.unary_unary
            found = kind(
                f"/{service.full_name}/{name}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=getattr(releases_pb2, method.output_type.name).FromString,
            )(request, timeout=20)
            return list(found) if method.server_streaming else found

    def fleet(self, node_key: ec.EllipticCurvePrivateKey | None = None) -> FleetHttpClient:
        key = node_key or self.key
        return FleetHttpClient(
            self.url, interceptors=[NodeAuthHttpInterceptor(key, key.public_key())], verify=self.tls(), timeout=20
        )


class FakeSite:
    def __init__(self, folder: Path, fault: str, patients: int) -> None:
        self.identity, self.folder, self.fault, self.patients = Identity(folder), folder, fault, patients
        (folder / "outbox").mkdir(exist_ok=True)
        self.api, self.node, self.beaten = self.identity.fleet(), None, 0.0

    def log(self, event: str, **fields: Any) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")

    def beat(self) -> None:
        if time.time() - self.beaten > 3:
            self.api.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=10))
            self.beaten = time.time()

    def run(self) -> None:
        """For ever: activate, pull, answer; whatever the coordinator's death does to a call, try again."""
        while True:
            try:
                if self.node is None:
                    key = public_key_to_bytes(self.identity.key.public_key())
                    found = self.api.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=10))
                    self.node = Node(node_id=found.node_id)
                    (self.folder / "node_id").write_text(str(found.node_id))
                    self.log("active", node=found.node_id)
                self.beat()
                pulled = self.api.PullMessages(PullMessagesRequest(node=self.node))
                if pulled.messages_list:
                    self.order(pulled)
            except httpx.HTTPStatusError as error:
                self.log("http", status=error.response.status_code)
                if error.response.status_code in (401, 412):
                    self.node = None
            except Exception as error:  # noqa: BLE001
                self.log("trouble", what=repr(error)[:200])
            time.sleep(0.2)

    def order(self, pulled: Any) -> None:
        head, tree = message_from_proto(pulled.messages_list[0]), pulled.message_object_trees[0]
        fetch = make_pull_object_fn_protobuf(self.api.PullObject, self.node, head.metadata.run_id)
        objects = pull_objects([t.object_id for t in iterate_object_tree(tree)], fetch, initial_backoff=0.1)
        message = inflate_object_from_contents(head.metadata.message_id, objects)
        message.metadata.__dict__["_message_id"] = head.metadata.message_id
        signed = message.content["plan"]
        load_pem_public_key(self.identity.kit["plan_key"].encode()).verify(
            bytes.fromhex(signed["signature"]), signed["text"].encode()
        )
        plan = json.loads(signed["text"])
        self.log(
            "plan",
            round=plan["round"],
            attempt=plan["attempt"],
            echo=plan["echo"].get(self.identity.site, ""),
            sites=plan["sites"],
        )
        if self.fault == "silent":
            return
        reply = self.reply(plan, message)
        while time.time() < plan["answer_at"]:
            self.beat()
            time.sleep(0.05)
        self.send(head, Message(reply, reply_to=message))

    def reply(self, plan: dict[str, Any], message: Message) -> RecordDict:
        from sgps.plan import Plan

        plan_hash = Plan.model_validate(plan).sha256()
        code = "f" * 64 if self.fault == "code" else plan["code"][0]
        if self.fault == "budget":
            arrays, fields = egress.refuse("budget", plan_id=plan_hash, code_hash=code).parts()
            return self.record(arrays, fields)
        box = self.folder / "outbox" / f"{plan_hash}.safetensors"
        if box.exists():
            self.log("resent", plan=plan_hash)
        else:
            box.write_bytes(save(self.noised(Terms.from_mapping(plan["terms"]), message)))
            self.log("made", plan=plan_hash)
        arrays, receipt = load(box.read_bytes()), hashlib.sha256(box.read_bytes()).hexdigest()
        terms = Terms.from_mapping(plan["terms"])
        sigma = terms.sigma * 2 if self.fault == "facts" else terms.sigma
        facts = statement.statement(
            terms if self.fault != "facts" else Terms.from_mapping({**plan["terms"], "sigma": sigma}),
            [Event(sigma, 1.0, 1)],
            delta=1e-5,
            cap=3.0,
            numbers=sum(a.size for a in arrays.values()),
            code_hash=code,
            plan_hash=plan_hash,
        )
        good = egress.accept(arrays, plan_id=plan_hash, code_hash=code, statement=facts, receipt=receipt)
        text = str(good.parts()[1]["statement"])
        signature = self.identity.key.sign(text.encode(), ec.ECDSA(hashes.SHA256(), deterministic_signing=True)).hex()
        if self.fault == "signature":
            signature = ec.generate_private_key(ec.SECP384R1()).sign(text.encode(), ec.ECDSA(hashes.SHA256())).hex()
        _, fields = good.parts(signature)
        return self.record(self.spoiled(dict(arrays)), fields)

    def noised(self, terms: Terms, message: Message) -> dict[str, np.ndarray]:
        """Sums of records of norm 1 in class 1, and the discrete Gaussian."""
        arrays = {n: a.numpy().astype(np.float64) for n, a in message.content["arrays"].items()}
        arrays[ROWS][1, 0] += self.patients * np.sqrt(SHARE_ROW)
        arrays[COUNTS][1] += self.patients * np.sqrt(SHARE_COUNT)
        names = (ROWS, COUNTS)
        flat = np.concatenate([arrays[n].ravel() for n in names])
        grid = Grid(terms.clip, terms.sigma, flat.size)
        flat = (grid.quantise(flat) + discrete_gaussian(flat.size)) * grid.gamma
        cut = arrays[ROWS].size
        return {ROWS: flat[:cut].reshape(arrays[ROWS].shape).astype(np.float32), COUNTS: flat[cut:].astype(np.float32)}

    def spoiled(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.fault == "nan":
            arrays[ROWS] = arrays[ROWS].copy()
            arrays[ROWS][0, 0] = np.nan
        elif self.fault == "shape":
            arrays[ROWS] = arrays[ROWS][:, :-1].copy()
        elif self.fault == "name":
            arrays["memory.extra"] = arrays.pop(ROWS)
        elif self.fault == "norm":
            arrays[ROWS] = arrays[ROWS] + np.float32(1e6)
        return arrays

    def record(self, arrays: dict[str, np.ndarray], fields: dict[str, str | int]) -> RecordDict:
        config = ConfigRecord({**fields})
        return RecordDict({"arrays": ArrayRecord({n: Array(a) for n, a in arrays.items()}), "reply": config})

    def send(self, head: Message, reply: Message) -> None:
        run = head.metadata.run_id
        reply.metadata.created_at, reply.metadata.ttl = head.metadata.created_at, head.metadata.ttl
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            answer = self.api.PushMessages(
                PushMessagesRequest(
                    node=self.node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[0.0],
                )
            )
            send = make_push_object_fn_protobuf(self.api.PushObject, self.node, run, answer.session_id)
            push_objects(get_all_nested_objects(reply), send, object_ids_to_push=set(answer.objects_to_push))
        self.api.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.node, run_id=run, message_object_id=head.metadata.message_id)
        )
        self.log("answered")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--fault", choices=FAULTS, default="none")
    parser.add_argument("--patients", type=int, default=12)
    args = parser.parse_args()
    FakeSite(args.folder, args.fault, args.patients).run()


if __name__ == "__main__":
    main()
