"""Choices, judged on public classes alone: what texts bring to unseen classes, the weight of the rivals, temperature and refusal.

    python -m bench.judge --out DIR [--data DIR]

Text: Tip-Adapter's map from sentence embeddings to class means, each class of a task hidden from the map, beside prototypes; skin
classes are those that the base network was trained on, which makes them kind judges of nothing but order. Rivals: one exemplar
against another class, its score less w times the best rival's, the other class in the bank or not. Both need the reference bank
alone; with --data temperature and refusal are judged too (`bench.decision`).
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import decision
from bench.features import Array
from bench.figures import percent, table
from bench.peers.adapter import SHARPNESS, TEXT_WEIGHTS, TextMap, Told, cached, text_only
from bench.peers.closed import prototype
from bench.peers.public import Public, Task
from bench.program import finish
from sgps.bank import Bank
from sgps.episodes import auroc, interval, paired_difference, unit
from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.release import Release
from sgps.shipped import shipped_release

DOMAINS, SETTINGS = ("dermoscopy", "drawn"), ((2, 1), (2, 5), (3, 1), (3, 5))
WEIGHTS, RIVALS = (0.0, 0.3, 0.6, 1.0), 5
PROTOTYPE, EXCHANGED = "prototypes alone", "5.5, 0.3, texts exchanged"


def text_arms(directions: Array) -> dict[str, Callable[[Task], Array]]:
    """Scores of a task by arm. directions [N, f]: what the texts of its classes say."""

    def shown(head: Told) -> Callable[[Task], Array]:
        return lambda t: head(directions, t.support, t.queries)

    arms: dict[str, Callable[[Task], Array]] = {
        PROTOTYPE: lambda t: prototype(t.support, t.queries),
        "text alone": lambda t: text_only(directions, t.support, t.queries),
    }
    for sharpness in SHARPNESS:
        for weight in TEXT_WEIGHTS:
            arms[f"{sharpness:g}, {weight:g}"] = shown(cached(sharpness, weight))
    arms[EXCHANGED] = lambda t: cached(5.5, 0.3)(np.roll(directions, 1, 0), t.support, t.queries)
    return arms


def judge_text(bank: Bank, centre: Array, count: int, seed: int) -> dict[str, Any]:
    """Domain -> setting -> arm -> accuracy and its difference to prototypes."""
    texts, out = TextMap(unit(bank.embedding), unit(bank.means - centre)), dict[str, Any]()
    for domain in DOMAINS:
        keep = np.isin(bank.label, bank.of_domain(domain))
        public, by = Public(bank.features[keep] - centre, bank.label[keep]), dict[str, Any]()
        for ways, shots in SETTINGS:
            right: dict[str, list[float]] = {}
            for t in public.tasks(ways, shots, count, seed):
                for name, arm in text_arms(texts(texts.text[t.classes], without=t.classes)).items():
                    right.setdefault(name, []).append(float((arm(t).argmax(1) == t.truth).mean()))
            if right:
                plain = np.array(right[PROTOTYPE])
                by[f"{ways}w{shots}s"] = {
                    name: {**vars(interval(v)), "gain": vars(paired_difference(v, plain))}
                    for name, v in ((n, np.array(r)) for n, r in right.items())
                }
        out[domain] = by
    return out


def judge_rivals(bank: Bank, centre: Array, count: int, seed: int) -> dict[str, Any]:
    """Domain -> whether the other class is in the bank -> weight -> AUROC. Drawn classes: one half of a class's samples makes its
    mean, the other is tested; the few skin classes keep their means."""
    out: dict[str, Any] = {}
    for domain in DOMAINS:
        groups = {}
        for i in bank.of_domain(domain):
            own = bank.features[bank.label == i]
            half = len(own) // 2 if domain == "drawn" else 0
            groups[i] = (own[:half].mean(0) if half else bank.means[i], own[half:])
        out[domain] = {
            known: _rivals(groups, centre, count, known == "in the bank", np.random.default_rng(seed))
            for known in ("in the bank", "not in the bank")
        }
    return out


def _rivals(
    groups: Mapping[int, tuple[Array, Array]], centre: Array, count: int, known: bool, random: np.random.Generator
) -> dict[str, Any]:
    names, found = list(groups), dict[float, list[float]]()
    for _ in range(count):
        disease, other = (int(c) for c in random.choice(names, 2, replace=False))
        own, negatives = groups[disease][1], groups[other][1]
        place = int(random.integers(len(own)))
        e = unit(own[place] - centre)
        means = unit(np.stack([groups[c][0] for c in names if c != disease and (known or c != other)]) - centre)
        means = means[np.argsort(-(means @ e))[:RIVALS]]
        q = np.concatenate([np.delete(own, place, 0), negatives]) - centre
        positive = np.arange(len(q)) < len(own) - 1
        for w in WEIGHTS:
            found.setdefault(w, []).append(auroc(q @ e - w * (q @ means.T).max(1), positive))
    return {f"{w:g}": vars(interval(np.array(v))) for w, v in found.items()}


def report(r: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"Release {r['release'][:16]}, seed {r['seed']}, {r['tasks']} tasks of each kind, {r['pairs']} pairs of classes."
    ]
    for domain, by in r["text"].items():
        arms = list(next(iter(by.values())))
        rows = [
            [a, *(percent(by[k][a]) + (f" ({percent(by[k][a]['gain'], True)})" if a != PROTOTYPE else "") for k in by)]
            for a in arms
        ]
        lines += [
            "",
            f"Text, {domain}: accuracy in percent; in brackets minus prototypes. Arms: sharpness, weight of the text.",
        ]
        lines += ["", table(["arm", *by], rows)]
    rows = [
        [domain, known, *(percent(by[w]) for w in by)]
        for domain, sides in r["rivals"].items()
        for known, by in sides.items()
    ]
    lines += ["", "Rivals: AUROC of one exemplar against one other class, in percent, by the weight of the best rival."]
    lines += ["", table(["classes", "the other class is", *(f"{w:g}" for w in WEIGHTS)], rows)]
    return "\n".join([*lines, *(decision.report(r) if "refusal" in r else [])]) + "\n"


def run(
    out: Path,
    tasks: int = 300,
    pairs: int = 1500,
    release: Release | None = None,
    seed: int = 7,
    data: Path | None = None,
    classifiers: int = 100,
) -> dict[str, Any]:
    """Measure and write `results.json` and `results.md` in `out`. data: folder of the public image sets, none for no temperature and
    refusal. Raises InputError for fewer than two tasks, pairs or classifiers, or when a set is not there.
    """
    if min(tasks, pairs, classifiers) < 2:
        raise InputError("must be at least 2", where="--tasks, --pairs, --classifiers")
    release = release or shipped_release()
    bank, centre = Bank.of(release), release.memory().coordinates.mean.astype(np.float32)
    results = {
        "release": release.sha256,
        "seed": seed,
        "tasks": tasks,
        "pairs": pairs,
        "text": judge_text(bank, centre, tasks, seed),
        "rivals": judge_rivals(bank, centre, pairs, seed),
    }
    out.mkdir(parents=True, exist_ok=True)
    if data:
        results |= decision.judge_decision(release, data, out, classifiers, seed)
    write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
    write_atomic(out / "results.md", report(results).encode())
    return results


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.judge", description=__doc__.splitlines()[0])
    p.add_argument("--tasks", type=int, default=300, help="of each number of ways and shots")
    p.add_argument("--pairs", type=int, default=1500, help="of a disease and another class")
    p.add_argument(
        "--classifiers", type=int, default=100, help="of each judge and number of ways and shots, with --data"
    )
    p.add_argument("--data", type=Path, help="folder of the public image sets: judge temperature and refusal too")
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--out", type=Path, required=True, help="folder")
    a = p.parse_args(argv)
    settings = {"seed": a.seed, "data": a.data, "classifiers": a.classifiers}
    return finish(lambda: run(a.out, a.tasks, a.pairs, **settings), a.out / "results.md")


if __name__ == "__main__":
    sys.exit(main())
