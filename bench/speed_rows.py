"""Measurements of `bench.speed` by name, each beside a floor that was measured with it, and their tables."""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LEAST = 6  # repeats that give a 95 % interval of the median


def seconds(work: Callable[..., object], *arguments: Any) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def median(values: Sequence[float]) -> dict[str, float]:
    """Median with the narrowest symmetric pair of order statistics that covers it with probability 95 % or more; without an interval
    where there are fewer values than that takes."""
    x, n = np.sort(np.asarray(values)), len(values)
    out, left = 0, 1.0
    while out < n // 2:  # leave out the lowest and highest `out`: covered unless that few lie on one side
        left -= 2 * math.comb(n, out) / 2**n
        if left < 0.95:
            break
        out += 1
    found = {"median": float(np.median(x))}
    return found if out == 0 else {**found, "low": float(x[out - 1]), "high": float(x[n - out])}


def peak_bytes(process: str = "self") -> int:
    """Largest resident memory of a process, by its number. Linux's ru_maxrss begins at that of the parent, VmHWM does not."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    if process != "self":
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


@dataclass
class Row:
    """unit: s or B. values, beside: of every repeat; beside is empty where nothing was measured beside it. peak: bytes."""

    part: str
    floor: str
    unit: str
    values: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    peak: int = 0

    def to_mapping(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "part": self.part,
            "unit": self.unit,
            "repeats": len(self.values),
            **median(self.values),
        }
        if self.beside:
            pairs = list(zip(self.values, self.beside, strict=True))
            found |= {
                "ratio": median([v / b for v, b in pairs]),
                "difference": median([v - b for v, b in pairs]),
                "ratio_to": self.floor,
            }
        return found | ({"peak": self.peak} if self.peak else {})


class Rows:
    """All measurements, in the order of their first value."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def note(
        self, part: str, name: str, value: float, beside: float | None = None, *, floor: str = "", unit: str = "s", peak: int = 0
    ) -> None:  # fmt: skip
        row = self.rows.setdefault(name, Row(part, floor, unit))
        row.values.append(value)
        if beside is not None:
            row.beside.append(beside)
        row.peak = max(row.peak, peak)

    def to_mapping(self) -> dict[str, Any]:
        return {name: row.to_mapping() for name, row in self.rows.items()}


def table(rows: dict[str, Any], part: str) -> str:
    """The rows of one part as Markdown."""
    lines = [
        "| what | median | interval | ratio | interval | ratio to | peak memory | repeats |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if row["part"] != part:
            continue
        scale, unit = _scale(row)
        value, span = f"{_short(row['median'] * scale)} {unit}", _span(row, scale)
        r = row.get("ratio")
        ratio = ("", "", "") if r is None else (f"{r['median']:.2f}", _span(r, 1, "{:.2f}"), row["ratio_to"])
        peak = f"{row['peak'] / 2**20:.0f} MiB" if row.get("peak") else ""
        lines.append(f"| {name} | {value} | {span} | {' | '.join(ratio)} | {peak} | {row['repeats']} |")
    return "\n".join(lines) + "\n"


def _scale(row: dict[str, Any]) -> tuple[float, str]:
    if row["unit"] == "B":
        return 2.0**-20, "MiB"
    return (1.0, "s") if abs(row["median"]) >= 1 else (1e3, "ms")


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _span(found: dict[str, Any], scale: float, form: str = "") -> str:
    if "low" not in found:
        return ""
    low, high = found["low"] * scale, found["high"] * scale
    return f"{form.format(low)} to {form.format(high)}" if form else f"{_short(low)} to {_short(high)}"
