"""The program at the coordinating centre. It needs no torch.

Flower posts events to its vendor, looks for updates and installs packages unless it is told not to before its first import; this
package's own import is the one place that always comes before.
"""

import os

for _switch, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_LOG_LEVEL": "WARNING",
}.items():
    os.environ.setdefault(_switch, _value)
