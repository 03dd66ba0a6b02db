"""Run a command with every socket refused: `python -m sgps.demo.offline sgps_client.cli synthesize ...`.

The interpreter's audit hook cannot be taken back by the code that runs under it, so a command that ends well here has used no
network, not even loopback.
"""

import runpy
import sys
from typing import Any

_REFUSED = frozenset({"socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "socket.sendmsg"})


def refuse(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook. Raises PermissionError for any use of a socket."""
    if event in _REFUSED:
        raise PermissionError(f"{event}{args[1:]!r}: this command runs offline")


def main() -> None:
    """argv: module, then the command's own arguments."""
    sys.addaudithook(refuse)
    module = sys.argv[1]
    sys.argv = [module, *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
