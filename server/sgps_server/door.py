"""The one open port: mutual TLS 1.3 in front of the gate, in a thread of its own."""

import socket
import ssl
import threading
import time
from typing import Any

import uvicorn

from sgps.errors import NetworkError, SignatureError
from sgps_server.config import Folder, Listen
from sgps_server.gate import Protocol

_START_SECONDS, _STOP_SECONDS = 30.0, 5


class Door:
    """Open from construction until `close`. Raises NetworkError when the address cannot be taken."""

    def __init__(self, app: Any, folder: Folder, listen: Listen) -> None:
        self._socket = bind(listen)
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="off",
            proxy_headers=False,  # by default uvicorn believes a header from loopback about who calls
            server_header=False,
            access_log=False,
            log_level="error",
            limit_concurrency=1000,
            timeout_graceful_shutdown=_STOP_SECONDS,
            ssl_certfile=folder.keys / "server.crt",
            ssl_keyfile=folder.keys / "server.key",
            ssl_ca_certs=str(folder.ca / "ca.crt"),
            ssl_cert_reqs=ssl.CERT_REQUIRED,
        )
        try:
            config.load()
        except OSError as error:
            raise SignatureError(
                f"holds no certificate of the authority ({error.strerror or error})",
                where=folder.ca / "ca.crt",
                do="put it back from the backup",
            ) from error
        if config.ssl is None:
            raise NetworkError(
                "TLS is off", where=f"{listen.host}:{listen.port}", do="put the keys back from the backup"
            )
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="door", daemon=True)
        self._thread.start()
        end = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise NetworkError("the port did not open", where=f"{listen.host}:{listen.port}", do="see the log")
            time.sleep(0.02)

    def close(self) -> None:
        """Stop listening, let running answers end for a few seconds."""
        self._server.should_exit = True
        self._thread.join(2 * _STOP_SECONDS)
        self._socket.close()


def bind(listen: Listen) -> socket.socket:
    """A bound socket. Raises NetworkError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind(address)
        except OSError:
            opened.close()
            raise
        return opened
    except (OSError, UnicodeError) as error:  # of a name that no name can be, `a..b`
        raise NetworkError(
            f"cannot listen: {getattr(error, 'strerror', '') or error}",
            where=f"{listen.host}:{listen.port}",
            do="free the port or change `listen`",
        ) from error
