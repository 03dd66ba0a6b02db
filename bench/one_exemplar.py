"""One picture of one disease against everything else, with the shipped release; and with a row of the class memory behind it.

    python -m bench.one_exemplar --data ZIP|DIR --out DIR [--domains ZIP|DIR ...]

Every exemplar is judged on one picture of each lesion but its own: of the other test classes, and of lesions of the data's other classes
that no training and no reference bank holds. All negative classes weigh the same. Settings are those of the release. Pictures of other
kinds (--domains) are shown to every classifier, which must refuse them.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.exemplar_report import (
    COVERAGES,
    LEVELS,
    LITE0,
    METHODS,
    NO_LENGTH,
    NO_RIVALS,
    NO_TEXT,
    OURS,
    memory_summary,
    ranked,
    report,
    summary,
)
from bench.features import base_features, lite0_features
from bench.peers.against import Score, logistic, plda
from bench.pictures import Pictures, read_pictures
from bench.program import finish
from bench.shipped import Ours, without
from sgps.calibration import Calibration, score
from sgps.episodes import unit
from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.foreign import Foreign
from sgps.memory import Contribution, Memory, pool, record
from sgps.rehearsal import Judged, calibrate
from sgps.release import Release
from sgps.shipped import shipped_release
from sgps.synthesis import FALSE_ALARMS
from sgps_privacy.accountant import calibrate as noise_multiplier

Array = NDArray[Any]
SITES, SPREAD, DELTA = 6, 0.5, 1e-5  # Dirichlet over the sites, of each disease
EPSILONS = (None, 8.0, 3.0, 1.0)
MOST_OTHERS = 100  # pictures of each class of another kind


@dataclass(frozen=True)
class World:
    """rows: pictures whose features are known; queries: one of them for each lesion. Rows of `test` classes come first."""

    pictures: Pictures
    test: tuple[str, ...]
    rows: Array
    features: dict[int, Array]
    queries: Array

    @classmethod
    def of(cls, release: Release, pictures: Pictures, test: Sequence[str], out: Path, seed: int) -> "World":
        own, others = pictures.of(test), pictures.others(test, trained=False)
        rows = np.concatenate([own, others])
        found = dict(zip(rows.tolist(), base_features(release, pictures, rows, out), strict=True))
        return cls(
            pictures, tuple(test), own, found, np.concatenate([pictures.one_each(own, _random(seed, 0)), others])
        )

    def exemplars(self, disease: str, count: int, random: np.random.Generator) -> list[int]:
        """Pictures of different lesions first, then further pictures of the same."""
        rows = self.rows[self.pictures.label[self.rows] == disease]
        first = self.pictures.one_each(rows, random)
        order = [*random.permutation(first), *random.permutation(np.setdiff1d(rows, first))]
        return [int(r) for r in order[:count]]

    def asked(self, exemplar: int) -> Array:
        """The queries without the exemplar's own lesion."""
        lesion = self.pictures.lesion
        return np.asarray(self.queries[lesion[self.queries] != lesion[exemplar]])

    def stack(self, rows: Sequence[int] | Array) -> Array:
        return np.stack([self.features[int(r)] for r in rows])


def _random(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def peers(ours: Ours, others: Sequence[int]) -> dict[str, Score]:
    """Every method but ours, on the same features. others: bank classes that are negatives."""
    s = ours.synthesizer
    return {
        "cosine": lambda e, q: unit(q) @ unit(e),
        "centred": lambda e, q: unit(q - s.centre) @ unit(e - s.centre),
        "plda": plda(s.bank, s.centre),
        "logistic": logistic(s.bank, s.centre, others),
    }


def alone(
    ours: Ours,
    plain: Ours | None,
    world: World,
    lite0: Mapping[int, Array],
    shown: Mapping[str, Array],
    count: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """The exemplar alone: every measure of every exemplar, and the decisions of ours.

    plain: ours without text. lite0: centred features under frozen Lite0 by row, none where it is not installed. shown: features of
    pictures of other kinds by file.
    """
    label, out = world.pictures.label, dict[str, Any]()
    for place, disease in enumerate(world.test):
        values: dict[str, dict[str, list[float]]] = {m: {} for m in METHODS}
        decided: list[dict[str, Any]] = []
        rate: dict[str, Score] = {}
        chosen = world.exemplars(disease, count, _random(seed, 1, place))
        for e in chosen:
            made = ours.compose({disease: [e]})
            rate = rate or peers(ours, made.others)
            rows = world.asked(e)
            logits = ours.logits(made, rows.tolist(), [disease])
            queries, kind = world.stack(rows), label[rows]
            scores = {OURS: score(logits, 1)[:, 0], **{m: r(world.features[e], queries) for m, r in rate.items()}}
            scores[NO_RIVALS] = logits[:, 0]
            if lite0:
                scores[LITE0] = unit(np.stack([lite0[int(r)] for r in rows])) @ unit(lite0[e])
            if made.body is None:
                length = np.linalg.norm(queries - ours.synthesizer.centre, axis=1, keepdims=True)
                scores[NO_LENGTH] = score(logits / length, 1)[:, 0]
            if plain:
                scores[NO_TEXT] = score(plain.logits(plain.compose({disease: [e]}), rows.tolist(), [disease]), 1)[:, 0]
            for m, s in scores.items():
                for k, v in ranked(s, kind, disease, world.test).items():
                    values[m].setdefault(k, []).append(v)
            decided.append(_decisions(ours, made, logits, queries, kind, shown, disease, level))
        out[disease] = {"exemplars": len(chosen), "methods": values, "decisions": decided}
        print(f"{disease}: {len(chosen)} exemplars", flush=True)
    return out


def _lite0(world: World, out: Path) -> dict[int, Array]:
    """Features under frozen Lite0 less the mean of the data's other classes. Nothing where Lite0 is not installed or there are none."""
    rows, public = np.array(list(world.features)), world.pictures.others(world.test, trained=True, unknown=True)
    kind = world.pictures.label[public]
    if not len(public):
        return {}
    try:
        found = lite0_features(world.pictures, np.concatenate([rows, public]), out)
    except InputError as error:
        print(error, flush=True)
        return {}
    centre = np.mean([found[len(rows) :][kind == c].mean(0) for c in np.unique(kind)], 0)
    return dict(zip(rows.tolist(), found[: len(rows)] - centre, strict=True))


def strangers(release: Release, domains: Sequence[Path], out: Path) -> dict[str, Array]:
    """Features of pictures of other kinds, at most a hundred of a class, by file."""
    found = {}
    for path in domains:
        pictures = read_pictures(path)
        rows = pictures.few(sorted(set(pictures.label.tolist())), MOST_OTHERS)
        found[path.name] = base_features(release, pictures, rows, out)
    return found


def _decisions(
    ours: Ours,
    made: Any,
    logits: Array,
    queries: Array,
    kind: Array,
    shown: Mapping[str, Array],
    disease: str,
    level: float,
) -> dict[str, Any]:
    """What the classifier would say, threshold and all, of each true class."""
    s = ours.synthesizer
    calibration, foreign, _ = calibrate(s.judged(made), level)
    other = foreign.found(queries, logits) if foreign else np.zeros(len(logits), bool)
    d, unlike = calibration.decide(logits, other), other | (logits.max(1) < calibration.least)
    outputs = [disease, *(s.bank.classes[i].id for i in made.beside)]
    right = np.array([outputs[o] for o in d.output]) == kind
    answered = ~d.none
    known = np.isin(kind, outputs)
    first, second = np.sort(logits[known], 1)[:, ::-1][:, :2].T
    surest = right[known][np.argsort(second - first)]
    return {
        "levels": {
            f"{a:g}": {str(c): float(((d.p <= a) & ~unlike)[kind == c].mean()) for c in np.unique(kind)} for a in LEVELS
        },
        "coverage": {f"{c:g}": float(surest[: max(1, round(c * len(surest)))].mean()) for c in COVERAGES},
        "accepted": {str(c): float(d.accepted[kind == c].mean()) for c in np.unique(kind)},
        "other kind": float(other.mean()),
        "shown": {name: _shown(s.judged(made), calibration, foreign, f) for name, f in shown.items()},
        "none": {str(c): float(d.none[kind == c].mean()) for c in np.unique(kind)},
        "outputs": sorted(set(outputs) & set(kind.tolist())),
        "answered": float(answered[known].mean()),
        "right of answered": float(right[known & answered].mean()) if (known & answered).any() else 0.0,
    }


def _shown(j: Judged, calibration: Calibration, foreign: Foreign | None, features: Array) -> dict[str, float]:
    """Of pictures of another kind: share that is refused and share whose claim is accepted, and the same by the logits alone."""
    logits = np.asarray(features @ j.weight.T + j.bias, np.float64)
    told = calibration.decide(logits, foreign.found(features, logits) if foreign else None)
    plain = calibration.decide(logits)
    return {
        f"{what}{how}": float(getattr(d, field).mean())
        for how, d in (("", told), (" by logits", plain))
        for what, field in (("refused", "none"), ("accepted", "accepted"))
    }


def shares(world: World, random: np.random.Generator) -> tuple[dict[str, list[list[str]]], set[str]]:
    """Half of each disease's lesions dealt to six sites, Dirichlet(0.5): disease -> lesions of each site; and all of them."""
    out, given = {}, set[str]()
    for disease in world.test:
        lesions = np.unique(world.pictures.lesion[world.rows[world.pictures.label[world.rows] == disease]])
        half = random.permutation(lesions)[: len(lesions) // 2]
        site = random.choice(SITES, len(half), p=random.dirichlet(np.full(SITES, SPREAD)))
        out[disease] = [[str(n) for n in half[site == s]] for s in range(SITES)]
        given |= set(half.tolist())
    return out, given


def exact_sums(
    world: World, memory: Memory, held: Mapping[str, Sequence[Sequence[str]]], ids: Mapping[str, str]
) -> list[tuple[Array, Array]]:
    """Each site's sum of its patients' records, without noise. A lesion stands for a patient: the mean over its pictures."""
    sums = []
    for s in range(SITES):
        rows, counts = np.zeros(memory.total.shape), np.zeros(len(memory.ids))
        for disease, sites in held.items():
            place = memory.ids.index(ids[disease])
            for lesion in sites[s]:
                mine = world.rows[world.pictures.lesion[world.rows] == lesion]
                r, n = record(memory.coordinates, {place: world.stack(mine).mean(0)}, len(memory.ids))
                rows, counts = rows + r, counts + n
        sums.append((rows, counts))
    return sums


def noised(
    sums: Sequence[tuple[Array, Array]], memory: Memory, epsilon: float | None, random: np.random.Generator
) -> Memory:
    """The pooled memory when every site adds Gaussian noise for (epsilon, 1e-5); none for no noise."""
    sigma = noise_multiplier(epsilon, DELTA, 1) if epsilon else 0.0
    sent = [
        Contribution(
            rows + sigma * random.normal(size=rows.shape), counts + sigma * random.normal(size=counts.shape), sigma
        )
        for rows, counts in sums
    ]
    return pool(memory.coordinates, memory.ids, sent)


def elsewhere(ours: Ours, world: World, count: int, splits: int, draws: int, seed: int) -> list[dict[str, Any]]:
    """Exemplars of the other half, with a row of the class memory: one entry for each split, arm, draw and disease."""
    s, label, lesion, out = ours.synthesizer, world.pictures.label, world.pictures.lesion, []
    ids = {d: entry.id for d in world.test if (entry := s.catalogue.find(d)) and entry.id in s.memory.ids}
    if set(ids) != set(world.test):
        return []
    empty = Memory.empty(s.memory.coordinates, s.memory.ids)
    for split in range(splits):
        held, given = shares(world, _random(seed, 2, split))
        sums = exact_sums(world, s.memory, held, ids)
        tested = world.queries[~np.isin(lesion[world.queries], list(given))]
        chosen = {d: _random(seed, 3, split).permutation(tested[label[tested] == d])[:count] for d in world.test}
        arms: list[tuple[str, int, Memory]] = [("no row", 0, empty)]
        for arm, epsilon in enumerate(EPSILONS):
            for draw in range(draws if epsilon else 1):
                memory = noised(sums, s.memory, epsilon, _random(seed, 4, split, arm, draw))
                arms.append((f"epsilon {epsilon:g}" if epsilon else "no noise", draw, memory))
        for name, draw, memory in arms:
            for disease, exemplars in chosen.items():
                found: dict[str, list[float]] = {}
                for e in exemplars.tolist():
                    rows = tested[tested != e]
                    made = ours.compose({disease: [e]}, memory=memory)
                    scores = score(ours.logits(made, rows.tolist(), [disease]), 1)[:, 0]
                    for k, v in ranked(scores, label[rows], disease, world.test).items():
                        found.setdefault(k, []).append(v)
                patients = [len(site) for site in held[disease]]
                means = {k: float(np.mean(v)) for k, v in found.items()}
                worth = memory.worth(memory.ids.index(ids[disease]))
                out.append(
                    {"split": split, "arm": name, "draw": draw, "disease": disease, "exemplars": len(exemplars)}
                    | {"patients": patients, "worth": worth, **means}
                )
        print(f"split {split}: {sum(map(len, chosen.values()))} exemplars, {len(arms)} memories", flush=True)
    return out


def run(
    data: Path,
    out: Path,
    test: Sequence[str] = ("akiec", "df", "vasc"),
    exemplars: int = 200,
    splits: int = 3,
    draws: int = 2,
    level: float = FALSE_ALARMS,
    seed: int = 0,
    release: Release | None = None,
    domains: Sequence[Path] = (),
) -> dict[str, Any]:
    """Measure and write `results.json` and `results.md` in `out`. exemplars: of each disease, where there are as many. domains: pictures
    of other kinds; shown where the release's body is the base.

    Raises InputError for data without the classes, or for a single class.
    """
    if len(test) < 2:
        raise InputError("at least two are needed", where="--meta-test")
    if min(exemplars, splits, draws) < 2:
        raise InputError("must be at least 2", where="--exemplars, --splits, --draws")
    start = time.perf_counter()
    release, pictures = release or shipped_release(), read_pictures(data, test)
    out.mkdir(parents=True, exist_ok=True)
    world = World.of(release, pictures, test, out, seed)
    ours = Ours(release, pictures, world.features)
    told = "text" in release.manifest.architecture.learned
    plain = Ours(without(release, "text"), pictures, world.features) if told else None
    shown = {} if "body" in release.manifest.architecture.learned else strangers(release, domains, out)
    values = alone(ours, plain, world, _lite0(world, out), shown, exemplars, level, seed)
    cells = elsewhere(ours, world, exemplars, splits, draws, seed)
    kinds, counts = np.unique(pictures.label[world.queries], return_counts=True)
    results = {
        "release": release.sha256,
        "learned": list(release.manifest.architecture.learned),
        "data": {"file": data.name, "sha256": pictures.digest},
        "seed": seed,
        "level": level,
        "queries": dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
        "exemplars": {d: v["exemplars"] for d, v in values.items()},
        **summary(values),
        "memory": {
            "sites": SITES,
            "dirichlet": SPREAD,
            "delta": DELTA,
            "splits": splits,
            "draws": draws,
            "cells": cells,
        },
        "memory arms": memory_summary(cells) if cells else {},
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
    write_atomic(out / "results.md", report(results).encode())
    return results


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.one_exemplar", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="zip or folder of class folders")
    p.add_argument("--meta-test", default="akiec,df,vasc", help="diseases that no training has seen")
    p.add_argument("--exemplars", type=int, default=200, help="of each disease, where there are as many pictures")
    p.add_argument("--splits", type=int, default=3, help="into lesions of the sites and tested lesions")
    p.add_argument("--draws", type=int, default=2, help="of the noise, for each split and epsilon")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--domains", type=Path, nargs="*", default=[], help="pictures of other kinds, to be refused")
    p.add_argument("--out", type=Path, required=True, help="folder; features are kept here too")
    a = p.parse_args(argv)
    test, sizes = a.meta_test.split(","), (a.exemplars, a.splits, a.draws)
    return finish(lambda: run(a.data, a.out, test, *sizes, seed=a.seed, domains=a.domains), a.out / "results.md")


if __name__ == "__main__":
    sys.exit(main())
