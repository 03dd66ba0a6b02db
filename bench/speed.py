"""Speed and memory of what the product does: `python -m bench.speed --out DIR` writes speed.json and speed.md.

Seconds depend on the machine, so each is given beside a floor that was measured with it, where there is one. Of synthesis: one forward
pass of the base network over the same pictures (one view) plus writing a state dict. Of prediction and of a patient in a round: the
forward pass alone. Of a federation's round: a round of a minimal stock Flower app with the same payload. Medians with order-statistic
intervals of at least 95 % coverage; ratios are paired within a repeat.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import _speed_growth, _speed_round, speed_flower
from bench.speed_rows import Rows, table
from bench.speed_synthesis import Bench
from bench.speed_world import PICTURE
from sgps.files import write_atomic
from sgps.shipped import shipped_release

PARTS = ("synthesis", "prediction", "round", "flower", "growth")
TITLES = {
    "synthesis": "Synthesis", "prediction": "Prediction", "round": "A round at a site", "flower": "A round of a federation",
    "growth": "How it grows",
}  # fmt: skip


def measure(parts: Sequence[str], threads: int, folder: Path) -> dict[str, Any]:
    """The rows of these parts. threads: of torch in synthesis and prediction; rounds use one."""
    rows, federations = Rows(), list[dict[str, Any]]()
    loads = {}
    for part in parts:
        before = os.getloadavg()[0]
        print(f"{part}: load {before:.1f}", file=sys.stderr, flush=True)
        work = folder / part
        work.mkdir()
        if part in ("synthesis", "prediction"):
            bench = Bench(rows, threads, work)
            if part == "prediction":
                bench.predictions()
            else:
                bench.warm()
                bench.cold()
        elif part == "round":
            _speed_round.measure(rows, work)
        elif part == "flower":
            federations = speed_flower.measure(rows, work)
        else:
            _speed_growth.measure(rows, work)
        loads[part] = {"before": before, "after": os.getloadavg()[0]}
    release = shipped_release()
    a = release.manifest.architecture
    return {
        "release_sha256": release.sha256,
        "architecture": a.base,
        "size": a.size,
        "learned": list(a.learned),
        "threads": threads,
        "pictures": f"drawn lesions, {PICTURE} x {PICTURE} pixels",
        "interval": "order statistics around the median, at least 95 % coverage over repeats",
        "floor": __doc__.split("\n\n")[1].replace("\n", " ").strip() if __doc__ else "",
        "federations": federations,
        "load": loads,
        "cores": os.cpu_count(),
        "rows": rows.to_mapping(),
    }


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    learned = ", ".join(result["learned"]) or "none"
    threads = f"{result['threads']} thread{'s' if result['threads'] != 1 else ''}"
    head = (
        f"Release {str(result['release_sha256'])[:12]} ({result['architecture']} at {result['size']} pixels, learned parts: {learned}), "
        f"{threads}, {result['cores']} cores. Pictures: {result['pictures']}. {result['floor']}"
    )
    lines = [head, ""]
    for part in PARTS:
        if any(row["part"] == part for row in result["rows"].values()):
            load = result["load"].get(part)
            note = f"Load of the last minute: {load['before']:.1f} before, {load['after']:.1f} after." if load else ""
            lines += [f"## {TITLES[part]}", "", *([note, ""] if note else []), table(result["rows"], part)]
    for f in result["federations"]:
        d = result["rows"][speed_flower.ROUND.format(payload=f["payload"])]["difference"]
        span = f", {d['low']:.2f} to {d['high']:.2f}" if "low" in d else ""
        late = f"; {f['late']} more took a second attempt and are left out" if f["late"] else ""
        told = f"{f['payload']}: {f['bytes']:,} bytes each way to two sites, {f['rounds']} rounds{late}. "
        lines += [f"{told}Ours less stock Flower: {d['median']:.2f} s{span}.", ""]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for speed.json and speed.md")
    parser.add_argument("--threads", type=int, default=1, help="of torch in synthesis and prediction")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s")
    options = parser.parse_args(argv)
    parts = [p for p in PARTS if p in options.parts.split(",")]
    if unknown := sorted({*options.parts.split(",")} - {*PARTS}):
        parser.error(f"no part {unknown[0]}")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "speed.json"
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".speed.") as folder:
        result = measure(parts, options.threads, Path(folder))
    if path.exists() and set(parts) != set(PARTS):  # parts can be measured one after the other
        before = json.loads(path.read_text())
        if before["release_sha256"] == result["release_sha256"]:
            kept = {name: row for name, row in before["rows"].items() if row["part"] not in parts}
            result["rows"] = kept | result["rows"]
            result["load"] = before["load"] | result["load"]
            result["federations"] = result["federations"] or before["federations"]
    text = report(result)
    write_atomic(path, json.dumps(result, indent=1).encode())
    write_atomic(options.out / "speed.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
