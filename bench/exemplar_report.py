"""What `bench.one_exemplar` says of its scores: AUROCs, sensitivities, means, worst tenths, paired differences, tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.figures import balanced, compared, percent, table
from sgps.episodes import Interval, auroc, interval

Array = NDArray[Any]
OURS, NO_TEXT, NO_RIVALS, NO_LENGTH = "ours", "ours-no-text", "ours-no-rivals", "ours-no-length"
LITE0 = "lite0"
METHODS = {
    OURS: "ours: synthesis with the shipped settings",
    NO_TEXT: "ours, without text",
    NO_RIVALS: "ours, rivals not subtracted",
    NO_LENGTH: "ours, divided by the length of the query's feature",
    "cosine": "cosine",
    "centred": "centred cosine",
    LITE0: "frozen Lite0, centred cosine",
    "plda": "PLDA, scatter of the reference bank",
    "logistic": "logistic probe, reference bank as negatives",
}
RATES = (0.05, 0.10)  # of false alarms
LEVELS = (0.02, 0.05, 0.1, 0.2)  # of the conformal rule
COVERAGES = (1.0, 0.8, 0.6, 0.4, 0.2)  # share of the lesions that are answered, the surest first
MEASURES = ("auroc other", "auroc all", *(f"sensitivity {r:g} {w}" for w in ("other", "all") for r in RATES))


def ranked(scores: Array, label: Array, disease: str, test: Sequence[str]) -> dict[str, float]:
    """AUROC and sensitivities against the other test classes and against all other classes, which weigh the same.

    Sensitivity at a rate: share of the disease above the lowest threshold that no more than that share of the negatives passes.
    """
    own, out = scores[label == disease], {}
    for name, keep in (("other", set(test)), ("all", set(label.tolist()))):
        negatives = [scores[label == c] for c in sorted(keep - {disease})]
        if negatives:
            both = [auroc(np.concatenate([own, n]), np.arange(len(own) + len(n)) < len(own)) for n in negatives]
            out[f"auroc {name}"] = float(np.mean(both))
            values = np.concatenate(negatives)
            weight = np.concatenate([np.full(len(n), 1 / (len(n) * len(negatives))) for n in negatives])
            order = np.argsort(-values)
            passed = np.cumsum(weight[order])
            for rate in RATES:
                first = int(np.searchsorted(passed, rate + 1e-9, side="right"))  # the best negative that must not pass
                limit = values[order[first]] if first < len(order) else -np.inf
                out[f"sensitivity {rate:g} {name}"] = float((own > limit).mean())
    return out


def summary(values: Mapping[str, Any]) -> dict[str, Any]:
    """Means, worst tenths and paired differences of `alone`: for each disease, and over the diseases with equal weight."""
    names = [m for m in METHODS if all(v["methods"][m] for v in values.values())]
    measured = [k for k in MEASURES if all(k in v["methods"][OURS] for v in values.values())]
    out: dict[str, Any] = {"methods": {}}
    differences: dict[str, Interval] = {}
    for m in names:
        by = {d: {k: np.array(v["methods"][m][k]) for k in measured} for d, v in values.items()}
        cells: dict[str, Any] = {d: {k: vars(interval(x)) for k, x in one.items()} for d, one in by.items()}
        cells["mean"] = {k: vars(balanced([by[d][k] for d in by])) for k in measured}
        worst = {d: {k: worst_tenth(x) for k, x in one.items() if k.startswith("auroc")} for d, one in by.items()}
        worst["mean"] = {k: float(np.mean([worst[d][k] for d in by])) for k in measured if k.startswith("auroc")}
        out["methods"][m] = {"measures": cells, "worst tenth": worst}
        if m != OURS:
            for k in measured:
                pairs = [np.array(v["methods"][OURS][k]) - np.array(v["methods"][m][k]) for v in values.values()]
                differences[f"{m} {k}"] = balanced(pairs)
    out["ours minus"] = compared(differences)
    out["decisions"] = {d: _mean_decisions(v["decisions"]) for d, v in values.items()}
    return out


def worst_tenth(values: Array) -> float:
    """Mean of the lowest tenth, of one value at least."""
    return float(np.sort(values)[: max(1, len(values) // 10)].mean())


def _mean_decisions(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares by true class, over the exemplars; `new` means that no output of the classifier is the class."""
    by = {k: {c: float(np.mean([f[k][c] for f in found])) for c in found[0][k]} for k in ("accepted", "none")}
    news = [[f["none"][c] for c in f["none"] if c not in f["outputs"]] for f in found]
    known = [[f["none"][c] for c in f["outputs"]] for f in found]
    levels = {
        a: {c: float(np.mean([f["levels"][a][c] for f in found])) for c in kinds}
        for a, kinds in found[0]["levels"].items()
    }
    return {
        **by,
        "levels": levels,
        "coverage": {c: float(np.mean([f["coverage"][c] for f in found])) for c in found[0]["coverage"]},
        "shown": {
            name: {k: float(np.mean([f["shown"][name][k] for f in found])) for k in by}
            for name, by in found[0]["shown"].items()
        },
        "other kind": float(np.mean([f["other kind"] for f in found])),
        "none of new": float(np.mean([np.mean(n) for n in news])) if all(news) else None,
        "none of known": float(np.mean([np.mean(n) for n in known])),
        "answered": float(np.mean([f["answered"] for f in found])),
        "right of answered": float(np.mean([f["right of answered"] for f in found])),
    }


def memory_summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each arm the mean over runs (split and draw) of the mean over diseases, its deviation, and the share of the gain kept."""
    out: dict[str, Any] = {}
    plain = {(c["split"], c["disease"]): c for c in cells if c["arm"] == "no row"}
    for arm in dict.fromkeys(c["arm"] for c in cells):
        mine = [c for c in cells if c["arm"] == arm]
        runs = sorted({(c["split"], c["draw"]) for c in mine})
        out[arm] = {"runs": len(runs)}
        for k in (m for m in MEASURES if m in mine[0]):
            values = [np.mean([c[k] for c in mine if (c["split"], c["draw"]) == r]) for r in runs]
            lost = [c[k] < plain[c["split"], c["disease"]][k] - 0.01 for c in mine]
            out[arm][k] = {
                "mean": float(np.mean(values)),
                "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
                "diseases": {
                    d: float(np.mean([c[k] for c in mine if c["disease"] == d]))
                    for d in sorted({c["disease"] for c in mine})
                },
                "lost a point": float(np.mean(lost)),
            }
    for found in out.values():
        for k in (m for m in MEASURES if m in found):
            start, gain = out["no row"][k]["mean"], out["no noise"][k]["mean"] - out["no row"][k]["mean"]
            found[k]["kept"] = (found[k]["mean"] - start) / gain if gain else 0.0
    return out


def report(r: Mapping[str, Any]) -> str:
    """Markdown of what `bench.one_exemplar.run` returns."""
    learned, exemplars = ", ".join(r["learned"]) or "none", ", ".join(f"{d} {n}" for d, n in r["exemplars"].items())
    queries = ", ".join(f"{c} {n}" for c, n in r["queries"].items())
    lines = [
        f"Release {r['release'][:16]}, learned parts that are on: {learned}. Data {r['data']['file']} ({r['data']['sha256'][:16]}).",
        f"Exemplars: {exemplars}. Queries, one picture a lesion: {queries}.",
    ]
    for name, title in (("other", "the other test classes"), ("all", "all other classes")):
        lines += _ranking(r, name, title)
    return "\n".join([*lines, *_decided(r), *_remembered(r)]) + "\n"


def _ranking(r: Mapping[str, Any], name: str, title: str) -> list[str]:
    def gain(method: str, measure: str) -> str:
        d = r["ours minus"].get(f"{method} {measure}")
        return f"{percent(d, True)} {d['ours']}" if d else ""

    areas, rates = [], []
    for m, found in r["methods"].items():
        cells, worst, k = found["measures"], found["worst tenth"], f"auroc {name}"
        text = [f"{percent(cells[d][k])}, {100 * worst[d][k]:.1f}" for d in cells]
        areas.append([METHODS[m], *text, gain(m, k)])
        measures = [f"sensitivity {rate:g} {name}" for rate in RATES]
        rates.append([METHODS[m], *(x for k in measures for x in (percent(cells["mean"][k]), gain(m, k)))])
    title_area = f"AUROC against {title}, in percent: mean ± 95 % over exemplars, mean of the worst tenth."
    title_rate = f"Sensitivity against {title}, in percent, mean over the diseases."
    head = [x for rate in RATES for x in (f"at {100 * rate:g} % false alarms", "ours minus it")]
    return [
        *("", title_area, "", table(["method", *r["exemplars"], "mean", "ours minus it"], areas)),
        *("", title_rate, "", table(["method", *head], rates)),
    ]


def _decided(r: Mapping[str, Any]) -> list[str]:
    kinds, d, lines = list(r["queries"]), r["decisions"], list[str]()
    accepted = (
        f"Ours, at the conformal threshold for {100 * r['level']:g} % false alarms: share of each true class that is accepted as the "
        "disease, in percent (of the disease itself: sensitivity)."
    )
    none = 'Ours: share of each true class that is called "none of these", in percent.'
    for key, title in (("accepted", accepted), ("none", none)):
        rows = [[one, *(f"{100 * found[key][c]:.1f}" for c in kinds)] for one, found in d.items()]
        lines += ["", title, "", table(["disease", *kinds], rows)]
    lines += _levels(d) + _coverage(d)
    columns = ("none of new", "none of known", "answered", "right of answered")
    rows = [[one, *("-" if f[k] is None else f"{100 * f[k]:.1f}" for k in columns)] for one, f in d.items()]
    title = (
        '"None of these" of classes that are no output (right to say so) and of classes that are one (wrong); of the latter the share '
        "that is answered, and of these answers the share that is right, in percent."
    )
    return [*lines, "", title, "", table(["disease", *columns], rows), *_shown(d)]


def _shown(d: Mapping[str, Any]) -> list[str]:
    """Pictures of other kinds."""
    names = list(next(iter(d.values()))["shown"])
    if not names:
        return []
    title = (
        "Pictures of other kinds: refused / claims accepted, and in brackets the same by the logits alone; last the share of all queries, "
        "which are of the kind, that is taken for another kind. In percent."
    )
    rows = []
    for one, found in d.items():
        cells = []
        for by in found["shown"].values():
            now, before = (
                f"{100 * by['refused' + how]:.1f} / {100 * by['accepted' + how]:.1f}" for how in ("", " by logits")
            )
            cells.append(f"{now} ({before})")
        rows.append([one, *cells, f"{100 * found['other kind']:.2f}"])
    return ["", title, "", table(["disease", *names, "queries"], rows)]


def _levels(d: Mapping[str, Any]) -> list[str]:
    """False alarms and sensitivity at several levels of the conformal rule."""
    title = "Ours at other levels of the conformal rule: false alarms (mean over the other classes, worst class) / sensitivity, in percent."
    rows = []
    for one, found in d.items():
        cells = []
        for by in found["levels"].values():
            false = {c: v for c, v in by.items() if c != one}
            worst = max(false, key=false.__getitem__)
            cells.append(
                f"{100 * float(np.mean(list(false.values()))):.1f} ({worst} {100 * false[worst]:.1f}) / {100 * by[one]:.1f}"
            )
        rows.append([one, *cells])
    head = [f"{100 * float(a):g} %" for a in next(iter(d.values()))["levels"]]
    return ["", title, "", table(["disease", *head], rows)]


def _coverage(d: Mapping[str, Any]) -> list[str]:
    """Share of right outputs among the answers when the least sure are left unanswered."""
    title = (
        "Ours: share of right outputs, in percent, when only the surest share of the lesions whose class is an output is answered (sure: "
        "largest logit ahead of the second)."
    )
    rows = [[one, *(f"{100 * v:.1f}" for v in found["coverage"].values())] for one, found in d.items()]
    return ["", title, "", table(["disease", *(f"{100 * c:g} %" for c in COVERAGES)], rows)]


def _remembered(r: Mapping[str, Any]) -> list[str]:
    if not r["memory arms"]:
        return ["", "Class memory: not measured, for a test class is not in the release's catalogue."]
    m, diseases, rows = r["memory"], list(r["exemplars"]), []
    for arm, found in r["memory arms"].items():
        kinds = [found[k] for k in ("auroc other", "auroc all")]
        text = [
            x for k in kinds for x in (f"{100 * k['mean']:.1f} ± {100 * k['deviation']:.1f}", f"{100 * k['kept']:.0f}")
        ]
        by = [f"{100 * kinds[0]['diseases'][d]:.1f}" for d in diseases]
        rows.append([arm, *by, *text, f"{100 * kinds[0]['lost a point']:.0f}", str(found["runs"])])
    patients = ", ".join(f"{d} {n}" for d, n in {c["disease"]: sum(c["patients"]) for c in m["cells"]}.items())
    title = (
        f"With a row in the class memory: half of each disease's lesions ({patients}) lie in {m['sites']} sites, "
        f"Dirichlet({m['dirichlet']:g}), the other half is tested. {m['splits']} splits, {m['draws']} draws of the noise, delta "
        f"{m['delta']:g}. AUROC in percent, of each disease against the other test classes; ± is the deviation over runs; kept: share "
        "of the gain without noise; lost a point: share of runs and diseases that lie more than one point below the same exemplars "
        "without a row."
    )
    head = ["row", *diseases, "other test classes", "kept", "all other classes", "kept", "lost a point", "runs"]
    return ["", title, "", table(head, rows)]
