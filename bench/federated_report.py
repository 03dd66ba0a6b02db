"""What `bench.federated` says of its cells: means, paired one-sided bounds over splits, shares kept, lost draws, curves."""

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import t as student

from bench.figures import table
from sgps_privacy.accountant import gaussian_mu

matplotlib.use("Agg")
Array = NDArray[Any]
Cell = Mapping[str, Any]
NO_ROW, NO_NOISE, ALONE = "public only", "no noise", "one site alone"
MEASURES = ("other", "all", "3w1s", "known")
POINT = 0.01
EDGES = (0.0, 0.5, 1.0, 1.5, 2.0, 2.6, 3.6, 5.2, 9.0, math.inf)  # of r, for the curve
DELTA = 1e-5


def _value(cell: Cell, measure: str, test: Sequence[str]) -> float | None:
    if measure in ("other", "all"):
        return float(np.mean([cell[d][measure] for d in test]))
    return float(cell[measure]) if measure in cell else None


def bound(values: Array) -> float:
    """Lower end of the one-sided 95 % interval of the mean of independent values (Student's t)."""
    return float(values.mean() - student.ppf(0.95, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def kept_bound(gain: Array, full: Array) -> float:
    """Largest share k of which the one-sided 95 % bound still says gain >= k full, paired (Fieller 1954). At least -1."""
    shares = np.linspace(1.5, -1.0, 501)
    return float(next((k for k in shares if bound(gain - k * full) >= 0), -1.0))


def summary(cells: Sequence[Cell], test: Sequence[str]) -> dict[str, Any]:
    """Of every arm: mean of each measure, gain over public only with its bound, share of the gain without noise kept with its bound,
    share of single draws and diseases that lie more than a point below public only."""
    splits = sorted({c["split"] for c in cells})
    plain = {c["split"]: c for c in cells if c["arm"] == NO_ROW}
    full: dict[str, Array] = {}
    out: dict[str, Any] = {}

    def by_split(arm: str, measure: str, over: Callable[[Sequence[float]], Any]) -> Array | None:
        rows = []
        for s in splits:
            found = [_value(c, measure, test) for c in cells if c["arm"] == arm and c["split"] == s]
            if not found or None in found:
                return None
            rows.append(float(over([f for f in found if f is not None])))
        return np.array(rows)

    arms: list[tuple[str, str, Callable[[Sequence[float]], Any]]] = []
    for arm in dict.fromkeys(c["arm"] for c in cells):
        arms.append((arm, arm, np.mean))
        if arm == ALONE:
            arms.append(("best site alone", arm, max))
    arms.sort(key=lambda a: (a[1] != NO_ROW, a[1] != NO_NOISE))
    for name, arm, over in arms:
        mine, entry = [c for c in cells if c["arm"] == arm], dict[str, Any]()
        for m in MEASURES:
            values, start = by_split(arm, m, over), by_split(NO_ROW, m, np.mean)
            if values is None or start is None:
                continue
            gain = values - start
            full.setdefault(m, gain) if arm == NO_NOISE else None
            entry[m] = {"mean": float(values.mean()), "deviation": float(values.std(ddof=1))}
            entry[m] |= {"gain": float(gain.mean()), "least gain": bound(gain)}
            if m in full and abs(full[m].mean()) > 1e-9:
                entry[m] |= {"kept": float(gain.mean() / full[m].mean()), "kept at least": kept_bound(gain, full[m])}
        lost = [c[d]["other"] < plain[c["split"]][d]["other"] - POINT for c in mine for d in test]
        entry |= {
            "diseases": {d: float(np.mean([c[d]["other"] for c in mine])) for d in test},
            "lost a point": float(np.mean(lost)),
            "runs": len(mine),
        }
        out[name] = entry
    return out


def _r(cell: Cell, k: int) -> float:
    mu = gaussian_mu(cell["epsilon"], DELTA)
    return float(cell["patients"] * cell["rounds"] * mu / math.sqrt(cell["sites"] * cell["rounds"] * k))


def curve(cells: Sequence[Cell], k: int) -> dict[str, Any]:
    """points: r, kept and gains of every combination of patients, sites, rounds and epsilon, over classes and splits. bins: what is
    kept by r. Both are ratios of mean gains."""
    if not cells:
        return {"points": [], "bins": []}
    key = ("split", "class", "patients", "sites", "rounds")
    full = {tuple(c[x] for x in key): c["auroc"] - c["public"] for c in cells if not c["epsilon"]}
    groups: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    ratio: dict[tuple[Any, ...], float] = {}
    for c in cells:
        if c["epsilon"]:
            point = (c["patients"], c["sites"], c["rounds"], c["epsilon"])
            groups.setdefault(point, []).append((c["auroc"] - c["public"], full[tuple(c[x] for x in key)]))
            ratio[point] = _r(c, k)
    points = [
        dict(zip(("patients", "sites", "rounds", "epsilon"), p, strict=True))
        | {"r": ratio[p], "gain": float(np.mean([g for g, _ in found])), "full": float(np.mean([f for _, f in found]))}
        | {"lost a point": float(np.mean([g < -POINT for g, _ in found])), "cells": len(found)}
        for p, found in groups.items()
    ]
    bins = []
    for low, high in itertools.pairwise(EDGES):
        mine = [p for p in points if low <= p["r"] < high]
        if mine:
            weight = np.array([p["cells"] for p in mine], float)
            each = [p["gain"] / p["full"] for p in mine]
            bins.append(
                {
                    "r": float(np.average([p["r"] for p in mine], weights=weight)),
                    "kept": float(
                        np.average([p["gain"] for p in mine], weights=weight)
                        / np.average([p["full"] for p in mine], weights=weight)
                    ),
                    "low": float(min(each)),
                    "high": float(max(each)),
                    "gain": float(np.average([p["gain"] for p in mine], weights=weight)),
                    "lost a point": float(np.average([p["lost a point"] for p in mine], weights=weight)),
                    "points": len(mine),
                }
            )
    return {"points": points, "bins": bins}


def _percent(x: float, signed: bool = False) -> str:
    return f"{100 * x:{'+' if signed else ''}.1f}"


def report(r: Mapping[str, Any]) -> str:
    """Markdown of what `bench.federated.run` returns."""
    s, rows = r["setting"], []
    for arm, found in r["arms"].items():
        cells = [arm]
        for m in MEASURES:
            if m not in found:
                cells.append("")
                continue
            f = found[m]
            gain = f" ({_percent(f['gain'], True)}, at least {_percent(f['least gain'], True)})"
            cells.append(_percent(f["mean"]) + (gain if arm != NO_ROW else ""))
        kept = found["other"].get("kept")
        cells.append("" if kept is None else f"{100 * kept:.0f}, at least {100 * found['other']['kept at least']:.0f}")
        cells += [" / ".join(_percent(v) for v in found["diseases"].values()), _percent(found["lost a point"])]
        rows.append([*cells, str(found["runs"])])
    patients = ", ".join(f"{c} {n}" for c, n in r["patients"].items())
    diseases = " / ".join(next(iter(r["arms"].values()))["diseases"])
    head = ["arm", "one exemplar, other test classes", "all other classes", "3-way 1-shot", "known classes"]
    head += ["kept in %", diseases, "lost a point, %", "runs"]
    mus = ", ".join(f"{e:g}: {gaussian_mu(e, DELTA):.3f}" for e in (8, 3, 1))
    lines = [
        (
            f"Release {r['release'][:16]}, data {r['data']['file']} ({r['data']['sha256'][:16]}). Patients (lesions): {patients}. "
            f"Sites: {', '.join(map(str, s['sites']))} patients of common classes, Dirichlet({s['dirichlet']:g}) over the sites for each "
            f"test class. {s['splits']} splits, {s['draws']} draws of the noise, delta {s['delta']:g}; mu at epsilon {mus}."
        ),
        "",
        (
            "AUROC and accuracy in percent (gain over public only, lower end of its paired one-sided 95 % interval over splits). Kept: share "
            "of the gain without noise, against the other test classes, with the lower end of its one-sided 95 % interval. Lost a point: "
            "single draws (or sites) and diseases more than one point below public only."
        ),
        "",
        table(head, rows),
    ]
    return "\n".join([*lines, *_curve_text(r["curve"])]) + "\n"


def _curve_text(c: Mapping[str, Any]) -> list[str]:
    if not c["points"]:
        return []
    rows = [
        [
            f"{b['r']:.2f}",
            f"{100 * b['kept']:.0f} ({100 * b['low']:.0f} to {100 * b['high']:.0f})",
            _percent(b["gain"], True),
            _percent(b["lost a point"]),
            str(b["points"]),
        ]
        for b in c["bins"]
    ]
    out = [
        "",
        "What is kept by r = n mu / sqrt(S k), over all combinations of patients, sites, rounds and epsilon (range of the combinations):",
        "",
        table(["r", "kept in %", "gain", "lost a point, %", "combinations"], rows),
    ]
    shown = sorted({(p["patients"], p["sites"], p["rounds"]) for p in c["points"]})
    by = {(p["patients"], p["sites"], p["rounds"], p["epsilon"]): p for p in c["points"]}
    rows = []
    for n, sites, rounds in shown:
        cells = [by[n, sites, rounds, e] for e in (8.0, 3.0, 1.0)]
        text = [f"{_percent(p['gain'], True)} ({100 * p['gain'] / p['full']:.0f})" for p in cells]
        rows.append([str(n), str(sites), str(rounds), _percent(cells[0]["full"], True), *text])
    head = ["patients in a round", "sites", "rounds", "gain without noise", "epsilon 8", "epsilon 3", "epsilon 1"]
    return [*out, "", "Gain in AUROC against all other classes, in points (share kept in %):", "", table(head, rows)]


def plot(c: Mapping[str, Any]) -> bytes:
    """SVG: share kept against r, one mark for each combination, and the line through the bins."""
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for epsilon, mark in ((8.0, "o"), (3.0, "s"), (1.0, "^")):
        mine = [p for p in c["points"] if p["epsilon"] == epsilon]
        share = [100 * p["gain"] / p["full"] for p in mine]
        axes.plot([p["r"] for p in mine], share, mark, markersize=4, label=f"epsilon {epsilon:g}")
    axes.plot([b["r"] for b in c["bins"]], [100 * b["kept"] for b in c["bins"]], "k-", linewidth=1, label="mean")
    axes.set(xscale="log", xlabel="r = n mu / sqrt(S k)", ylabel="share of the gain kept, %", ylim=(-40, 120))
    axes.legend(loc="lower right")
    data = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "sgps"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    return data.getvalue()
