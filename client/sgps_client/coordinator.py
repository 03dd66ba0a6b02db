"""The coordinator's release service as seen from a site: gRPC over mutual TLS 1.3. Flower's calls are in `flower_link`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from sgps_client.offline import switch_off

switch_off()  # before grpc is imported

import grpc  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sgps.errors import ConfigError, InputError, NetworkError
from sgps.plan import Hex
from sgps.settings import problems
from sgps.wire import releases_pb2 as wire
from sgps_client.config import Site
from sgps_client.tls import TIMEOUT, proxy_for, tls_context, told

MESSAGE_LIMIT = 8 << 20  # bytes; a manifest has at most half of that
AHEAD, BEHIND = 5.0, 300.0  # seconds of clock difference that the coordinator's Flower server takes
PULL_SECONDS = 570.0  # of one stream, a little less than the coordinator's own limit; what is left comes with the next
ReleaseName = Annotated[str, Field(pattern=r"^[0-9a-z][0-9a-z-]{0,63}$")]
_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.use_local_subchannel_pool", 1),  # no other channel's failures
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    (
        "grpc.http2.bdp_probe",
        0,
    ),  # what has arrived and was not read yet is lost with the line: so the window stays small
    ("grpc.http2.lookahead_bytes", 512 << 10),
    ("grpc.keepalive_time_ms", 20_000),  # a line that is silently gone shows within half a minute
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
_PASSING = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "UNKNOWN", "ABORTED", "RESOURCE_EXHAUSTED"}
_WORDS = {
    "DEADLINE_EXCEEDED": ("no answer in time", "`sgps-client check` looks for the cause"),
    "PERMISSION_DENIED": ("this site is not enrolled or was revoked", "ask the coordinator"),
    "UNIMPLEMENTED": ("is not the release service", "check `releases_url:`"),
    "FAILED_PRECONDITION": ("the release changed while it was fetched", "it is tried again"),
    "NOT_FOUND": ("there is no such release", "sgps-client pull --list"),
    "DATA_LOSS": ("the coordinator's record is damaged", "tell the coordinator"),
}


class Interrupted(NetworkError):
    """A call that may succeed when it is tried again."""


class Named(BaseModel):
    """A release by name and SHA-256 of its manifest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: ReleaseName
    sha256: Hex


class Status(BaseModel):
    """What the coordinator says of itself. time: its clock, seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    federation: str
    fingerprint: Hex
    state: Literal["waiting", "running", "done"]
    round: int
    rounds: int
    latest: Named
    sites: Mapping[str, str] = {}
    waiting_for: tuple[str, ...] = ()
    time: float

    def clock(self, asked: float, heard: float) -> tuple[float, bool]:
        """Seconds that this clock is ahead of the coordinator's, and whether that is certainly too much: the answer was given at
        some moment between `asked` and `heard`, both by this clock."""
        off = not (asked - self.time <= AHEAD and heard - self.time >= -BEHIND)
        return (asked + heard) / 2 - self.time, off


class Coordinator:
    """The calls of one site. Every method raises NetworkError when the coordinator cannot be reached or answers nonsense.

    Raises ConfigError when a key is missing or does not fit, or the proxy is of a kind that gRPC does not know.
    """

    def __init__(self, site: Site) -> None:
        self.url = site.releases_url
        parts = urlsplit(self.url)
        tls_context(site)  # gRPC would only say that nobody can be reached
        identity = grpc.ssl_channel_credentials(
            site.ca.read_bytes(), site.tls_key.read_bytes(), site.certificate.read_bytes()
        )
        host = str(parts.hostname)
        target = f"{f'[{host}]' if ':' in host else host}:{parts.port or 443}"
        self._channel = grpc.secure_channel(target, identity, options=(*_OPTIONS, *_proxy(host)))
        self._calls = {m.name: m for m in wire.DESCRIPTOR.services_by_name["Releases"].methods}

    def status(self) -> Status:
        with self._told():
            reply = self._unary("Status", wire.StatusRequest())
            fields = {f.name: getattr(reply, f.name) for f in reply.DESCRIPTOR.fields}
            fields |= {
                "latest": _named(reply.latest),
                "sites": dict(reply.sites),
                "waiting_for": tuple(reply.waiting_for),
            }
            return Status.model_validate(fields)

    def releases(self) -> list[Named]:
        """All that the coordinator has, oldest first."""
        with self._told():
            return [_named(r) for r in self._unary("List", wire.ListRequest()).releases]

    def find(self, name: str) -> Named:
        """One of them by name. Raises InputError when there is none of that name."""
        offered = self.releases()
        found = next((r for r in offered if r.name == name), None)
        if found is None:
            raise InputError(
                "there is no such release", where=name, do=f"choose one of {', '.join(r.name for r in offered)}"
            )
        return found

    def inspect(self, name: str) -> tuple[bytes, bytes]:
        """Manifest and signature, as yet unverified."""
        with self._told():
            reply = self._unary("Inspect", wire.InspectRequest(name=name))
            return bytes(reply.manifest), bytes(reply.signature)

    def pull(self, release: Named, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
        """Pieces of a file from the offset on, each with the size of the whole file, unverified. At least one, perhaps empty."""
        wanted = wire.Release(name=release.name, sha256=release.sha256)
        with self._told():
            for chunk in self._call("Pull", self._channel.unary_stream)(
                wire.PullRequest(release=wanted, file=file, offset=offset), timeout=PULL_SECONDS
            ):
                yield int(chunk.size), bytes(chunk.data)

    def audit_head(self, known: tuple[str, int] | None) -> tuple[str, bytes]:
        """Text and signature of what the coordinator says of its record's end. known: hash and number of a line seen before."""
        with self._told():
            head = None if known is None else wire.Head(sha256=known[0], lines=known[1])
            reply = self._unary("AuditHead", wire.AuditHeadRequest(known=head))
            return str(reply.text), bytes(reply.signature)

    def _unary(self, name: str, request: Any) -> Any:
        return self._call(name, self._channel.unary_unary)(request, timeout=TIMEOUT)

    def _call(self, name: str, kind: Any) -> Any:
        method = self._calls[name]
        return kind(
            f"/{method.containing_service.full_name}/{name}",
            request_serializer=getattr(wire, method.input_type.name).SerializeToString,
            response_deserializer=getattr(wire, method.output_type.name).FromString,
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code = error.code().name
            what, do = _WORDS.get(code) or told(_plain(str(error.details())))
            raise (Interrupted if code in _PASSING else NetworkError)(what, where=self.url, do=do) from error
        except ValidationError as error:
            what = f"an answer of another kind than expected: {'; '.join(problems(error))}"
            raise NetworkError(what, where=self.url, do="update the program, or check `releases_url:`") from error

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _named(release: wire.Release) -> Named:
    return Named(name=release.name, sha256=release.sha256)


def _plain(text: str) -> str:
    """The other end may have written it: one line of bounded length, nothing that a terminal would obey."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:400]


def _proxy(host: str) -> tuple[tuple[str, str | int], ...]:
    """gRPC reads only small letters from the environment, and other names than everything else here: so it is told."""
    proxy = proxy_for(host)
    if proxy is None:
        return (("grpc.enable_http_proxy", 0),)
    if not proxy.startswith("http://"):
        raise ConfigError("is not of the form http://host:port", where="HTTPS_PROXY", do="name the proxy so")
    return (("grpc.http_proxy", proxy),)
