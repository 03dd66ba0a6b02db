"""What `bench.fewshot` says of its values, as Markdown tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.arms import CONTROL, METHODS, OURS, PEER, SEEING
from bench.figures import percent, table
from bench.splits import ARMS

Found = Mapping[str, Any]
FAMILIES = {
    OURS: "Inductive methods",
    CONTROL: "Controls of ours",
    SEEING: "Transductive methods, which see all queries of an episode at once",
}


def report(r: Found) -> str:
    """Markdown of what `run` returns, complete or not."""
    kinds = list(r["methods"].get(OURS, {}))
    return (
        "\n".join([*_head(r), *_accuracy(r, kinds), *_other_measures(r, kinds), *_shifts(r), *_splits(r), *_domains(r)])
        + "\n"
    )


def _head(r: Found) -> list[str]:
    e, learned, data = r["episodes"], ", ".join(r["learned"]) or "none", r["data"]
    classes = ", ".join(f"{c} {n['lesions']} lesions" for c, n in r["classes"].items())
    queries = ", ".join(f"{k} {n}" for k, n in e["queries"].items())
    fewer = (
        f"; methods marked * on the first {e['slow']}" if any(_title(r, m).endswith("*") for m in r["methods"]) else ""
    )
    lines = [
        f"Release {r['release'][:16]}, learned parts that are on: {learned}.",
        f"Data {data['file']} ({data['sha256'][:16]}): {classes}, one image a lesion. Queries a class: {queries}.",
        f"{e['count']} episodes of each kind, seed {e['seed']}, file {e['sha256'][:16]}{fewer}.",
    ]
    if r["seen"]:
        lines.append(
            f"**The base network was trained on {', '.join(r['seen'])} of these data**: only frozen Lite0 has not seen them."
        )
    lines += [f"Note: {n}." for n in r["notes"]]
    missing = [f"{METHODS[m].title} ({why})" for m, why in r.get("left out", {}).items()]
    return [*lines, *([f"Left out: {'; '.join(missing)}."] if missing else [])]


def _of(r: Found, family: str) -> list[str]:
    """Methods of a family that were measured; peers stand beside ours."""
    families = (OURS, PEER) if family == OURS else (family,)
    return [m for m in r["methods"] if METHODS[m].family in families]


def _title(r: Found, m: str) -> str:
    fewer = len(next(iter(r["methods"][m].values()))["episodes"]) < r["episodes"]["count"]
    return METHODS[m].title + (" *" if fewer else "")


def _accuracy(r: Found, kinds: Sequence[str]) -> list[str]:
    text = (
        "Accuracy in percent, 95 % interval over episodes (queries are balanced, so balanced accuracy is the same number). In brackets "
        "ours minus the method, paired over the episodes that both have, with *better*, *worse* or *tie* after Holm's correction over "
        "all methods and settings at 5 %."
    )
    lines = ["", text]
    for family, title in FAMILIES.items():
        rows = []
        for m in _of(r, family):
            cells = [percent(r["methods"][m][k]["accuracy"]) for k in kinds]
            if m != OURS:
                found = [r["ours minus"][f"{m} {k}"] for k in kinds]
                cells = [f"{c} ({percent(d, True)} {d['ours']})" for c, d in zip(cells, found, strict=True)]
            rows.append([_title(r, m), *cells])
        if rows:
            lines += ["", f"{title}.", "", table(["method", *kinds], rows)]
    return lines


def _other_measures(r: Found, kinds: Sequence[str]) -> list[str]:
    measures: dict[str, Callable[[Found], str]] = {
        "AUROC in percent, one class against the rest, mean over classes": lambda a: percent(a["auroc"]),
        "Brier score (0 to 2, lower is better)": lambda a: f"{a['brier']['mean']:.3f} ± {a['brier']['half']:.3f}",
        "Expected calibration error in percent": lambda a: f"{100 * a['ece']:.1f}",
        "Worst class: share of its queries that are right, in percent": lambda a: (
            f"{100 * a['recall'][a['worst class']]:.1f} {a['worst class']}"
        ),
    }
    lines = []
    for title, show in measures.items():
        rows = [[_title(r, m), *(show(by[k]) for k in kinds)] for m, by in r["methods"].items()]
        lines += ["", f"{title}.", "", table(["method", *kinds], rows)]
    return lines


def _shifts(r: Found) -> list[str]:
    if not r["shifts"]:
        return []
    names, lines = list(r["shifts"]), ["", "## Shifts", ""]
    first = r["shifts"][names[0]]["methods"]
    count = len(next(iter(first[OURS].values()))["episodes"])
    lines.append(
        f"Accuracy in percent on the first {count} episodes when the queries are shifted and the support is not; mean: over the shifts."
    )
    for kind in first.get(OURS, {}):
        rows = []
        for m in first:
            if not all(m in r["shifts"][s]["methods"] for s in names):
                continue
            n = len(first[m][kind]["episodes"])
            plain = float(np.mean(r["methods"][m][kind]["episodes"][:n]))
            each = [r["shifts"][s]["methods"][m][kind]["accuracy"]["mean"] for s in names]
            won = [r["shifts"][s]["ours minus"].get(f"{m} {kind}", {}).get("ours") for s in names]
            verdict = (
                "" if m == OURS else ", ".join(f"{won.count(v)} {v}" for v in ("better", "tie", "worse") if v in won)
            )
            cells = [f"{100 * v:.1f}" for v in (plain, *each, float(np.mean(each)), float(np.mean(each)) - plain)]
            rows.append([METHODS[m].title, *cells, verdict])
        lines += ["", f"{kind}.", "", table(["method", "none", *names, "mean", "mean - none", "ours is"], rows)]
    return lines


def _splits(r: Found) -> list[str]:
    s = r["splits"]
    if not s:
        return []
    lines = ["", "## All splits", ""]
    if "reason" in s:
        return [*lines, f"Not measured: {s['reason']}."]
    lines.append(
        f"All {len(s['splits'])} ways to take three test classes, {s['episodes']} episodes each, heads on frozen Lite0 (eight views); the "
        "other classes give the centre and the strengths. Accuracy in percent: mean over the splits, lowest to highest split; in brackets on "
        "how many splits ours' head is better / worse by a paired interval, and ours minus the head over the splits."
    )
    kinds, rows = list(s["arms"]["ours"]), []
    for a, by in s["arms"].items():
        cells = [f"{100 * by[k]['mean']:.1f}, {100 * by[k]['least']:.1f}-{100 * by[k]['most']:.1f}" for k in kinds]
        if a != "ours":
            found = [s["ours minus"][f"{a} {k}"] for k in kinds]
            cells = [
                f"{c} ({d['above']} / {d['below']}; {percent(d, True)})" for c, d in zip(cells, found, strict=True)
            ]
        rows.append([ARMS[a][0], *cells])
    return [*lines, "", table(["head", *kinds], rows)]


def _domains(r: Found) -> list[str]:
    if not r["domains"]:
        return []
    lines = ["", "## Other kinds of pictures", ""]
    sets = [by for found in r["domains"].values() for by in found["methods"].values()]
    count = max(len(a["episodes"]) for by in sets for a in by.values())
    lines.append(
        f"Every class of a set is a test class, {count} episodes of each kind. Accuracy in percent, in brackets ours minus the method with "
        "its verdict."
    )
    for name, found in r["domains"].items():
        kinds = list(next(iter(found["methods"].values())))
        seen = (
            "the base network, so ours and every arm on it, **was trained on these pictures**; only the Lite0 rows are few-shot results"
            if found["seen"]
            else "neither the base network nor Lite0 was trained on these pictures"
        )
        rows = []
        for m, by in found["methods"].items():
            cells = [percent(by[k]["accuracy"]) for k in kinds]
            if m != OURS:
                d = [found["ours minus"][f"{m} {k}"] for k in kinds]
                cells = [f"{c} ({percent(x, True)} {x['ours']})" for c, x in zip(cells, d, strict=True)]
            rows.append([METHODS[m].title, *cells])
        notes = "".join(f" {n}." for n in found["notes"])
        lines += ["", f"{name} ({', '.join(found['classes'])}): {seen}.{notes}", "", table(["method", *kinds], rows)]
    return lines
