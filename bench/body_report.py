"""The page of `bench.body`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from bench.figures import percent, table
from sgps.episodes import Interval

NAMES = {"drawn": "drawn, 3-way", "skin": "common skin, 2-way", "test": "test classes, 2-way"}
COLUMNS = {
    "shown 1": "one exemplar",
    "shown 5": "five exemplars",
    "shown all": "all known pictures as exemplars",
    "known 1": "one exemplar, the known pictures themselves",
}


Part = tuple[list[str], list[list[str]]]


def over_tasks(values: Sequence[float]) -> Interval:
    """Mean and half its 95 % interval over tasks (Student's t)."""
    x = np.asarray(values, float)
    half = t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else float("nan")
    return Interval(float(x.mean()), float(half))


def _tasks(kind: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks that are measured."""
    return {n: v for n, v in kind["tasks"].items() if v["arms"]}


def _gain(tasks: Mapping[str, Any], arm: str, what: str) -> str:
    have = [v["arms"] for v in tasks.values() if what in v["arms"].get(arm, {})]
    if not have:
        return ""
    return percent(over_tasks([a[arm][what] - a["base"][what] for a in have]), True)


def _accuracy(r: Mapping[str, Any]) -> Part:
    rows = []
    for name, kind in r["kinds"].items():
        if not (tasks := _tasks(kind)):
            continue
        first = next(iter(tasks.values()))["arms"]
        base = [percent(over_tasks([v["arms"]["base"][c] for v in tasks.values()])) for c in COLUMNS]
        rows.append([NAMES[name], "base, accuracy", *base, ""])
        for arm in (a for a in first if a != "base" and " x " not in a):
            cosine = np.mean([v["arms"][arm]["cosine"] for v in tasks.values()])
            rows.append([NAMES[name], arm, *(_gain(tasks, arm, c) for c in COLUMNS), f"{cosine:.3f}"])
    return ["tasks", "body", *COLUMNS.values(), "cosine"], rows


def _few(r: Mapping[str, Any]) -> Part:
    rows = []
    for name, kind in r["kinds"].items():
        few = [v["few"] for v in _tasks(kind).values() if "few" in v]
        for shots in few[0] if few else ():
            here = [f[shots] for f in few]
            cells = [
                percent(over_tasks([f[arm] - f["base"] for f in here]), True) if arm in here[0] else ""
                for arm in ("fitted", "generator")
            ]
            rows.append([NAMES[name], shots, percent(over_tasks([f["base"] for f in here])), *cells])
    return ["tasks", "exemplars", "base", "body fitted to the exemplars", "trained generator"], rows


def _cosine(values: Sequence[float]) -> str:
    found = over_tasks(values)
    return f"{found.mean:.3f} ± {found.half:.3f}"


def _coefficients(r: Mapping[str, Any]) -> Part:
    rows = []
    for name, kind in r["kinds"].items():
        for title, f in kind.get("coefficients", {}).get("found", {}).items():
            cells = [_cosine(f["own"])]
            if "other" in f:
                cells += [_cosine(f["other"]), _cosine(np.subtract(f["own"], f["other"]).tolist())]
            share = f["size"] / kind["coefficients"]["size of the oracle"]
            rows.append([NAMES[name], title, *cells, *[""] * (3 - len(cells)), f"{share:.2f}"])
    head = [
        "tasks",
        "coefficients",
        "cosine to the task's oracle",
        "predicted for unrelated tasks",
        "difference",
        "size / oracle's",
    ]
    return head, rows


def _movement(r: Mapping[str, Any]) -> Part:
    rows = []
    for name, kind in r["kinds"].items():
        if not (tasks := _tasks(kind)):
            continue
        first = next(iter(tasks.values()))["arms"]
        some = {n: v for n, v in tasks.items() if any(a.startswith("bounds") for a in v["arms"])}
        cases: list[tuple[str, str, Mapping[str, Any]]] = [
            ("the oracle's coefficients times", a, tasks) for a in first if a.startswith("oracle x ")
        ]
        cases += [("fitted anew, bounds times", a, some) for a in first if a.startswith("bounds x ")]
        for said, arm, here in cases:
            values = [v["arms"][arm]["cosine"] for v in here.values()]
            rows.append(
                [NAMES[name], f"{said} {arm.split()[-1]}", str(len(here)), *(_gain(here, arm, c) for c in list(COLUMNS)[:2]),
                 f"{np.mean(values):.3f} ({min(values):.3f})"]
            )  # fmt: skip
            if arm.endswith(" 0.5"):  # in order
                values = [v["arms"]["oracle"]["cosine"] for v in here.values()]
                cells = [_gain(here, "oracle", c) for c in list(COLUMNS)[:2]]
                rows.append(
                    [NAMES[name], f"{said} 1", str(len(here)), *cells, f"{np.mean(values):.3f} ({min(values):.3f})"]
                )
    return ["tasks", "body", "n", "one exemplar", "five exemplars", "cosine (least)"], rows


def _choice(r: Mapping[str, Any]) -> Part:
    rows = []
    for name, c in r["chosen"].items():
        what = (
            "oracle, mean of one and five exemplars"
            if name == "oracle"
            else f"fitted to the exemplars of a class, {name}"
        )
        grid = ", ".join(f"{s}: {100 * np.mean(g):+.1f}" for s, g in c["gains"].items())
        rows.append([what, f"{c['rate']:g}, {c['steps']}", grid])
    return ["", "chosen: rate, steps", "gain in points on the tasks of the choice, by rate and steps"], rows


def report(r: Mapping[str, Any]) -> str:
    """Markdown of what `run` returns."""
    lines = [
        f"Release {r['release'][:16]}, seed {r['seed']}.",
        "",
        "Accuracy in percent of the base's body, and points that another body adds.",
    ]
    parts = (
        ("", _accuracy),
        (
            "From the exemplars alone: accuracy of the base's body on all other pictures, and points that a body adds.",
            _few,
        ),
        ("Coefficients.", _coefficients),
        ("Movement: points added, and cosine of centred features of public pictures before and after.", _movement),
        ("Choice of steps and rate.", _choice),
    )
    for title, part in parts:
        head, rows = part(r)
        if rows:
            lines += ["", title, "", table(head, rows)] if title else ["", table(head, rows)]
    return "\n".join(lines) + "\n"
