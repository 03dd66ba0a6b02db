"""Hundreds of virtual sites in one run: `python -m bench.simulation --out DIR` writes simulation.json and simulation.md.

The ClientApp, the ServerApp and their strategy are the installed ones (`deploy/flower-app` names the same two), run by Flower's
simulation engine on Ray. Every virtual site has a key, a ledger, limits and noise of its own. Public data only: drawn lesions, or with
--data a folder or zip whose licence --public states. Pictures are read and encoded once and shared by all processes.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sgps_client.offline import switch_off

switch_off()  # before flwr and ray are imported

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from safetensors.numpy import load_file

import sgps_client.app
import sgps_server.app
from bench import simulation_world
from bench.figures import table
from bench.simulation_world import Data, World
from sgps.bank import Bank
from sgps.draw import PRESETS
from sgps.episodes import auroc, unit
from sgps.errors import InputError, SgpsError, StateError
from sgps.files import write_atomic
from sgps.memory import Array, Memory
from sgps.release import MEMORY, Release
from sgps.signing import load_public
from sgps_client import records
from sgps_client.config import FILE_NAME, Site
from sgps_client.public import share

EXEMPLARS = 20  # for each disease, one at a time
SAMPLE = 0.5  # seconds between two looks at the memory of all processes


class Memories(threading.Thread):
    """The largest sum of proportional set sizes of this process and all below it, in bytes (Linux)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._end = 0, threading.Event()

    def run(
    out: Path, make: Callable[[Path], Data], sites: int, tested: int, epsilon: float, cpus: int, address: str | None, seed: int
) -> dict[str, Any]:  # fmt: skip
    """Make the world below `out`, run one round, judge the memory, write simulation.json and simulation.md.

    make: the data, in this folder if they have to be drawn. tested: patients of each disease at no site. Raises InputError when `out`
    holds a world already, StateError when no site contributed.
    """
    if (out / "federation").exists():
        raise InputError("holds a simulation already", where=out, do="choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    times, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        times[name], start = round(time.perf_counter() - start, 1), time.perf_counter()
        print(f"{name}: {times[name]} s", file=sys.stderr, flush=True)

    data = make(out / "pictures")
    world = simulation_world.build(out, data, sites, tested, epsilon, seed)
    lap("world")
    release = Release.open(world.folder.releases / "0000", key=load_public(world.folder.keys / "plan.pub"))
    count = sum(share(Site.load(file), release) for file in sorted(world.sites.glob(f"*/{FILE_NAME}")))
    lap("features")
    memories = Memories()
    memories.start()
    contributions = simulate(world, data.licence, sites, cpus, address)
    peak = memories.close()
    lap("round")
    if not (world.folder.state / MEMORY).exists():
        raise StateError("no site contributed", where=out, do="the reasons are in sites/*/log/client.jsonl")
    results = {
        "run": {
            "sites": sites, "contributions": contributions.get("round 1", 0), "patients": count, "epsilon": epsilon, "cpus": cpus,
            "licence": data.licence, "seed": seed, "release": release.manifest.encoder_sha256,
        },
        "diseases": judged(world, release, seed), "seconds": times, "peak": peak,
    }  # fmt: skip
    write_atomic(out / "simulation.json", json.dumps(results, indent=1).encode())
    write_atomic(out / "simulation.md", report(results).encode())
    return results


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.simulation", description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, required=True, help="new folder")
    p.add_argument("--sites", type=int, default=200)
    p.add_argument("--patients", type=int, default=6, help="drawn ones at each site")
    p.add_argument("--tested", type=int, default=50, help="patients of each disease that no site has")
    p.add_argument("--epsilon", type=float, default=3.0)
    p.add_argument("--cpus", type=int, default=2, help="processes of the simulation; a cluster says its own")
    p.add_argument("--address", help="of a Ray cluster; it needs --out on a disk that all its machines share")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--data", type=Path, help="folder or zip of public pictures in place of drawn ones")
    p.add_argument("--public", default="", metavar="LICENCE", help="states that --data is public, and its licence")
    p.add_argument("--table", default="table.csv", help="in --data")
    p.add_argument("--columns", default="patient,image_id,dx", help="of patient, picture and class")
    p.add_argument("--diseases", default="", help="catalogue ids, separated by commas; without --data of drawn classes")
    a = p.parse_args(argv)
    try:
        diseases = tuple(d for d in a.diseases.split(",") if d)
        if a.data is None:
            chosen = diseases or simulation_world.DRAWN
            count = a.tested + -(-a.sites * a.patients // len(chosen))
            make = partial(simulation_world.drawn, diseases=chosen, patients=count, seed=a.seed)
        else:
            simulation_world.stated(a.data, a.public)
            columns = a.columns.split(",")
            if len(columns) != 3 or not diseases:
                raise InputError("--data needs three --columns and some --diseases", where="arguments")
            given = Data(a.data, a.table, (columns[0], columns[1], columns[2]), a.public, diseases)
            make = partial(simulation_world.published, data=given)
        run(a.out, make, a.sites, a.tested, a.epsilon, a.cpus, a.address, a.seed)
    except SgpsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print((a.out / "simulation.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
