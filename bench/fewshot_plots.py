"""Figures of `bench.fewshot`: accuracy by method with intervals, reliability, shifts."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sgps"})  # small files, the same bytes again
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bench.arms import CONTROL, METHODS, OURS, PEER, SEEING
from sgps.files import write_atomic

COLOURS = {OURS: "#c0392b", CONTROL: "#e59866", PEER: "#34495e", SEEING: "#95a5a6"}
SHOWN = ("ours", "prototype", "prototype-lite0-centred", "logistic", "feat-centred", "fit")  # reliability


def draw(r: Mapping[str, Any], out: Path) -> None:
    """`accuracy.svg`, `reliability.svg` and, where shifts were measured, `shifts.svg`."""
    _save(_accuracy(r), out / "accuracy.svg")
    _save(_reliability(r), out / "reliability.svg")
    if r["shifts"]:
        _save(_shifts(r), out / "shifts.svg")


def _save(figure: Figure, path: Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    plt.close(figure)
    write_atomic(path, data.getvalue())


def _accuracy(r: Mapping[str, Any]) -> Figure:
    kinds, methods = list(r["methods"][OURS]), list(r["methods"])[::-1]
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.2 + 2.4 * len(kinds), 1.2 + 0.22 * len(methods)), sharey=True)
    for axis, kind in zip(np.atleast_1d(axes), kinds, strict=True):
        for family, colour in COLOURS.items():
            own = [(y, r["methods"][m][kind]["accuracy"]) for y, m in enumerate(methods) if METHODS[m].family == family]
            x, half = ([100 * a[k] for _, a in own] for k in ("mean", "half"))
            axis.errorbar(x, [y for y, _ in own], xerr=half, fmt="o", ms=3.5, color=colour)
        axis.axvline(100 * r["methods"][OURS][kind]["accuracy"]["mean"], color=COLOURS[OURS], lw=0.6, ls=":")
        axis.set_title(kind, fontsize=9)
        axis.set_xlabel("accuracy, %", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(axis="x", lw=0.3)
    np.atleast_1d(axes)[0].set_yticks(range(len(methods)), methods)
    figure.tight_layout()
    return figure


def _reliability(r: Mapping[str, Any]) -> Figure:
    kinds = list(r["methods"][OURS])
    figure, axes = plt.subplots(1, len(kinds), figsize=(2.7 * len(kinds), 3), sharey=True)
    for axis, kind in zip(np.atleast_1d(axes), kinds, strict=True):
        axis.plot([0, 1], [0, 1], color="black", lw=0.5)
        for m in (m for m in SHOWN if m in r["methods"]):
            bins = [b for b in r["methods"][m][kind]["reliability"] if b["share"] > 0.01]
            axis.plot([b["confidence"] for b in bins], [b["right"] for b in bins], "o-", ms=3, lw=1, label=m)
        axis.set_title(kind, fontsize=9)
        axis.set_xlabel("confidence", fontsize=8)
        axis.tick_params(labelsize=7)
    np.atleast_1d(axes)[0].set_ylabel("share right", fontsize=8)
    np.atleast_1d(axes)[-1].legend(fontsize=6)
    figure.tight_layout()
    return figure


def _shifts(r: Mapping[str, Any]) -> Figure:
    names, methods = list(r["shifts"]), list(r["shifts"][next(iter(r["shifts"]))]["methods"])
    kinds = list(r["methods"][OURS])
    figure, axes = plt.subplots(len(kinds), 1, figsize=(7, 2.2 * len(kinds)), sharex=True)
    for axis, kind in zip(np.atleast_1d(axes), kinds, strict=True):
        for m in methods:
            plain = r["methods"][m][kind]["accuracy"]["mean"]
            each = [r["shifts"][s]["methods"][m][kind]["accuracy"]["mean"] for s in names]
            style = {"color": COLOURS[OURS], "lw": 2} if m == OURS else {"lw": 0.8}
            axis.plot(range(len(names) + 1), [100 * v for v in (plain, *each)], "o-", ms=3, label=m, **style)
        axis.set_ylabel(f"{kind}, %", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(axis="y", lw=0.3)
    np.atleast_1d(axes)[-1].set_xticks(range(len(names) + 1), ["none", *names])
    np.atleast_1d(axes)[0].legend(fontsize=6, ncols=3)
    figure.tight_layout()
    return figure
