"""Switches that keep libraries from calling out, and gRPC to TLS 1.3. They are read at import, so they are set before Flower, grpc
or transformers load."""

import os

from sgps.command import OFFLINE
from sgps.wire import TLS_13

SWITCHES = {
    **OFFLINE,
    **TLS_13,
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def switch_off() -> None:
    """Whatever the environment said before: a site never calls anybody but its coordinator."""
    os.environ.update(SWITCHES)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its errors are told in lines of our own
    # Read when torch loads: idle threads of a busy machine must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
