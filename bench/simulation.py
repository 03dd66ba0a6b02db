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
os.environ.setdefault("RAY_worker_niceness", "0")  # else a busy machine does not come to them

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
from sgps_client.public import recall, share
from sgps_server.config import MOST_SITES

EXEMPLARS = 20  # for each disease, one at a time
SAMPLE = 2.0  # seconds between two looks at the memory of all processes


class Memories(threading.Thread):
    """The largest sum of proportional set sizes of this process and all below it, in bytes (Linux)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._end = 0, threading.Event()

    def run(self) -> None:
        while not self._end.wait(SAMPLE):
            self.peak = max(self.peak, sum(map(_proportional, _family(os.getpid()))))

    def close(self) -> int:
        self._end.set()
        self.join()
        return self.peak


def _family(root: int) -> set[int]:
    """A process and all below it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # it has ended meanwhile
            continue
    found, new = {root}, {root}
    while new := {child for child, parent in parents.items() if parent in new} - found:
        found |= new
    return found


def _proportional(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def simulate(world: World, licence: str, sites: int, cpus: int, address: str | None) -> dict[str, int]:
    """One round of all virtual sites. address: of a Ray cluster that runs already. Returns contributions by round."""
    run_config = {"federation": str(world.folder.config), "public": licence, "sites": str(world.sites)}
    contributions: dict[str, int] = {}
    server, client = ServerApp(), ClientApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        context.run_config = {**run_config}  # the engine's own starter of apps gives none
        sgps_server.app.app(grid, context)
        counts = context.state.metric_records["contributions"]
        contributions.update({k: v for k, v in counts.items() if isinstance(v, int)})

    @client.train()
    def train(message: Message, context: Context) -> Message:
        told = Context(context.run_id, context.node_id, context.node_config, context.state, {**run_config})
        return sgps_client.app.public(message, told)

    init: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": True}
    init |= {"address": address} if address else {"num_cpus": cpus, "object_store_memory": 128 << 20}
    run_simulation(server, client, sites, backend_config={"init_args": init, "client_resources": {"num_cpus": 1}})
    return contributions


def judged(world: World, release: Release, seed: int) -> list[dict[str, Any]]:
    """What the memory is worth for each disease on patients of no site, in percent: one exemplar alone and blended with the row.

    Exemplars are patients of no site, too; the others of their disease against those of the other diseases are scored, by centred cosine.
    """
    site, ids = Site.load(world.held_out), release.manifest.classes
    recall(site, release)
    before, after = release.memory(), Memory.from_arrays(load_file(world.folder.state / MEMORY), ids)
    patients = [p for p in records.prepared(site, release, simulation_world.COHORT) if p is not None]
    features = np.array([next(iter(p.means().values())) for p in patients])
    label = np.array([p.labels[0] for p in patients])
    bank = Bank.of(release)
    mine = bank.of_domain("drawn") if {*world.diseases} <= {*PRESETS} else []
    chosen = np.isin(bank.label, mine) if len(mine) else np.ones(len(bank.label), bool)
    inside, rng, out = (
        before.coordinates.inside(bank.features[chosen], bank.label[chosen]),
        np.random.default_rng(seed),
        [],
    )
    for disease in world.diseases:
        c = ids.index(disease)
        cells: dict[str, list[float]] = {"before": [], "after": []}
        for exemplar in rng.permutation(np.flatnonzero(label == c))[:EXEMPLARS]:
            rest = np.arange(len(label)) != exemplar
            for name, memory in (("before", before), ("after", after)):
                prototype = memory.blend(features[exemplar], 1, c, inside)
                cells[name].append(_area(prototype, features[rest], label[rest] == c, memory))
        row = after.coordinates.lift(np.asarray(after.row(c)))
        out.append(
            {
                "disease": disease, "patients": world.dealt[disease], "noised count": float(after.count[c]), "worth": after.worth(c),
                "tested": world.tested[disease], **{k: float(np.mean(v)) for k, v in cells.items()},
                "row alone": _area(row, features, label == c, after),
            }
        )  # fmt: skip
    return out


def _area(prototype: Array, queries: Array, positive: Array, memory: Memory) -> float:
    mean = memory.coordinates.mean
    return 100 * auroc(unit(queries - mean) @ unit(prototype - mean), positive)


def report(results: Mapping[str, Any]) -> str:
    head = (
        "disease", "patients at the sites", "noised count", "worth of the row", "before: one exemplar", "after: exemplar and row",
        "row alone",
    )  # fmt: skip
    rows = [
        (
            d["disease"], str(d["patients"]), f"{d['noised count']:.0f}", f"{d['worth']:.1f}", f"{d['before']:.1f}", f"{d['after']:.1f}",
            f"{d['row alone']:.1f}",
        )
        for d in results["diseases"]
    ]  # fmt: skip
    s, run = results["seconds"], results["run"]
    scale = (
        f"{run['sites']} virtual sites, {run['contributions']} contributions, epsilon {run['epsilon']:g} for each patient, "
        f"{run['cpus']} processes; data: {run['licence']}."
    )
    meaning = (
        f"AUROC in percent on patients of no site, means over {EXEMPLARS} exemplars; before the round the memory is empty. A row of "
        f"worth 0 may be noise alone and is not used. Seconds: {s['world']:.0f} to make pictures, sites and keys, "
        f"{s['features']:.0f} to read and encode {run['patients']} patients, {s['round']:.0f} for the round. "
        f"Peak memory of all processes in the round: {results['peak'] / 2**30:.2f} GiB."
    )
    return f"{scale}\n\n{table(head, rows)}\n\n{meaning}\n"


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
    share(Site.load(world.held_out), release)
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
        if not 1 <= a.sites <= MOST_SITES:
            raise InputError(f"{a.sites} is none of 1 to {MOST_SITES}, as many as a round can have", where="--sites")
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
