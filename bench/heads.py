"""The head between several diseases, by exemplars: how much less the directions count in which exemplars of one disease differ.

    python -m bench.heads --data DIR --out DIR

Judges: those of `bench.networks` (brain MRI, drawn classes, held-out skin lesions), and x-ray, ultrasound and histology under frozen Lite0
alone, which saw none of them, as it saw no skin. The prior, in patients, divides the scatter: 1 is what synthesis has, from ten exemplars of a disease on. akiec, df and vasc
are not looked at.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.decision import OTHERS
from bench.features import Array, base_features, lite0_features
from bench.figures import percent, table
from bench.networks import judges
from bench.peers import closed
from bench.pictures import read_pictures
from bench.program import on_public_sets
from sgps.bank import Bank
from sgps.calibration import score
from sgps.episodes import accuracy, auroc, interval, paired_difference, sample_episodes, unit
from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.generator import Trust, linear_head, spread_of
from sgps.shipped import shipped_release
from sgps.synthesis import RIVALS

SETTINGS = ((2, 2), (2, 5), (3, 5), (3, 10), (3, 20), (3, 40))
PRIORS, QUERIES, LEAST = (0.3, 1.0, 3.0), 15, 10
PLAIN, LITE0 = "centred cosine", "frozen Lite0"
ONE_SHOTS = (2, 5, 10)
Head = Callable[[Array, Array], Array]


def spread_head(trust: Trust | None) -> Head:
    """Of features that are centred already; without spread where there is no trust in it."""

    def scores(support: Array, queries: Array) -> Array:
        given = torch.from_numpy(np.asarray(support, np.float64))
        centre = given.new_zeros(given.shape[-1])
        spread = spread_of([*given], centre, trust) if trust else None
        return np.asarray(queries @ linear_head(given.mean(1), centre, 1.0, spread)[0].numpy().T)

    return scores


HEADS: dict[str, Head] = {
    PLAIN: spread_head(None),
    **{f"spread, prior {p:g}": spread_head(Trust(2, p)) for p in PRIORS},
    "ridge probe, strength 1": closed.HEADS["ridge"][1],
    "logistic probe, strength 1": closed.HEADS["logistic"][1],
}


def worlds(data: Path, out: Path, seed: int) -> dict[str, tuple[Array, Array, Array]]:
    """Name -> centred features [n, f], label, lesion. Lite0 is centred by the pictures of all kinds, kinds weighing the same."""
    release, found, plain = shipped_release(), dict[str, tuple[Array, Array, Array]](), dict[str, tuple[Array, Any]]()
    centre = release.memory().coordinates.mean
    for judge in judges(data, out, seed):
        label, lesion = judge.pictures.label[judge.rows], judge.pictures.lesion[judge.rows]
        found[judge.name] = (base_features(release, judge.pictures, judge.rows, out) - centre, label, lesion)
        plain[judge.name] = (lite0_features(judge.pictures, judge.rows, out), (label, lesion))
    for name, file in OTHERS.items():
        pictures = read_pictures(data / file)
        rows = pictures.few(sorted(set(pictures.label.tolist())), 150)
        plain[name] = (lite0_features(pictures, rows, out), (pictures.label[rows], pictures.lesion[rows]))
    middle = np.mean([f.mean(0) for f, _ in plain.values()], 0)
    return found | {f"{name}, {LITE0}": (f - middle, *columns) for name, (f, columns) in plain.items()}


def measure(
    features: Array, label: Array, lesion: Array, count: int, seed: int, heads: Mapping[str, Head] = HEADS
) -> dict[str, Any]:
    """Setting -> head -> accuracy and its difference to centred cosine; settings that the smallest class supports."""
    classes = sorted(set(label.tolist()))
    fewest, out = min(len(set(lesion[label == c].tolist())) for c in classes), dict[str, Any]()
    for ways, shots in SETTINGS:
        if min(QUERIES, fewest - shots) >= LEAST:
            e = sample_episodes(label, lesion, classes, ways, shots, min(QUERIES, fewest - shots), count, seed)
            right = {name: accuracy(features, e, head) for name, head in heads.items()}
            out[e.name] = {
                name: {**vars(interval(v)), "gain": vars(paired_difference(v, right[PLAIN]))}
                for name, v in right.items()
            }
    return out


def one_disease(features: Array, label: Array, means: Mapping[str, Array], count: int, seed: int) -> dict[str, Any]:
    """Exemplars -> head -> AUROC of one disease against the other classes, and its difference to centred cosine.

    features [n, f], means of the bank's classes [f] by name: centred. The rivals are the nearest of these but the disease itself.
    """
    classes, out = sorted(set(label.tolist())), dict[str, Any]()
    for shots in ONE_SHOTS:
        random, found = np.random.default_rng([seed, shots]), dict[str, list[float]]()
        for _ in range(count):
            disease = classes[random.integers(len(classes))]
            mine = random.permutation(np.flatnonzero(label == disease))
            support, rows = features[mine[:shots]], np.concatenate([mine[shots:], np.flatnonzero(label != disease)])
            rivals = np.stack([m for name, m in means.items() if name != disease])
            rivals = rivals[np.argsort(-unit(rivals) @ support.mean(0))[:RIVALS]]
            given = torch.from_numpy(np.vstack([support.mean(0)[None], rivals]))
            centre = given.new_zeros(given.shape[-1])
            spread = spread_of([torch.from_numpy(support)], centre, Trust(2, 1.0))
            for name, s in ((PLAIN, None), ("spread, prior 1", spread)):
                logits = features[rows] @ linear_head(given, centre, 1.0, s)[0].numpy().T
                found.setdefault(name, []).append(auroc(score(logits, 1)[:, 0], label[rows] == disease))
        plain = np.array(found[PLAIN])
        out[str(shots)] = {
            name: {**vars(interval(v)), "gain": vars(paired_difference(v, plain))}
            for name, v in ((n, np.array(x)) for n, x in found.items())
        }
    return out


def report(r: Mapping[str, Any]) -> str:
    """Markdown."""
    text = f"{r['episodes']} episodes of each kind, seed {r['seed']}. Accuracy in percent of {PLAIN}; for the others the difference to it, paired."
    rows = [
        [world, kind, percent(by[PLAIN]), *(percent(by[h]["gain"], True) for h in HEADS if h != PLAIN)]
        for world, kinds in r["worlds"].items()
        for kind, by in kinds.items()
    ]
    alone = [
        [world, shots, percent(by[PLAIN]), percent(by["spread, prior 1"]["gain"], True)]
        for world, kinds in r["one disease"].items()
        for shots, by in kinds.items()
    ]
    more = "One disease beside rivals of the reference bank: AUROC against the other classes, and the difference with spread."
    both = (
        table(["pictures", "episodes", *HEADS], rows),
        table(["pictures", "exemplars", PLAIN, "spread, prior 1"], alone),
    )
    return f"{text}\n\n{both[0]}\n\n{more}\n\n{both[1]}\n"


def run(data: Path, out: Path, count: int = 300, seed: int = 31) -> dict[str, Any]:
    """Measure and write `results.json` and `results.md` in `out`, where features are kept, too. Raises InputError when a set is not there."""
    if count < 2:
        raise InputError("must be at least 2", where="--episodes")
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"episodes": count, "seed": seed, "worlds": {}, "one disease": {}}
    release = shipped_release()
    bank, centre = Bank.of(release), release.memory().coordinates.mean
    means = {c.id: np.asarray(m - centre, np.float64) for c, m in zip(bank.classes, bank.means, strict=True)}
    for name, world in worlds(data, out, seed).items():
        results["worlds"][name] = measure(*world, count, seed)
        if LITE0 not in name:
            results["one disease"][name] = one_disease(world[0].astype(np.float64), world[1], means, count, seed)
        write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
        write_atomic(out / "results.md", report(results).encode())
        print(name, flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    return on_public_sets("bench.heads", __doc__, run, 31, argv)


if __name__ == "__main__":
    sys.exit(main())
