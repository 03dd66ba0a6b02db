"""Both ends of the smallest Flower app: FedAvg of one array that every node sends back as it came.

Flower starts a process for each message to a ClientApp; how long that took goes to the file `started` in the node's FLWR_HOME.
"""

import os
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


def _age() -> float:
    """Seconds since this process began, where /proc tells."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0


@client.train()
def train(message: Message, context: Context) -> Message:
    with (Path(os.environ["FLWR_HOME"]) / "started").open("a") as file:
        file.write(f"{_age()}\n")
    arrays = message.content.array_records["arrays"]
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    config, times = context.run_config, Path(str(context.run_config["times"]))

    def ended(_: int, __: ArrayRecord) -> None:
        with times.open("a") as file:
            file.write(f"{time.time()}\n")

    start = ArrayRecord({"array": Array(np.zeros((int(config["rows"]), int(config["width"])), np.float32))})
    FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2).start(
        grid, start, num_rounds=int(config["rounds"]), evaluate_fn=ended
    )
