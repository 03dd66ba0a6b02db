"""What `bench.plans` says of its cells: shares kept, lost draws, which plan the rule picks, paired differences."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from bench.federated_report import POINT, kept_bound
from bench.figures import table
from sgps_privacy.accountant import gaussian_mu

Array = NDArray[Any]
Found = Mapping[str, Any]
ENOUGH, LEAST_KEPT, MOST_LOST = 40, 0.85, 0.02  # the rule: patients, share kept, share of draws that lose a point
DELTA = 1e-5


def _by_split(cells: Sequence[Found]) -> Array:
    """Mean gain of each split, ascending; draws and cells weigh the same, for every cell has as many."""
    splits = sorted({c["split"] for c in cells})
    return np.array([np.mean([c["auroc"] - c["alone"] for c in cells if c["split"] == s]) for s in splits])


def interval(values: Array) -> tuple[float, float]:
    """Mean of independent values, half of its two-sided 95 % interval (Student's t)."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(half)


def chosen(found: Mapping[str, Found]) -> str | None:
    """The rule of `bench.plans`: name of the plan that it picks, None where none passes. found: name -> epsilon, kept, lost, gain."""
    passed = [n for n, f in found.items() if f["kept"] >= LEAST_KEPT and f["lost"] <= MOST_LOST]
    return min(passed, key=lambda n: (found[n]["epsilon"], -found[n]["gain"]), default=None)


def _is(key: str, value: object) -> Callable[[Found], bool]:
    return lambda c: bool(c[key] == value)


def _not(key: str, value: object) -> Callable[[Found], bool]:
    return lambda c: bool(c[key] != value)


def _in_cell(cell: tuple[Any, ...]) -> Callable[[Found], bool]:
    """cell: cameras, patients, sites."""
    return lambda c: (c["cameras"], c["patients"], c["sites"]) == cell


def summary(cells: Sequence[Found], epsilons: Mapping[str, float], exact: str) -> dict[str, Any]:
    """epsilons: candidate -> its epsilon. exact: the plan without noise whose gain shares are of.

    Every plan: gain over the grid, share kept at 40 patients or more with the lower end of its one-sided 95 % interval over splits, share
    of draws that lose a point; the same for each kind of cameras and each class; gain of each cell of the grid; difference to the plain plan of the
    same epsilon.
    """

    def of(plan: str, where: Callable[[Found], bool] = lambda c: True) -> list[Found]:
        return [c for c in cells if c["plan"] == plan and where(c)]

    def judged(plan: str, where: Callable[[Found], bool]) -> dict[str, Any]:
        mine = of(plan, where)
        gain, full = (_by_split(of(p, lambda c: where(c) and c["patients"] >= ENOUGH)) for p in (plan, exact))
        lost = [c["auroc"] < c["alone"] - POINT for c in mine]
        return {
            "gain": float(_by_split(mine).mean()),
            "kept": float(gain.mean() / full.mean()),
            "kept at least": kept_bound(gain, full),
            "lost": float(np.mean(lost)),
            "worst": float(min(c["auroc"] - c["alone"] for c in mine)),
            "draws": len(mine),
            "alone": float(np.mean([c["alone"] for c in mine])),
        }

    kinds = list(dict.fromkeys(c["cameras"] for c in cells))
    classes = list(dict.fromkeys(c["class"] for c in cells))
    found = dict[str, Any]()
    for name in dict.fromkeys(c["plan"] for c in cells):
        found[name] = {"epsilon": epsilons.get(name)} | judged(name, lambda c: True)
        found[name]["cameras"] = {k: judged(name, _is("cameras", k)) for k in kinds}
        found[name]["classes"] = {k: judged(name, _is("class", k)) for k in classes}
        grid = sorted({(c["cameras"], c["patients"], c["sites"]) for c in cells}, key=lambda g: (kinds.index(g[0]), g))
        found[name]["grid"] = [[*g, float(_by_split(of(name, _in_cell(g))).mean())] for g in grid]
    for name, epsilon in epsilons.items():
        plain = next(n for n, e in epsilons.items() if e == epsilon)
        if name != plain:
            found[name]["against"] = {
                k: interval(_by_split(of(name, w)) - _by_split(of(plain, w)))
                for k, w in [("grid", lambda c: True), *((k, _is("cameras", k)) for k in kinds)]
            } | {"plain": plain}

    def picked(where: Callable[[Found], bool]) -> str:
        return chosen({n: {"epsilon": e, **judged(n, where)} for n, e in epsilons.items()}) or "none"

    parts = (
        {k: picked(_is("cameras", k)) for k in kinds}
        | {f"{s} sites": picked(_is("sites", s)) for s in sorted({c["sites"] for c in cells})}
        | {f"without {k}": picked(_not("class", k)) for k in classes if len(classes) > 1}
    )
    return {"found": found, "default": chosen({n: found[n] for n in epsilons}), "exact": exact, "parts": parts}


def _percent(x: float, signed: bool = False) -> str:
    return f"{100 * x:{'+' if signed else ''}.1f}"


def report(r: Mapping[str, Any]) -> str:
    """Markdown of what `bench.plans.run` returns."""
    s, plans = r["setting"], r["plans"]
    found, exact = plans["found"], plans["exact"]
    kinds = list(found[exact]["cameras"])
    rows = []
    for name, f in found.items():
        cells = [
            f"{_percent(x['kept'])} (at least {_percent(x['kept at least'])})" for x in (f, *f["cameras"].values())
        ]
        gains = [_percent(x["gain"], True) for x in (f, *f["cameras"].values())]
        lost = [_percent(x["lost"]) for x in (f, *f["cameras"].values())]
        mu = f"{gaussian_mu(f['epsilon'], DELTA):.3f}" if f["epsilon"] else ""
        verdict = "" if not f["epsilon"] else "yes" if f["kept"] >= LEAST_KEPT and f["lost"] <= MOST_LOST else "no"
        rows.append([name, mu, *cells, *gains, *lost, _percent(f["worst"], True), verdict])
    heads = [f"{what}: {k}" for what in ("kept, %", "gain", "lost a point, %") for k in ("grid", *kinds)]
    alone = ", ".join(f"{_percent(x['alone'])} ({k})" for k, x in found[exact]["cameras"].items())
    lines = [
        (
            f"Release {r['release'][:16]}, data {r['data']['file']} ({r['data']['sha256'][:16]}), {s['splits']} splits, {s['draws']} draws of the "
            f"noise, delta {DELTA:g}. {found[next(n for n in found if found[n]['epsilon'])]['draws']} single draws of each plan. "
            f"AUROC of the exemplar alone: {alone}."
        ),
        "",
        f"The rule picks: **{plans['default'] or 'none'}**.",
        "",
        table(["plan", "mu", *heads, "worst draw", "passes"], rows),
        "",
        f"On parts of the grid it would pick: {'; '.join(f'{k}: {v}' for k, v in plans['parts'].items())}.",
        "",
        "Share of the gain kept at 40 patients or more, in % (single draws that lose a point, in %), by the disease that only others hold:",
        "",
        table(
            ["plan", *found[exact]["classes"]],
            [
                [n, *(f"{_percent(x['kept'])} ({_percent(x['lost'])})" for x in f["classes"].values())]
                for n, f in found.items()
            ],
        ),
        "",
        "Gain in points of AUROC (share kept in %), by cell:",
        "",
    ]
    full = [g[3] for g in found[exact]["grid"]]
    shown = [n for n in found if n != exact]
    body = [
        [*(str(x) for x in found[exact]["grid"][i][:3]), _percent(full[i], True)]
        + [f"{_percent(found[n]['grid'][i][3], True)} ({100 * found[n]['grid'][i][3] / full[i]:.0f})" for n in shown]
        for i in range(len(full))
    ]
    lines += [table(["cameras", "patients", "sites", exact, *shown], body), ""]
    compared = {n: f["against"] for n, f in found.items() if "against" in f}
    if compared:
        body = [
            [
                f"{n} minus {a['plain']}",
                *(f"{_percent(m, True)} ± {100 * h:.1f}" for m, h in (a[k] for k in ("grid", *kinds))),
            ]
            for n, a in compared.items()
        ]
        lines += [
            "Paired differences of the gain, with 95 % intervals over splits:",
            "",
            table(["plans", "grid", *kinds], body),
            "",
        ]
    return "\n".join(lines)
