"""Kills of ledger, engine, outbox and sender: `python -m bench.ledger_kills --out DIR` writes results.json and results.md.

A thousand times SIGKILL at random moments of a process that charges, trains with the engine that ships, keeps and sends whole
replies, and what is left compared with a diary and a wire that lie elsewhere; then the broken ledgers that the same comparison has to
catch, and a kill at each named point. Exit status 1 when a promise is broken or a broken ledger escapes. The simulator is that of the
tests, `tests/simulators/ledger_kills.py`."""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.figures import table
from sgps.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
SERIES = 400  # most kills of one ledger; each ends earlier when its budget of 200 rounds is gone
BROKEN_KILLS, BROKEN_SECONDS = 400, 600.0
HOUR = 3600.0
PROMISES = {
    "P1": "what was trained is charged",
    "P2": "no round is trained twice",
    "P3": "a round has one answer, to the byte, and one receipt",
    "P4": "what was sent is committed",
    "P5": "the chain verifies at every start",
    "P6": "at most one charge is lost for each kill",
    "P7": "the charges stay within the budget",
    "P8": "every byte on the wire, of whole and of cut answers, is committed",
}
FIGURES = (
    "charged", "trained", "committed", "charged, not trained", "trained, never sent", "answers whole on the wire",
    "answers cut off on the wire", "hot journal left", "torn outbox left",
)  # fmt: skip


def simulator() -> ModuleType:
    """`tests/simulators/ledger_kills.py`."""
    name = "ledger_kills_simulator"
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "simulators" / "ledger_kills.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def thousand(sim: ModuleType, place: Path, kills: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Figures of ledger after ledger until `kills` are reached, and the broken promises."""
    work, total, wrong = sim.engine_payload(), Counter[str](), list[str]()
    while total["kills"] < kills and not wrong:
        most = min(SERIES, kills - total["kills"])
        wrong, figures = sim.campaign(sim.Ledger, place / f"series-{total['ledgers']}", most, HOUR, seed, work)
        total, seed = total + figures, seed + 1
        total["ledgers"] += 1
        print(f"{total['kills']} kills, {total['charged']} charges, {wrong or 'no promise broken'}", flush=True)
    return total, wrong


def broken(sim: ModuleType, place: Path, seed: int) -> list[dict[str, Any]]:
    """After how many kills the comparison finds each broken ledger, and by which promise."""
    rows = []
    for name, kind in sim.KINDS.items():
        if kind is sim.Ledger:
            continue
        wrong, figures = sim.campaign(kind, place / name, BROKEN_KILLS, BROKEN_SECONDS, seed)
        promises = sorted({line.split()[0] for line in wrong})
        what = " ".join((kind.__doc__ or "").removeprefix("Broken: ").split())
        rows.append({"ledger": name, "what": what, "kills": figures["kills"], "found by": promises})
        print(f"{name}: found by {', '.join(promises) or 'NOBODY'} after {figures['kills']} kills", flush=True)
    return rows


def points(sim: ModuleType, place: Path) -> list[dict[str, Any]]:
    """A kill at each named point, what the ledger holds then, and what the same plan gets."""
    rows = []
    for number, name in enumerate(sim.POINTS):
        work = place / f"point-{number}"
        work.mkdir()
        rows.append({"point": name, **sim.point(work, name)})
    return rows


def report(found: Mapping[str, Any]) -> str:
    """results.md."""
    figures, stages = found["figures"], found["stages"]
    again = {"first": "the same bytes", "second": "charged and trained now"}
    held = f"Promises broken: {', '.join(found['wrong']) or 'none'}."
    begin = f"{figures['kills']} kills of {figures['ledgers']} ledgers, seed {found['seed']}, {found['seconds'] / 60:.0f} minutes"
    parts = [
        f"{begin}. {held}",
        table(["killed while", "kills"], [[name, str(count)] for name, count in stages.items()]),
        table(["rounds, answers and files", ""], [[name, str(figures[name])] for name in FIGURES]),
        table(["promise", "holds"], [[f"{p} {text}", "no" if p in found["broken"] else "yes"] for p, text in PROMISES.items()]),
        table(
            ["broken ledger", "what is wrong with it", "found by", "after kills"],
            [[r["ledger"], r["what"], ", ".join(r["found by"]) or "**nobody**", str(r["kills"])] for r in found["faults"]],
        ),
        table(
            ["killed at", "ledger holds", "the same plan again"],
            [[r["point"], " ".join(r["held"]) or "nothing", again.get(r["again"], r["again"])] for r in found["points"]],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.ledger_kills", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and results.md")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    sim, begun = simulator(), time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        faults = broken(sim, Path(folder), options.seed)
        held = points(sim, Path(folder))
        total, wrong = thousand(sim, Path(folder), options.kills, options.seed)
    stages = {name: total.pop(f"killed: {name}", 0) for name in sim.STAGES}
    found = {
        "figures": {n: total[n] for n in ("kills", "ledgers", *FIGURES)}, "stages": stages, "wrong": wrong, "faults": faults,
        "broken": sorted({line.split()[0] for line in wrong}), "points": held, "seed": options.seed,
        "seconds": time.monotonic() - begun,
    }  # fmt: skip
    write_atomic(options.out / "results.json", (json.dumps(found, indent=1) + "\n").encode())
    write_atomic(options.out / "results.md", report(found).encode())
    good = not wrong and all(r["found by"] for r in faults)
    print("every promise holds and every broken ledger is found" if good else "FAILS: see results.md")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
