"""The second port: gRPC with the identities of the first. Mutual TLS 1.3, enrolled sites only, bounded in every direction."""

import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from sgps.errors import NetworkError
from sgps.files import read_limited
from sgps_server.config import Folder, Listen
from sgps_server.peers import Peer, Porter, read_peer
from sgps_server.release_service import SERVICE, ReleaseService

SERVED, OWN = 64, 4  # calls at once: of all sites, of one
RATE, BURST = 10.0, 100.0  # calls a second of one site, and how many it may save up
STREAM_SECONDS = 600.0  # of one stream; a slower one is cut, and taken up again by the site
_PEM_LIMIT, _GRACE, _BEAT = 1 << 16, 5.0, 1.0
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two coordinators must not share a port
    ("grpc.max_receive_message_length", 64 << 10),
    ("grpc.max_concurrent_streams", 2 * OWN),  # of one connection
    ("grpc.max_allowed_incoming_connections", 1000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),  # a peer that is silently gone is noticed
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # sites look every 20 s whether the line still stands
)


class Allowance:
    """Calls at once and calls a second, site by site."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._open: Counter[str] = Counter()
        self._saved: dict[str, tuple[float, float]] = {}

    @contextmanager
    def call(self, site: str) -> Iterator[bool]:
        """Whether the site may have this call; it counts until the block ends."""
        with self._lock:
            now = self._clock()
            saved, since = self._saved.get(site, (BURST, now))
            saved = min(BURST, saved + RATE * (now - since))
            allowed = saved >= 1 and self._open[site] < OWN
            self._saved[site] = (saved - allowed, now)
            self._open[site] += allowed
        try:
            yield allowed
        finally:
            with self._lock:
                self._open[site] -= allowed


class Guard(grpc.ServerInterceptor):  # type: ignore[misc]
    """Stands before every call, those of the health service too."""

    def __init__(self, porter: Porter) -> None:
        self._porter, self._allowance = porter, Allowance()

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None or handler.request_streaming:  # no call of ours streams requests
            return None
        streams = bool(handler.response_streaming)
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        inner = handler.unary_stream if streams else handler.unary_unary

        def one(request: Any, context: Any) -> Any:
            with self._admitted(context, details.method):
                return inner(request, context)

        def many(request: Any, context: Any) -> Iterator[Any]:
            with self._admitted(context, details.method):
                timer = threading.Timer(STREAM_SECONDS, context.cancel)
                timer.daemon = True
                timer.start()
                try:
                    yield from inner(request, context)
                finally:
                    timer.cancel()

        return make(
            many if streams else one,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    @contextmanager
    def _admitted(self, context: Any, path: str) -> Iterator[None]:
        peer = caller(context)
        site, why = peer.site if peer else "?", self._porter.objection(peer)
        if why:
            self._porter.refused(site, "PERMISSION_DENIED", why, path)
            context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
        with self._allowance.call(site) as allowed:
            if not allowed:
                self._porter.refused(site, "RESOURCE_EXHAUSTED", "too_many_calls", path)
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too_many_calls")
            yield


def caller(context: Any) -> Peer | None:
    """Who calls, by the certificate of the connection."""
    found = context.auth_context()
    if list(found.get("ssl_tls_version", ())) != [b"TLSv1.3"]:
        return None
    pem = b"".join(found.get("x509_pem_cert", ())).decode("ascii", "replace")
    try:
        return read_peer(ssl.PEM_cert_to_DER_cert(pem))
    except ValueError:
        return None


class ReleasePort:
    """Open from construction until `close`. alive: whether the rounds give signs of life; the health service tells it on.

    Raises NetworkError when the address cannot be taken.
    """

    def __init__(
        self, service: ReleaseService, porter: Porter, folder: Folder, listen: Listen, alive: Callable[[], bool]
    ) -> None:
        self._alive, self._closed, self._health = alive, threading.Event(), health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(SERVED, "releases"),
            interceptors=(Guard(porter),),
            options=_OPTIONS,
            maximum_concurrent_rpcs=SERVED,
        )
        self._server.add_generic_rpc_handlers((service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        key, certificate = (read_limited(folder.keys / name, _PEM_LIMIT) for name in ("server.key", "server.crt"))
        authority = read_limited(folder.ca / "ca.crt", _PEM_LIMIT)
        identity = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
        host = f"[{listen.host}]" if ":" in listen.host else listen.host
        try:
            self._server.add_secure_port(f"{host}:{listen.port}", identity)
        except RuntimeError as error:
            raise NetworkError(
                "cannot listen", where=f"{host}:{listen.port}", do="free the port or change `releases`"
            ) from error
        self._server.start()
        threading.Thread(target=self._beat, name="health", daemon=True).start()

    def _beat(self) -> None:
        states = health_pb2.HealthCheckResponse
        while not self._closed.is_set():
            state = states.SERVING if self._alive() else states.NOT_SERVING
            for service in ("", SERVICE):
                self._health.set(service, state)
            self._closed.wait(_BEAT)

    def close(self) -> None:
        """Say NOT_SERVING, take no new call, let running ones end for a few seconds."""
        self._closed.set()
        self._health.enter_graceful_shutdown()
        self._server.stop(_GRACE).wait()
