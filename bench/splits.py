"""All ways to take three of a data set's classes for testing, the others for choices: heads on frozen Lite0, which saw none of them."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.features import Array, lite0_features
from bench.figures import compared
from bench.measure import program
from bench.peers import closed, easy
from bench.peers.public import Head, Public, tuned
from bench.pictures import Pictures
from sgps.episodes import Interval, interval, sample_episodes, unit
from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.generator import linear_head, spread_of

TESTED, EPISODES, QUERIES = 3, 100, 15


def ours(support: Array, queries: Array) -> Array:
    """The head of `ours` without learned parts. Features are centred already."""
    given = torch.from_numpy(np.asarray(support, np.float64))
    centre = given.new_zeros(given.shape[-1])
    weight, _ = linear_head(given.mean(1), centre, closed.SCALE, spread_of([*given], centre))
    return np.asarray(unit(queries) @ weight.numpy().T)


ARMS: dict[str, tuple[str, tuple[Head, ...], bool]] = {
    "plain": ("nearest prototype, plain cosine", closed.HEADS["prototype"], False),
    "ours": ("ours' head: mean of the exemplars, centred", (ours,), True),
    "centred": ("nearest prototype, centred", closed.HEADS["prototype"], True),
    "protonet": ("ProtoNet (easyfsl)", easy.heads("protonet", False), False),
    "simpleshot": ("SimpleShot (easyfsl)", easy.heads("simpleshot", False), False),
    "knn": ("3 nearest exemplars, centred", closed.HEADS["knn"], True),
    "ridge": ("ridge probe, centred", closed.HEADS["ridge"], True),
    "logistic": ("logistic probe, centred", closed.HEADS["logistic"], True),
    "bd-cspn": ("transductive: BD-CSPN (easyfsl), centred", easy.heads("bd-cspn", True), True),
    "laplacian-shot": ("transductive: LaplacianShot (easyfsl), centred", easy.heads("laplacian-shot", True), True),
}


def splits(
    pictures: Pictures, rows: Array, out: Path, ways: Sequence[int], shots: Sequence[int], seed: int
) -> dict[str, Any]:
    """Accuracy of every head on every split of the classes of these rows; ours minus it over the splits.

    Nothing but the reason where there are too few classes or Lite0 is not installed.
    """
    rows = pictures.one_each(rows, np.random.default_rng([seed, 5]))
    count = {str(c): int((pictures.label[rows] == c).sum()) for c in np.unique(pictures.label[rows])}
    names = sorted(c for c, n in count.items() if n >= max(shots) + 5)
    if len(names) < TESTED + 2 or max(ways) > TESTED:
        return {
            "reason": f"{len(names)} classes are large enough, and {TESTED + 2} are needed for at most {TESTED} ways"
        }
    rows = rows[np.isin(pictures.label[rows], names)]
    try:
        features = lite0_features(pictures, rows, out)
    except InputError as error:
        return {"reason": str(error)}
    label, lesion = pictures.label[rows], pictures.lesion[rows]
    found: dict[str, dict[str, list[Any]]] = {a: {} for a in ARMS}
    chosen = list(itertools.combinations(names, TESTED))
    heads = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    asked = json.dumps([pictures.digest, rows.tolist(), list(ways), list(shots), seed, heads, program()])
    for place, test in enumerate(chosen):
        path = out / "splits" / f"{hashlib.sha256((asked + ','.join(test)).encode()).hexdigest()[:16]}.json"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, json.dumps(_one(features, label, lesion, test, ways, shots, seed)).encode())
            print(f"split {place + 1}/{len(chosen)}: {', '.join(test)}", flush=True)
        for arm, by in json.loads(path.read_bytes()).items():
            for kind, right in by.items():
                found[arm].setdefault(kind, []).append(right)
    return {
        "splits": [list(t) for t in chosen],
        "episodes": EPISODES,
        "arms": {a: {k: _over_splits(np.array(v)) for k, v in by.items()} for a, by in found.items()},
        "ours minus": _differences(found),
    }


def _one(
    features: Array,
    label: Array,
    lesion: Array,
    test: Sequence[str],
    ways: Sequence[int],
    shots: Sequence[int],
    seed: int,
) -> dict[str, dict[str, list[float]]]:
    """Of every head and kind of episode the share of right answers in each episode of one split."""
    known, out = ~np.isin(label, test), {arm: dict[str, list[float]]() for arm in ARMS}
    centre = np.mean([features[label == c].mean(0) for c in np.unique(label[known])], 0)
    for w in ways:
        for k in shots:
            queries = min(QUERIES, min(int((label == c).sum()) for c in test) - k)
            e = sample_episodes(label, lesion, list(test), w, k, queries, EPISODES, seed)
            truth = np.repeat(np.arange(w), queries)
            for arm, (_, heads, centred) in ARMS.items():
                x = features - centre if centred else features
                head = heads[0] if len(heads) == 1 else tuned(heads, Public(x[known], label[known]), w, k)[0]
                out[arm][e.name] = [
                    float((head(x[i[:, :k]], x[i[:, k:]].reshape(-1, x.shape[1])).argmax(1) == truth).mean())
                    for i in e.index
                ]
    return out


def _over_splits(right: Array) -> dict[str, Any]:
    """right [splits, episodes]. The interval is over splits, which overlap in their classes: it is no more than a hint."""
    means = right.mean(1)
    return {
        **vars(interval(means)),
        "least": float(means.min()),
        "most": float(means.max()),
        "by split": [round(float(m), 4) for m in means],
    }


def _differences(found: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    """Ours minus each head: mean over all episodes, and on how many splits the paired interval lies above or below zero."""
    out, all_of_them = {}, dict[str, Interval]()
    for arm, by in found.items():
        for kind, right in by.items():
            if arm != "ours":
                each = np.array(found["ours"][kind]) - np.array(right)
                intervals = [interval(d) for d in each]
                all_of_them[f"{arm} {kind}"] = interval(each.mean(1))
                out[f"{arm} {kind}"] = {
                    "above": sum(i.mean - i.half > 0 for i in intervals),
                    "below": sum(i.mean + i.half < 0 for i in intervals),
                }
    judged = compared(all_of_them)
    return {k: v | judged[k] for k, v in out.items()}
