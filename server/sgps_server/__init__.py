"""The program at the coordinating centre. It needs no torch.

Flower posts events to its vendor, looks for updates and installs packages unless it is told not to before its first import; this
package's own import is the one place that always comes before. gRPC reads its switches at that time, too.
"""

import os

from sgps.wire import TLS_13

os.environ.update(TLS_13)
for _switch, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_LOG_LEVEL": "WARNING",
    "GRPC_VERBOSITY": "NONE",  # a scanner's bad handshake is no line in the log
}.items():
    os.environ.setdefault(_switch, _value)
