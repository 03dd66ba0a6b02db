"""An evaluation as files: evaluation.json, evaluation.md and three pictures. They hold sums over patients, no names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sgps.files import new_folder, write_atomic
from sgps_client.data.table import counted
from sgps_client.evaluation import GRID, Result, as_mapping

if TYPE_CHECKING:
    from matplotlib.axes import Axes

JSON, MARKDOWN = "evaluation.json", "evaluation.md"
NAMES = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity at the threshold",
    "false_alarm_rate": "false-alarm rate at the threshold",
    "none_of_these": "answered “none of these”",
    "outside_accepted": "pictures of other classes that were accepted",
    "ece": "expected calibration error",
    "brier": "Brier score",
}
Scores = Mapping[str, NDArray[Any]]


def write(folder: Path, result: Result, facts: Mapping[str, Any], scores: Scores, score_name: str) -> None:
    """Everything in a new folder, whole or not at all.

    facts: what was evaluated on what. scores: group of pictures -> scores, for the histogram. Raises InputError when `folder`
    exists.
    """
    with new_folder(folder, 0o700) as work:
        write_atomic(
            work / JSON, (json.dumps(body(result, facts), indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()
        )
        pictures = _plots(work, result, scores, score_name)
        write_atomic(work / MARKDOWN, _markdown(result, facts, pictures).encode())


def body(result: Result, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of evaluation.json."""
    return {**facts, **as_mapping(result), "notes": [*facts["notes"], *result.notes]}


def _markdown(result: Result, facts: Mapping[str, Any], pictures: Sequence[str]) -> str:
    rows = "\n".join(f"| {NAMES[name]} | {figure} |" for name, figure in result.figures.items())
    lines = [
        f"# Evaluation of {facts['model']}",
        f"{counted(facts['pictures'], 'picture')} of {counted(facts['units'], 'patient')}, one for each value of `{facts['unit_column']}`.",
        f"| figure | value (95 % interval over patients) |\n|---|---|\n{rows}",
        "\n".join(f"* {note}" for note in (*facts["notes"], *result.notes)),
    ]
    if result.table:
        columns = list(next(iter(result.table.values())))
        head = "| truth \\ answer | " + " | ".join(columns) + " |\n" + "|---" * (1 + len(columns)) + "|"
        body = "\n".join(
            f"| {truth} | " + " | ".join(str(row[c]) for c in columns) + " |" for truth, row in result.table.items()
        )
        lines.append(f"{head}\n{body}")
    lines += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(line for line in lines if line) + "\n"


def _plots(work: Path, result: Result, scores: Scores, score_name: str) -> list[str]:
    from matplotlib.figure import Figure

    drawn = []
    for name in ("roc.png", "reliability.png", "scores.png"):
        if name == "roc.png" and result.roc is None:
            continue
        figure = Figure(figsize=(4.5, 4.0), layout="constrained")
        axes = figure.subplots()
        if name == "roc.png":
            _roc(axes, result)
        elif name == "reliability.png":
            _reliability(axes, result)
        else:
            _histogram(axes, scores, score_name)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(work / name, dpi=130, metadata={"Software": ""})
        drawn.append(name)
    return drawn


def _roc(axes: "Axes", result: Result) -> None:
    if result.roc is None:
        return
    axes.fill_between(
        GRID, result.roc.low, result.roc.high, alpha=0.25, linewidth=0, label="95 % interval over patients"
    )
    axes.plot(GRID, result.roc.value, label=f"AUROC {result.figures['auroc']}")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    if "false_alarm_rate" in result.figures:
        point = result.figures["false_alarm_rate"].value, result.figures["sensitivity"].value
        axes.plot(*point, "o", color="black", label="the threshold")
    axes.set(xlabel="false-alarm rate", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(loc="lower right", fontsize=8, frameon=False)


def _reliability(axes: "Axes", result: Result) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    expected, observed = [b.expected for b in result.reliability], [b.observed for b in result.reliability]
    axes.plot(expected, observed, "o-", label=f"expected calibration error {result.figures['ece']}")
    for b in result.reliability:
        axes.annotate(str(b.count), (b.expected, b.observed), textcoords="offset points", xytext=(4, -10), fontsize=7)
    axes.set(xlabel="probability that was stated", ylabel="share that it was", xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.legend(loc="upper left", fontsize=8, frameon=False)


def _histogram(axes: "Axes", scores: Scores, name: str) -> None:
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), bins=30).tolist()
    for group, values in scores.items():
        if len(values):
            axes.hist(
                values,
                edges,
                weights=np.full(len(values), 1 / len(values)),
                alpha=0.5,
                label=f"{group} ({len(values)})",
            )
    axes.set(xlabel=name, ylabel="share of the group's pictures")
    axes.legend(fontsize=8, frameon=False)
