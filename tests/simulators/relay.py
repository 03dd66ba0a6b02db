"""A relay between one site and the coordinator that ends TLS at both sides and keeps every byte. It can, because whoever owns the
federation's CA can issue a certificate for the coordinator's name, and the test also has the site's own key.

The port for Flower's calls is relayed as bytes, the one after it, for releases, as gRPC messages.
"""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sgps_client.offline import switch_off

switch_off()  # before grpc is imported

import grpc

from sgps_server.pki import Authority


@dataclass(frozen=True)
class Request:
    """One HTTP request of the site."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.line.split()[1]


@dataclass
class Call:
    """One gRPC call of the site. metadata: as it arrived. messages: all that the site sent."""

    method: str
    metadata: dict[str, str]
    messages: list[bytes] = field(default_factory=list)


def requests(sent: bytes) -> list[Request]:
    """The requests of one HTTP/1.1 connection, in order. Raises ValueError for a byte that belongs to none of them. An answer has the
    same form, but for its first line."""
    found = []
    while sent:
        head, divider, rest = sent.partition(b"\r\n\r\n")
        if not divider:
            raise ValueError(f"cut off: {head[:100]!r}")
        line, *lines = head.decode("ascii").split("\r\n")
        headers = [tuple(text.split(": ", 1)) for text in lines]
        names = {name.lower(): value for name, value in headers}
        size = int(names.get("content-length", "0"))
        if len(rest) < size or len(names) != len(headers) or "transfer-encoding" in names:
            raise ValueError(f"cut off, a header twice, or a body of unknown length: {line}, {sorted(names)}")
        found.append(Request(line, names, rest[:size]))
        sent = rest[size:]
    return found


class Relay:
    """Listens on `port` and the one after it; use as a context. site: folder with keys/. authority: the federation's `ca`."""

    def __init__(self, site: Path, authority: Path, port: int, coordinator: int) -> None:
        self.site, self.port, self.coordinator = site, port, coordinator
        self.connections: list[bytearray] = []  # what the site sent, one for each connection
        self.received: list[bytearray] = []  # what it got there
        self.calls: list[Call] = []
        self._own = site / "relay"
        self._own.mkdir()
        Authority.open(authority).server(self._own, ["localhost"])
        self._loop, self._tasks = asyncio.new_event_loop(), set[asyncio.Task[None]]()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def sent(self) -> bytes:
        """Every byte that left the site, decrypted."""
        calls = b"".join(c.method.encode() + repr(c.metadata).encode() + b"".join(c.messages) for c in self.calls)
        return b"".join(map(bytes, self.connections)) + calls

    def requests(self) -> list[Request]:
        return [r for sent in self.connections for r in requests(bytes(sent))]

    def answers(self, path: str) -> list[bytes]:
        """Bodies of the good answers to requests of `path`."""
        found = []
        for sent, received in zip(self.connections, self.received, strict=True):
            replies = requests(bytes(received))
            found += [
                reply.body
                for asked, reply in zip(requests(bytes(sent)), replies, strict=False)
                if asked.path == path and " 200 " in reply.line
            ]
        return found

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        self._serve_releases()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
        self._channel.close()
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    # --- Flower's port -------------------------------------------------------------------------------------------------
    async def _listen(self) -> None:
        here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        here.load_cert_chain(self._own / "server.crt", self._own / "server.key")
        here.load_verify_locations(self.site / "keys" / "ca.crt")
        here.verify_mode = ssl.CERT_REQUIRED
        self._there = ssl.create_default_context(cafile=str(self.site / "keys" / "ca.crt"))
        self._there.load_cert_chain(self.site / "keys" / "site.crt", self.site / "keys" / "site.key")
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=here)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent, received = bytearray(), bytearray()
        self.connections.append(sent)
        self.received.append(received)
        try:
            back, forth = await asyncio.open_connection("localhost", self.coordinator, ssl=self._there)
        except OSError:  # the coordinator is not there: neither is this end
            writer.transport.abort()
            return
        for pump in (self._pump(reader, forth, sent), self._pump(back, writer, received)):
            task = self._loop.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                kept += data
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    async def _close(self) -> None:
        self._listener.close()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.1)

    # --- the port of the releases --------------------------------------------------------------------------------------
    def _serve_releases(self) -> None:
        ca = (self.site / "keys" / "ca.crt").read_bytes()
        mine = ((self._own / "server.key").read_bytes(), (self._own / "server.crt").read_bytes())
        site = ((self.site / "keys" / "site.key").read_bytes(), (self.site / "keys" / "site.crt").read_bytes())
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 64 << 20)]
        there = grpc.ssl_channel_credentials(ca, *site)
        self._channel = grpc.secure_channel(f"localhost:{self.coordinator + 1}", there, options)
        relay = self

        class Anything(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, details: Any) -> Any:
                call = Call(details.method, {m.key: str(m.value) for m in details.invocation_metadata})
                relay.calls.append(call)
                return grpc.stream_stream_rpc_method_handler(
                    lambda asked, context: relay._forward(call, asked, context)
                )

        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[Anything()], options=options)
        self._server.add_secure_port(
            f"localhost:{self.port + 1}", grpc.ssl_server_credentials([mine], ca, require_client_auth=True)
        )
        self._server.start()

    def _forward(self, call: Call, asked: Iterator[bytes], context: Any) -> Iterator[bytes]:
        def kept() -> Iterator[bytes]:
            for message in asked:
                call.messages.append(message)
                yield message

        try:
            yield from self._channel.stream_stream(call.method)(kept(), timeout=context.time_remaining())
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
