"""A page for the clinician on this machine alone: binds 127.0.0.1, refuses every other socket, keeps nothing on disk, logs nobody."""

import asyncio
import socket
import sys
from collections.abc import Callable

import uvicorn

from sgps.demo.offline import refuse
from sgps_client.serve_app import create
from sgps_client.serve_desk import Desk
from sgps_client.serve_door import ADDRESS, Door


def listen(port: int) -> socket.socket:
    """A socket on the loopback address. port: 0 takes a free one. Raises OSError when it is taken."""
    out = socket.create_server((ADDRESS, port), backlog=16)
    out.setblocking(False)
    return out


def server(desk: Desk, door: Door, tell: Callable[[str], None]) -> uvicorn.Server:
    """Not started yet. Without access log, server header, websockets and trust in forwarded addresses."""
    config = uvicorn.Config(
        create(desk, door, tell),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="critical",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def run(desk: Desk, port: int, ready: Callable[[Door], None], tell: Callable[[str], None]) -> None:
    """Serve until the process is stopped; ready: is told the address. The process can open no further connection afterwards.

    Raises OSError when the port is taken.
    """
    with listen(port) as listening:
        door = Door(listening.getsockname()[1])
        sys.addaudithook(refuse)
        ready(door)
        asyncio.run(server(desk, door, tell).serve([listening]))
