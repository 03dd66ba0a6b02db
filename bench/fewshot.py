"""Few-shot classification of diseases that no training has seen: the shipped release beside other methods on the same episodes.

    python -m bench.fewshot --data ZIP|DIR --meta-test akiec,df,vasc --ways 2,3 --shots 1,5 --episodes 600 --out DIR

Settings are those of the release. Nothing is chosen on the test classes: the peers' strengths and temperatures come from public tasks
(the release's reference bank for its base network, lesions of the data's other classes for frozen Lite0).
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bench.features import base_features, lite0_features
from bench.figures import brier, compared, ece, macro_auroc, percent, softmax, table
from bench.peers import HEADS, Head, Public, tuned
from bench.pictures import Pictures, read_pictures
from bench.shipped import Ours, without
from sgps.episodes import Episodes, EpisodeSet, interval, pack_episodes, paired_difference, sample_episodes
from sgps.errors import InputError, SgpsError
from sgps.files import write_atomic
from sgps.release import Release
from sgps.shipped import shipped_release

Array = NDArray[Any]
Method = Callable[
    [Episodes, Array], tuple[Array, float]
]  # episodes, one of their rows -> scores [queries, N], temperature
OURS = "ours"
METHODS = {
    OURS: "ours: synthesis with the shipped settings",
    "ours-no-text": "ours, without text",
    "ours-other-text": "ours, texts exchanged between the classes",
    "ours-no-body": "ours, body zeroed",
    "prototype": "nearest prototype, base network, plain cosine",
    "prototype-centred": "nearest prototype, base network, centred",
    "prototype-lite0": "nearest prototype, frozen Lite0, plain cosine",
    "prototype-lite0-centred": "nearest prototype, frozen Lite0, centred",
    "knn": "3 nearest exemplars, base network, centred",
    "ridge": "ridge probe, base network, centred",
    "logistic": "logistic probe, base network, centred",
}


@dataclass(frozen=True)
class Answers:
    """One method on the episodes of one setting. values: by episode [n]; recall: of each class over all its queries."""

    values: dict[str, Array]
    recall: dict[str, float]
    ece: float

    def to_mapping(self) -> dict[str, Any]:
        worst = min(self.recall, key=lambda c: self.recall[c])
        means = {k: {"mean": i.mean, "half": i.half} for k, i in ((k, interval(v)) for k, v in self.values.items())}
        return {
            **means,
            "ece": self.ece,
            "recall": self.recall,
            "worst class": worst,
            "episodes": [round(float(v), 4) for v in self.values["accuracy"]],
        }


def measure(method: Method, episodes: Episodes, label: Array) -> Answers:
    """label: class of each image that the episodes number."""
    truth = np.repeat(np.arange(episodes.ways), episodes.index.shape[2] - episodes.shots)
    values: dict[str, list[float]] = {k: [] for k in ("accuracy", "balanced accuracy", "auroc", "brier")}
    confidence, hits, kind = [], [], []
    for index in episodes.index:
        scores, temperature = method(episodes, index)
        p = softmax(scores, temperature)
        right = p.argmax(1) == truth
        values["accuracy"].append(right.mean())
        values["balanced accuracy"].append(np.mean([right[truth == c].mean() for c in range(episodes.ways)]))
        values["auroc"].append(macro_auroc(p, truth))
        values["brier"].append(brier(p, truth))
        confidence.append(p.max(1))
        hits.append(right)
        kind.append(label[index[:, episodes.shots :]].ravel())
    all_hits, all_kinds = np.concatenate(hits), np.concatenate(kind)
    recall = {str(c): float(all_hits[all_kinds == c].mean()) for c in np.unique(all_kinds)}
    arrays = {k: np.array(v, float) for k, v in values.items()}
    return Answers(arrays, recall, ece(np.concatenate(confidence), all_hits))


class Arms:
    """Every method by its short name, on test rows whose features are known."""

    def __init__(self, release: Release, pictures: Pictures, rows: Array, out: Path, test: Sequence[str]) -> None:
        """rows: of the pictures that the episodes number."""
        self.release, self.pictures, self.rows, self.out = release, pictures, rows, out
        self.label, self.test = pictures.label[rows], tuple(test)
        self.base = base_features(release, pictures, rows, out)
        self.place = dict(zip(rows.tolist(), self.base, strict=True))
        self.made: dict[tuple[str, ...], Ours] = {}

    def get(self, name: str) -> Method | None:
        """None when the method cannot be told from `ours` by this release, or lacks what it needs."""
        learned = self.release.manifest.architecture.learned
        if name == "ours-no-body":
            return self._method(self._ours("body")) if "body" in learned else None
        if name == "ours-no-text":
            return self._method(self._ours("text"))
        if name.startswith(OURS):
            return self._method(self._ours(), exchanged=name == "ours-other-text")
        return self._peer(name)

    def _ours(self, *off: str) -> Ours:
        release = without(self.release, *off)
        learned = release.manifest.architecture.learned
        if learned not in self.made:
            self.made[learned] = Ours(release, self.pictures, self.place)
        return self.made[learned]

    def _method(self, ours: Ours, exchanged: bool = False) -> Method:

        def method(episodes: Episodes, index: Array) -> tuple[Array, float]:
            names = [str(self.label[i]) for i in index[:, 0]]
            images = self.rows[index]
            texts = {n: ours.text(o) for n, o in zip(names, [*names[1:], names[0]], strict=True)} if exchanged else None
            made = ours.compose(dict(zip(names, images[:, : episodes.shots].tolist(), strict=True)), texts)
            logits = ours.logits(made, images[:, episodes.shots :].ravel().tolist(), names)
            return logits, ours.temperature(made)

        return method

    def _peer(self, name: str) -> Method | None:
        if "lite0" in name:
            others = self.pictures.others(self.test, trained=True)
            found = lite0_features(self.pictures, np.concatenate([self.rows, others]), self.out)
            features, public, kind = found[: len(self.rows)], found[len(self.rows) :], self.pictures.label[others]
            if not len(others) and name.endswith("centred"):
                return None
            centre = np.mean([public[kind == c].mean(0) for c in np.unique(kind)], 0) if len(others) else 0
        else:
            s = self._ours().synthesizer
            domain = s.catalogue.find(self.test[0])
            near = {"drawn", domain.domain if domain else "drawn"}
            keep = np.array([c.domain in near for c in s.bank.classes])[s.bank.label]
            features, public, kind, centre = self.base, s.bank.features[keep], s.bank.label[keep], s.centre
        if name in ("prototype", "prototype-lite0"):
            centre = 0
        features, samples = features - centre, Public(public - centre, kind)
        heads, ready = HEADS[name.split("-")[0]], dict[str, tuple[Head, float]]()

        def method(episodes: Episodes, index: Array) -> tuple[Array, float]:
            if episodes.name not in ready:
                ready[episodes.name] = tuned(heads, samples, episodes.ways, episodes.shots)
            head, temperature = ready[episodes.name]
            queries = features[index[:, episodes.shots :]].reshape(-1, features.shape[1])
            return head(features[index[:, : episodes.shots]], queries), temperature

        return method


def run(
    data: Path,
    test: Sequence[str],
    ways: Sequence[int],
    shots: Sequence[int],
    count: int,
    out: Path,
    methods: Sequence[str] = tuple(METHODS),
    seed: int = 0,
    queries: int = 15,
    release: Release | None = None,
) -> dict[str, Any]:
    """Measure and write `results.json`, `results.md` and `episodes.json.gz` in `out`. release: the shipped one unless given.

    Raises InputError for unknown methods or data that do not support the episodes.
    """
    if unknown := sorted(set(methods) - set(METHODS)):
        raise InputError(f"{unknown[0]} is unknown", where="--methods", do=f"choose from {', '.join(METHODS)}")
    if count < 2:
        raise InputError("an interval needs at least 2", where="--episodes")
    start = time.perf_counter()
    release = release or shipped_release()
    pictures = read_pictures(data)
    rows = pictures.of(test)
    label, lesion = pictures.label[rows], pictures.lesion[rows]
    sets = [sample_episodes(label, lesion, list(test), w, k, queries, count, seed) for w in ways for k in shots]
    out.mkdir(parents=True, exist_ok=True)
    packed = pack_episodes({"test": EpisodeSet(pictures.name[rows], label, lesion, tuple(sets))})
    write_atomic(out / "episodes.json.gz", packed)
    arms = Arms(release, pictures, rows, out, test)
    chosen = list(dict.fromkeys([OURS, *methods]))
    found: dict[str, dict[str, Answers]] = {}
    left_out: list[str] = []
    seconds: dict[str, float] = {}
    for name in chosen:
        began = time.process_time()
        method = arms.get(name)
        if method is None:
            left_out.append(name)
            continue
        found[name] = {e.name: measure(method, e, label) for e in sets}
        seconds[name] = round(time.process_time() - began, 1)
        print(f"{name}: {seconds[name]:.0f} s", flush=True)
    differences = {
        f"{peer} {e.name}": paired_difference(
            found[OURS][e.name].values["accuracy"], found[peer][e.name].values["accuracy"]
        )
        for peer in found
        if peer != OURS
        for e in sets
    }
    results = {
        "release": release.sha256,
        "learned": list(release.manifest.architecture.learned),
        "data": {"file": data.name, "sha256": pictures.digest},
        "classes": {c: {"images": int((label == c).sum()), "lesions": len(set(lesion[label == c]))} for c in test},
        "episodes": {"count": count, "queries": queries, "seed": seed, "sha256": hashlib.sha256(packed).hexdigest()},
        "methods": {m: {k: a.to_mapping() for k, a in by.items()} for m, by in found.items()},
        "ours minus": compared(differences),
        "left out": left_out,
        "processor seconds": seconds,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
    write_atomic(out / "results.md", report(results).encode())
    return results


def report(results: dict[str, Any]) -> str:
    """Markdown of what `run` returns."""
    methods, kinds = results["methods"], list(results["methods"][OURS])
    classes = ", ".join(f"{c} {n['lesions']} lesions" for c, n in results["classes"].items())
    e, learned = results["episodes"], ", ".join(results["learned"]) or "none"
    data = results["data"]
    lines = [
        f"Release {results['release'][:16]}, learned parts that are on: {learned}.",
        f"Data {data['file']} ({data['sha256'][:16]}): {classes}, one image a lesion, {e['queries']} queries a class.",
        f"{e['count']} episodes of each kind, seed {e['seed']}, file {e['sha256'][:16]}.",
        "",
        "Accuracy in percent, 95 % interval over episodes (queries are balanced, so balanced accuracy is the same number).",
        "",
        table(
            ["method", *kinds],
            [[METHODS[m], *(percent(by[k]["accuracy"]) for k in kinds)] for m, by in methods.items()],
        ),
        "",
        "Ours minus the method, paired over episodes; *better*, *worse* or *tie* after Holm's correction over the table at 5 %.",
        "",
        table(
            ["method", *kinds],
            [
                [
                    METHODS[m],
                    *(f"{percent(d, True)} {d['ours']}" for d in (results["ours minus"][f"{m} {k}"] for k in kinds)),
                ]
                for m in methods
                if m != OURS
            ],
        ),
    ]
    for title, show in (
        ("AUROC in percent, one class against the rest, mean over classes", lambda a: percent(a["auroc"])),
        ("Brier score (0 to 2, lower is better)", lambda a: f"{a['brier']['mean']:.3f} ± {a['brier']['half']:.3f}"),
        ("Expected calibration error in percent", lambda a: f"{100 * a['ece']:.1f}"),
        (
            "Worst class: share of its queries that are right, in percent",
            lambda a: f"{100 * a['recall'][a['worst class']]:.1f} {a['worst class']}",
        ),
    ):
        rows = [[METHODS[m], *(show(by[k]) for k in kinds)] for m, by in methods.items()]
        lines += ["", f"{title}.", "", table(["method", *kinds], rows)]
    if results["left out"]:
        lines += [
            "",
            "Left out, because this release or these data do not have it: "
            + "; ".join(METHODS[m] for m in results["left out"])
            + ".",
        ]
    return "\n".join(lines) + "\n"


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.fewshot", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="zip or folder of class folders")
    p.add_argument("--meta-test", default="akiec,df,vasc", help="classes that no training has seen")
    p.add_argument("--ways", type=numbers, default=[2, 3])
    p.add_argument("--shots", type=numbers, default=[1, 5])
    p.add_argument("--episodes", type=int, default=600)
    p.add_argument("--seed", type=int, default=0, help="of the episodes")
    p.add_argument("--methods", default=",".join(METHODS), help=f"of {', '.join(METHODS)}; ours is always measured")
    p.add_argument("--out", type=Path, required=True, help="folder; features are kept here too")
    a = p.parse_args(argv)
    try:
        test, methods = a.meta_test.split(","), a.methods.split(",")
        with threadpool_limits(1):  # many small products: more threads only wait for each other
            run(a.data, test, a.ways, a.shots, a.episodes, a.out, methods, a.seed)
    except SgpsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print((a.out / "results.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
