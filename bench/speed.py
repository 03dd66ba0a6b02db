"""Speed and memory of synthesis with the shipped release: `python -m bench.speed --out DIR` writes speed.json and speed.md.

Seconds depend on the machine, so each is also given as a ratio to the floor under any synthesis, measured right beside it: one
forward pass of the base network over the same pictures (one view) plus writing a state dict. For prediction the floor is the
forward pass alone. Medians with order-statistic intervals of at least 95 % coverage; ratios are paired within a repeat.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from bench.cold import DISEASE
from sgps.draw import draw_patient, draw_profile
from sgps.files import write_atomic
from sgps.images import read
from sgps.shipped import shipped_release
from sgps.synthesis import FALSE_ALARMS, RIVALS, Synthesizer

ROOT = Path(__file__).resolve().parent.parent
PICTURE = 450  # pixels a side
TRIO, SHOTS = ("akiec", "df", "vasc"), 5
PREDICTED = 16  # pictures of one call
# Repeats: the least that give a 95 % interval of the median, without and with one value left out at each end.
COLD, WARM = 6, 9


def seconds(work: Callable[..., object], *arguments: Any) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def median(values: Sequence[float]) -> dict[str, float]:
    """Median with the narrowest symmetric pair of order statistics that covers it with probability 95 % or more."""
    x, n = np.sort(np.asarray(values)), len(values)
    out, left = 0, 1.0
    while out < n // 2:  # leave out the lowest and highest `out`: covered unless that few lie on one side
        left -= 2 * math.comb(n, out) / 2**n
        if left < 0.95:
            break
        out += 1
    if out == 0:
        raise ValueError(f"{n} repeats are too few for a 95 % interval")
    return {"median": float(np.median(x)), "low": float(x[out - 1]), "high": float(x[n - out])}


class Bench:
    """Measurements by name: seconds or bytes of every repeat, and of the floor beside it."""

    def __init__(self, threads: int, folder: Path) -> None:
        self.threads, self.folder = threads, folder
        self.synthesizer = Synthesizer(shipped_release())
        self.encoder = self.synthesizer.encoder
        self.rows: dict[str, tuple[str, str, list[float], list[float]]] = {}

    def pictures(self, first: int, count: int, profile: int = 7) -> list[Image.Image]:
        """Drawn lesions, the same for everybody."""
        drawn = draw_profile(profile)
        return [
            Image.fromarray(draw_patient(drawn, seed, size=PICTURE)[0]).convert("RGB")
            for seed in range(first, first + count)
        ]

    def note(self, name: str, floor: str, unit: str, value: float, beside: float) -> None:
        row = self.rows.setdefault(name, (floor, unit, [], []))
        row[2].append(value)
        row[3].append(beside)

    def save(self, state: Mapping[str, torch.Tensor]) -> None:
        safetensors.torch.save_file(dict(state), self.folder / "weights.safetensors")

    def forward(self, pictures: Sequence[Image.Image], views: int) -> None:
        self.encoder.features(pictures, views)
        self.save(self.encoder.target.base)

    def floor(self, pictures: Sequence[Image.Image]) -> float:
        return seconds(self.forward, pictures, 1)

    def weights(self, exemplars: Mapping[str, Sequence[Image.Image]]) -> None:
        c = self.synthesizer.compose(exemplars, {})
        self.save(self.encoder.target.export(c.body, c.weight, c.bias))

    def calibrated(self, exemplars: Mapping[str, Sequence[Image.Image]]) -> None:
        self.save(self.synthesizer.synthesize(exemplars, {}, {}, None, FALSE_ALARMS, RIVALS).state)

    def folder_of(self, exemplars: Mapping[str, Sequence[Image.Image]], place: int) -> None:
        made = self.synthesizer.synthesize(exemplars, {}, {}, None, FALSE_ALARMS, RIVALS)
        made.save(self.folder / f"model{place}")

    def child(self, kind: str, picture: Path) -> tuple[float, int]:
        """Seconds from the start of a process until its weights are written; its peak memory in the end."""
        call = [sys.executable, "-m", "bench.cold", kind, str(picture), str(self.folder / f"{kind}.safetensors")]
        variables = os.environ | {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        start = time.perf_counter()
        with subprocess.Popen(call, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
            assert process.stdout is not None
            assert process.stdout.readline() == "written\n"
            found = time.perf_counter() - start
            peak = int(process.stdout.readline())
        assert process.returncode == 0
        return found, peak

    def cold(self) -> None:
        for repeat in range(COLD):
            path = self.folder / f"exemplar{repeat}.png"
            self.pictures(1000 + repeat, 1)[0].save(path)
            beside = self.floor([read(path)])
            found, peak = self.child("synthesis", path)
            base, base_peak = self.child("reference", path)
            both = "forward + writing"
            self.note("cold start: process to weights", both, "s", found, beside)
            self.note("cold start of the floor: process, base, forward, writing", both, "s", base, beside)
            self.note("peak memory: process, weights, calibration", f"{both}, in a process", "B", peak, base_peak)

    def warm(self) -> None:
        both = "forward + writing"
        groups = {d: self.pictures(0, SHOTS, profile) for profile, d in enumerate(TRIO)}
        fifteen = [p for group in groups.values() for p in group]
        for repeat in range(-1, WARM):  # the first warms up and does not count
            one = self.pictures(repeat + 1, 1)
            floor, floor_of_all = self.floor(one), self.floor(fifteen)
            disease = {DISEASE: one}
            found = {
                "floor: forward of one picture, writing": (floor, floor),
                "eight-view forward of one picture, writing": (seconds(self.forward, one, 8), floor),
                "1 exemplar, warm: weights": (seconds(self.weights, disease), floor),
                "1 exemplar, warm: weights and calibration": (seconds(self.calibrated, disease), floor),
                "1 exemplar, warm: model folder, durable": (seconds(self.folder_of, disease, repeat), floor),
                "3-way 5-shot, warm: weights": (seconds(self.weights, groups), floor_of_all),
                "3-way 5-shot, warm: weights and calibration": (seconds(self.calibrated, groups), floor_of_all),
            }
            for name, (value, beside) in found.items() if repeat >= 0 else ():
                self.note(name, both, "s", value, beside)

    def predictions(self) -> None:
        made = self.synthesizer.synthesize({DISEASE: self.pictures(0, 1)}, {}, {}, None, FALSE_ALARMS, RIVALS)
        pictures = self.pictures(2000, PREDICTED)
        for repeat in range(-1, WARM):
            beside = seconds(self.encoder.features, pictures, 1) / PREDICTED
            for count in (8, 1):
                value = seconds(made.logits, pictures, count) / PREDICTED
                if repeat >= 0:
                    name = f"prediction of a picture, {count} view{'s' if count > 1 else ''}"
                    self.note(name, "forward", "s", value, beside)

    def result(self) -> dict[str, Any]:
        a = self.synthesizer.release.manifest.architecture
        return {
            "release_sha256": self.synthesizer.release.sha256,
            "architecture": a.base,
            "size": a.size,
            "learned": list(a.learned),
            "threads": self.threads,
            "pictures": f"drawn lesions, {PICTURE} x {PICTURE} pixels, decoded (read from PNG in a cold start)",
            "interval": "order statistics around the median, at least 95 % coverage over repeats",
            "floor": __doc__.split("\n\n")[1].replace("\n", " ").strip() if __doc__ else "",
            "rows": {
                name: {
                    "unit": unit,
                    "repeats": len(values),
                    **median(values),
                    "ratio": median([v / b for v, b in zip(values, beside, strict=True)]),
                    "ratio_to": floor,
                }
                for name, (floor, unit, values, beside) in self.rows.items()
            },
        }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    parts = ", ".join(result["learned"]) or "none"
    threads = f"{result['threads']} thread{'s' if result['threads'] != 1 else ''}"
    head = (
        f"Synthesis with release {str(result['release_sha256'])[:12]} ({result['architecture']} at {result['size']} pixels, learned "
        f"parts: {parts}), {threads}. Pictures: {result['pictures']}. {result['floor']}"
    )
    lines = [
        head,
        "",
        "| what | median | interval | ratio | interval | ratio to | repeats |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        scale, unit = (1e3, "ms") if row["unit"] == "s" else (1e-6, "MB")
        value, low, high = (
            f"{row[k] * scale:.3g}" if row[k] * scale < 1000 else f"{row[k] * scale:.0f}"
            for k in ("median", "low", "high")
        )
        r = row["ratio"]
        lines.append(
            f"| {name} | {value} {unit} | {low} to {high} | {r['median']:.2f} | {r['low']:.2f} to {r['high']:.2f} "
            f"| {row['ratio_to']} | {row['repeats']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for speed.json and speed.md")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in every process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".speed.") as folder:
        bench = Bench(options.threads, Path(folder))
        bench.warm()
        bench.predictions()
        bench.cold()
        result = bench.result()
    result["load"] = {"before": before, "after": os.getloadavg()[0], "cores": os.cpu_count()}
    text = table(result)
    write_atomic(options.out / "speed.json", json.dumps(result, indent=1).encode())
    write_atomic(options.out / "speed.md", text.encode())
    print(text)
    print(f"load of the last minute: {before:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
