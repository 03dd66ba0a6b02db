"""The calls of `sgps.wire`'s service: state, releases, the head of the record. Who may call is decided in `release_port`."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sgps.errors import SgpsError
from sgps.files import read_limited
from sgps.release import FILES, MANIFEST, MANIFEST_LIMIT, MEMORY, SIGNATURE
from sgps.signing import canonical, fingerprint
from sgps.wire import releases_pb2 as wire
from sgps_server import releases
from sgps_server.audit import Heads

SERVICE = wire.DESCRIPTOR.services_by_name["Releases"].full_name
CHUNK = 64 << 10  # bytes; less is lost with a line that is cut
_HASH = re.compile(r"[0-9a-f]{64}")
_SIGNATURE_LIMIT = 1024  # bytes


class ReleaseService:
    """Answers from disk; what is asked for by name is looked up in a list, so no path can lead elsewhere.

    may: whether the caller of this context is still enrolled. fetched: called with the context and a release whose memory was sent
    to its end.
    """

    def __init__(
        self, folder: Path, heads: Heads, key: Ed25519PrivateKey, status: Callable[[], dict[str, Any]],
        may: Callable[[Any], bool], fetched: Callable[[Any, str], None],
    ) -> None:  # fmt: skip
        self._folder, self._heads, self._key, self._status, self._may, self._fetched = (
            folder,
            heads,
            key,
            status,
            may,
            fetched,
        )
        self._known: dict[str, wire.Release] = {}

    def handler(self) -> Any:
        """What a gRPC server takes."""
        calls = {}
        for method in wire.DESCRIPTOR.services_by_name["Releases"].methods:
            call = {"Status": self.status, "List": self.list, "Inspect": self.inspect, "Pull": self.pull, "AuditHead": self.audit_head}[
                method.name
            ]  # fmt: skip
            make = (
                grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
            )
            calls[method.name] = make(
                call,
                request_deserializer=getattr(wire, method.input_type.name).FromString,
                response_serializer=getattr(wire, method.output_type.name).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(SERVICE, calls)

    def status(self, _request: wire.StatusRequest, _context: Any) -> wire.StatusReply:
        now = self._status()  # before the newest release is looked up: who reads `done` is then told the last one
        latest = self._release(releases.names(self._folder)[-1])
        fields = {name: now[name] for name in ("federation", "fingerprint", "state", "round", "rounds", "sites")}
        return wire.StatusReply(**fields, latest=latest, waiting_for=now["waiting_for"], time=time.time())

    def list(self, _request: wire.ListRequest, _context: Any) -> wire.ListReply:
        return wire.ListReply(releases=[self._release(name) for name in releases.names(self._folder)])

    def inspect(self, request: wire.InspectRequest, context: Any) -> wire.InspectReply:
        release = self._found(request.name, context)
        folder = self._folder / release.name
        return wire.InspectReply(
            release=release,
            manifest=read_limited(folder / MANIFEST, MANIFEST_LIMIT),
            signature=read_limited(folder / SIGNATURE, _SIGNATURE_LIMIT),
        )

    def pull(self, request: wire.PullRequest, context: Any) -> Iterator[wire.Chunk]:
        """The bytes of one file from the offset on. The first chunk comes even when nothing is left: it tells the size."""
        release = self._found(request.release.name, context)
        if release.sha256 != request.release.sha256:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the release of this name is another one")
        if request.file not in FILES:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such file")
        with (self._folder / release.name / request.file).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(min(request.offset, size))  # beyond the end: the site learns the size and begins anew
            yield wire.Chunk(size=size, data=file.read(CHUNK))
            while data := file.read(CHUNK):
                if not self._may(context):
                    context.abort(grpc.StatusCode.PERMISSION_DENIED, "not enrolled")
                yield wire.Chunk(size=size, data=data)
        if request.file == MEMORY:  # the one file that every release has anew
            self._fetched(context, release.name)

    def audit_head(self, request: wire.AuditHeadRequest, context: Any) -> wire.AuditHeadReply:
        """The coordinator signs what it says of its record: of two heads that contradict each other, one is a lie that it signed."""
        known: dict[str, Any] | None = None
        try:
            head, lines = self._heads.last()
            if request.HasField("known"):
                asked = request.known
                if not _HASH.fullmatch(asked.sha256):
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no hash")
                there = self._heads.holds(asked.sha256, asked.lines)
                known = {"head": asked.sha256, "lines": asked.lines, "there": there}
        except SgpsError:  # the whole reason stands in `audit verify`
            context.abort(grpc.StatusCode.DATA_LOSS, "the chain of the record is broken")
        said = {
            "kind": "audit head", "federation": fingerprint(self._key.public_key()), "head": head, "lines": lines,
            "time": round(time.time(), 3), "known": known,
        }  # fmt: skip
        text = canonical(said)
        return wire.AuditHeadReply(text=text.decode(), signature=self._key.sign(text))

    def _found(self, name: str, context: Any) -> wire.Release:
        if name not in releases.names(self._folder):
            context.abort(grpc.StatusCode.NOT_FOUND, "no such release")
        return self._release(name)

    def _release(self, name: str) -> wire.Release:
        """A release on disk never changes, so its hash is computed once."""
        if name not in self._known:
            self._known[name] = wire.Release(name=name, sha256=releases.named(self._folder, name).sha256)
        return self._known[name]
