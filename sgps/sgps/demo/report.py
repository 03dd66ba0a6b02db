"""The demo's report: one self-contained HTML page, and the same table for the terminal."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from sgps.demo.measure import AFTER, BEFORE, EXACT, GRID, Measured
from sgps.files import write_atomic

COLOURS = {BEFORE: "#6b7685", AFTER: "#1f5fa8", EXACT: "#2e8b57"}


def picture(image: Image.Image, side: int = 300) -> str:
    """A data address of a JPEG, at most `side` pixels."""
    small, data = image.copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(data, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def roc_plot(measured: Measured, titles: dict[str, str]) -> str:
    """A data address of a PNG: mean ROC of each arm and disease with its 95 % band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.9), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(titles), sharey=True)
    for axis, (disease, title) in zip(axes, titles.items(), strict=True):
        for name, colour in COLOURS.items():
            curves = np.array(measured.arm(name).roc[disease])
            mean, half = curves.mean(0), 1.96 * curves.std(0) / np.sqrt(len(curves))
            axis.plot(GRID, mean, color=colour, lw=2, label=name, ls="--" if name == EXACT else "-")
            axis.fill_between(GRID, mean - half, np.minimum(mean + half, 1), color=colour, alpha=0.15, lw=0)
        axis.plot([0, 1], [0, 1], color="#c9d0d8", lw=1)
        axis.set(title=title, xlabel="false alarms", xlim=(0, 1), ylim=(0, 1.01))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("found")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(COLOURS), frameon=False, fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def rows(measured: Measured, diseases: tuple[str, ...]) -> list[dict[str, Any]]:
    """The table: a row an arm, a cell a disease, with the paired gain over the exemplar alone."""
    out, alone = [], measured.arm(BEFORE)
    for arm in measured.arms:
        cells = []
        for d in diseases:
            mean, gain = arm.mean(d), arm.gain(d, alone)
            paired = "" if arm is alone else f"{gain.mean:+.1f} ± {gain.half:.1f}"
            cells.append({"value": f"{mean.mean:.1f} ± {mean.half:.1f}", "gain": paired})
        out.append({"name": arm.name, "main": arm.name == AFTER, "cells": cells})
    return out


def text_table(table: list[dict[str, Any]], heads: tuple[str, ...]) -> str:
    """The same table in plain text."""
    width = max(len(r["name"]) for r in table)
    lines = [f"{'AUROC of one exemplar, percent':{width}}" + "".join(f"  {h:>26}" for h in heads)]
    for r in table:
        cells = [c["value"] + (f"  ({c['gain']})" if c["gain"] else "") for c in r["cells"]]
        lines.append(f"{r['name']:{width}}" + "".join(f"  {c:>26}" for c in cells))
    return "\n".join(lines)


def write(path: Path, context: dict[str, Any]) -> None:
    """Render the page. Every text is escaped; a missing value is an error."""
    environment = Environment(loader=PackageLoader("sgps.demo", "."), autoescape=True, undefined=StrictUndefined)
    write_atomic(path, environment.get_template("report.html.j2").render(context).encode())
