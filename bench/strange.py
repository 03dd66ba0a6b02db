"""Kinds of pictures that the reference bank does not hold: whether synthesis notices, and which head serves there.

    python -m bench.strange --data DIR --out DIR

Brain MRI under the shipped release, whose bank and base network know none; and under frozen Lite0, trained on no medical picture, each of six kinds in turn is
hidden from a bank of the other five. A class of every kind stays out of that bank, so that new diseases of a known kind can be told from a kind that is new. akiec,
df and vasc are not looked at.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import heads
from bench.decision import OTHERS
from bench.features import Array, base_features, lite0_features
from bench.figures import percent, table
from bench.heads import LITE0, PLAIN, Head, spread_head
from bench.networks import judges
from bench.pictures import read_pictures
from bench.program import on_public_sets
from sgps.bank import Bank, BankClass, build
from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.generator import KNOWN_KIND, STRANGE_KIND
from sgps.rivals import STRANGE, Familiarity
from sgps.shipped import shipped_release

ASKED = ((1, 1), (1, 5), (3, 5))  # classes, exemplars of each
TASKS = 2000
IN_BANK = {"drawn": 20}  # pictures of a class that a bank takes, where it is not 60
SHIPPED = "shipped release"


RULE = "as synthesis, kind is new"
HEADS: dict[str, Head] = {
    PLAIN: spread_head(None),
    "as synthesis, kind is known": spread_head(KNOWN_KIND),
    RULE: spread_head(STRANGE_KIND),
    **{name: h for name, h in heads.HEADS.items() if "probe" in name},
}


@dataclass(frozen=True)
class Kind:
    """features [n, f], label and lesion [n] of the pictures of one kind. familiar [n]: what a bank says of them; new: whether it holds no such kind."""

    features: Array
    label: Array
    lesion: Array
    familiar: Array
    new: bool


def shipped(data: Path, out: Path, seed: int) -> dict[str, Kind]:
    """Of the judges of `bench.networks`, beside the shipped bank. Features are centred."""
    release, found = shipped_release(), dict[str, Kind]()
    bank, centre = Bank.of(release), release.memory().coordinates.mean
    for j in judges(data, out, seed):
        features = base_features(release, j.pictures, j.rows, out)
        label, lesion = j.pictures.label[j.rows], j.pictures.lesion[j.rows]
        found[j.name] = Kind(features - centre, label, lesion, Familiarity(bank, centre)(features), j.name == "MRI")
    return found


def hidden(data: Path, out: Path, seed: int) -> dict[str, Kind]:
    """Each kind hidden from a bank of the others; and classes that no bank holds, of kinds that it does. Features are centred by the bank's kinds."""
    known = {j.name: (j.pictures, j.rows) for j in judges(data, out, seed)}
    for name, file in OTHERS.items():
        pictures = read_pictures(data / file)
        known[name] = (pictures, pictures.few(sorted(set(pictures.label.tolist())), 150))
    samples = {n: (lite0_features(p, r, out), p.label[r], p.lesion[r]) for n, (p, r) in known.items()}
    found: dict[str, Kind] = {}
    for name, (features, label, lesion) in samples.items():
        bank = without(name, samples)
        centre = np.mean([bank.features[bank.label == i].mean(0) for i in range(len(bank.classes))], 0)
        found[name] = Kind(features - centre, label, lesion, Familiarity(bank, centre)(features), True)
        if name == "MRI":  # the real bank's case: it holds the five others
            for other in (n for n in samples if n != name):
                f, last, lesions = (column[samples[other][1] == max(samples[other][1])] for column in samples[other])
                found[f"{other}, a new class"] = Kind(f - centre, last, lesions, Familiarity(bank, centre)(f), False)
    return found


def without(name: str, samples: Mapping[str, tuple[Array, ...]]) -> Bank:
    """A bank of all kinds but one, and of all classes of a kind but the last."""
    classes: list[BankClass] = []
    features, label = [], []
    for kind, (f, of, _) in samples.items():
        for c in sorted(set(of.tolist()))[:-1] if kind != name else ():
            rows = np.flatnonzero(of == c)[: IN_BANK.get(kind, 60)]
            features.append(f[rows])
            label += [len(classes)] * len(rows)
            classes.append(BankClass(f"{kind} {c}", f"{kind} {c}", kind, ""))
    return build(classes, np.eye(len(classes), dtype=np.float32), np.concatenate(features), np.array(label))


def noticed(kind: Kind, seed: int) -> dict[str, float]:
    """Share of tasks that synthesis would take for a kind that the bank does not hold, by classes and exemplars of each."""
    random, classes, out = np.random.default_rng(seed), sorted(set(kind.label.tolist())), dict[str, float]()
    for ways, shots in ASKED:
        if len(classes) < ways:
            continue
        hits = 0
        for _ in range(TASKS):
            drawn = random.choice(classes, ways, replace=False)
            rows = [random.choice(np.flatnonzero(kind.label == c), shots, replace=False) for c in drawn]
            hits += bool(np.mean([kind.familiar[r].mean() for r in rows]) < STRANGE)
        out[f"{ways} x {shots}"] = hits / TASKS
    return out


def report(r: Mapping[str, Any]) -> str:
    """Markdown."""
    asked = [f"{w} x {s}" for w, s in ASKED]
    seen = [
        [network, kind, "no" if new else "yes", *(f"{100 * by[a]:.1f}" if a in by else "-" for a in asked)]
        for network, kinds in r["noticed"].items()
        for kind, (new, by) in kinds.items()
    ]
    rows = [
        [network, kind, e, percent(by[PLAIN]), *(percent(by[h]["gain"], True) for h in HEADS if h != PLAIN)]
        for network, kinds in r["heads"].items()
        for kind, of in kinds.items()
        for e, by in of.items()
    ]
    first = f"Tasks of so many classes by exemplars that are taken for a kind that the bank does not hold, in percent of {TASKS}."
    second = (
        f"Kinds that the bank does not hold: {r['episodes']} episodes, seed {r['seed']}. Accuracy in percent of {PLAIN}; "
        "for the others the difference to it, paired."
    )
    tables = (
        table(["network", "pictures", "kind in the bank", *asked], seen),
        table(["network", "pictures", "episodes", *HEADS], rows),
    )
    return f"{first}\n\n{tables[0]}\n\n{second}\n\n{tables[1]}\n"


def run(data: Path, out: Path, count: int = 300, seed: int = 51) -> dict[str, Any]:
    """Measure and write `results.json` and `results.md` in `out`, where features are kept, too. Raises InputError when a set is not there."""
    if count < 2:
        raise InputError("must be at least 2", where="--episodes")
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"episodes": count, "seed": seed, "noticed": {}, "heads": {}}
    for network, kinds in ((SHIPPED, shipped(data, out, seed)), (LITE0, hidden(data, out, seed))):
        results["noticed"][network] = {n: (k.new, noticed(k, seed)) for n, k in kinds.items()}
        results["heads"][network] = {
            n: heads.measure(k.features.astype(np.float64), k.label, k.lesion, count, seed, HEADS)
            for n, k in kinds.items()
            if k.new
        }
        write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
        write_atomic(out / "results.md", report(results).encode())
        print(network, flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    return on_public_sets("bench.strange", __doc__, run, 51, argv)


if __name__ == "__main__":
    sys.exit(main())
