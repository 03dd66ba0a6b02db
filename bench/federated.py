"""What federating is worth under patient-level privacy, for the product's own engine, memory and synthesis.

    python -m bench.federated --data DIR --out DIR

The base network is made from the public part alone (`bench/federated_base.yaml`: Lite0, other kinds of pictures, drawn lesions, an
atlas of 20 lesions a class), once for each --out. Half of akiec, df and vasc and most other lesions of the common classes lie in six
sites, the rest is tested. Every noised number is drawn by `sgps_privacy.engine`.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.federated_arms import DELTA, Judge, contribution, known_classes, one_exemplar, three_way
from bench.federated_report import ALONE, NO_NOISE, NO_ROW, curve, plot, report, summary
from bench.federated_world import SIZES, SPREAD, Split, World
from bench.pictures import Pictures, read_pictures
from bench.program import finish
from bench.shipped import Ours
from sgps.errors import InputError
from sgps.files import sha256_file, write_atomic
from sgps.memory import Contribution, Memory, pool
from sgps.pretrain.assemble import assemble
from sgps.pretrain.base import run as pretrain
from sgps.pretrain.recipe import read_recipe
from sgps.release import MANIFEST, Release

Array = NDArray[Any]
RECIPE = Path(__file__).with_name("federated_base.yaml")
EPSILONS, OWN_EPSILONS = (8.0, 3.0, 1.0), (3.0, 1.0)
EXEMPLARS, CURVE_EXEMPLARS = 40, 20
PATIENTS, SITES, COHORTS = (10, 20, 40, 80, 160), (1, 3, 6, 12), (1, 2, 4)
CENTRAL, NOBODY = "centralised", "nobody holds it"


def prepare(data: Path, out: Path) -> Release:
    """The release of the public part, made where it is not there yet; a stopped run continues."""
    base = out / "base"
    if not (base / "base.yaml").is_file():
        pretrain(data, base, RECIPE)
    digest = json.loads((base / "public.json").read_text())["base_sha256"]
    folder = out / f"release-{digest[:16]}"
    if not folder.is_dir():
        assemble(base, None, folder)
    return Release.open(folder, sha256=sha256_file(folder / MANIFEST))


def ready(data: Path, out: Path) -> tuple[Release, Pictures, World, Judge]:
    """That release, the pictures of the skin set, who of them is where, and the judge of an exemplar."""
    release, recipe = prepare(data, out), read_recipe(RECIPE)
    pictures = read_pictures(data / f"{recipe.skin.file}.zip")
    world = World.of(release, pictures, recipe, out)
    known = {int(r): x for r, x in zip(world.row, world.one, strict=True)}
    return release, pictures, world, Judge(Ours(release, pictures, known))


class Run:
    """One split: who is tested, on what, and what every arm's memory makes of it."""

    def __init__(self, judge: Judge, world: World, split: Split) -> None:
        self.judge, self.world, self.split = judge, world, split
        self.rows = np.concatenate([split.tested[k] for k in (*world.common, *world.test)])
        self.queries, self.label = world.one[self.rows], world.label[self.rows]
        self.chosen = {d: split.tested[d][:EXEMPLARS] for d in world.test}
        at = {int(p): i for i, p in enumerate(self.rows)}
        self.place = {d: np.array([at[int(p)] for p in ps]) for d, ps in self.chosen.items()}
        self.empty = Memory.empty(judge.s.memory.coordinates, judge.s.memory.ids)
        self.common = np.isin(self.label, list(world.common))

    def sent(self, split: Split, epsilon: float | None) -> list[Contribution]:
        place = {k: self.judge.place(k) for k in (*self.world.common, *self.world.test)}
        return [
            contribution(
                self.judge.s.release,
                self.empty.coordinates,
                self.world.mean[s],
                np.array([place[k] for k in self.world.label[s].tolist()], int),
                len(self.empty.ids),
                epsilon,
            )
            for s in split.sites
        ]

    def pooled(self, parts: Sequence[Contribution]) -> Memory:
        return pool(self.empty.coordinates, self.empty.ids, parts)

    def own(self, disease: str, site: int) -> Array:
        mine = self.split.sites[site]
        return np.asarray(self.world.mean[mine[self.world.label[mine] == disease]])

    def measure(self, memories: Mapping[str, Memory], own: Mapping[str, Array] | None = None) -> dict[str, Any]:
        """memories by disease. One entry: AUROCs by disease, three-way accuracy."""
        made = {
            d: self.judge.prototypes(d, self.world.one[self.chosen[d]], memories[d], (own or {}).get(d))
            for d in self.world.test
        }
        out: dict[str, Any] = {
            d: one_exemplar(self.judge, d, p, self.queries, self.label, self.place[d], self.world.test)
            for d, p in made.items()
        }
        shown = {d: self.world.one[self.chosen[d]] for d in made}
        out["3w1s"] = three_way(
            self.judge, made, shown, own or {}, self.queries, self.label, self.place, self.split.seed
        )
        return out

    def known(self, memory: Memory) -> float:
        return known_classes(self.judge, memory, self.world.common, self.queries[self.common], self.label[self.common])

    def cells(self, draws: int) -> list[dict[str, Any]]:
        """Every arm of this split. draw: of the noise; site: where an arm is of one site."""
        test, out = self.world.test, list[dict[str, Any]]()

        def add(arm: str, memory: Memory, own: Mapping[str, Array] | None = None, **more: Any) -> None:
            found = self.measure(dict.fromkeys(test, memory), own)
            if own is None:
                found["known"] = self.known(memory)
            out.append({"split": self.split.seed, "arm": arm, "draw": 0, **more, **found})

        add(NO_ROW, self.empty)
        exact = self.sent(self.split, None)
        add(NO_NOISE, self.pooled(exact))
        holders = {s: {d: x for d in test if len(x := self.own(d, s))} for s in range(len(SIZES))}
        for s, own in holders.items():
            add(ALONE, self.empty, own, site=s)
        everybody = {d: np.concatenate([self.own(d, s) for s in range(len(SIZES))]) for d in test}
        add(CENTRAL, self.empty, everybody)
        for epsilon in EPSILONS:
            for draw in range(draws):
                parts = self.sent(self.split, epsilon)
                memory = self.pooled(parts)
                add(f"epsilon {epsilon:g}", memory, draw=draw)
                if epsilon in OWN_EPSILONS and draw == 0:
                    for s, own in holders.items():
                        if own:
                            add(f"own and others, epsilon {epsilon:g}", memory.without(parts[s]), own, site=s)
                if draw == 0:
                    nobody = self.sent(self.split.without(self.world, test), epsilon)
                    add(f"{NOBODY}, epsilon {epsilon:g}", self.pooled(nobody))
        return out


def curves(judge: Judge, world: World, splits: int, cohorts: Sequence[int] = COHORTS) -> list[dict[str, Any]]:
    """Gain of one exemplar against all other classes, each class in turn the disease that only others hold, by patients, sites, rounds.

    Patients are spread evenly; a catalogue of the one class, for rows of different classes do not touch. The common classes have 20
    atlas lesions in the base's training.
    """
    s, out = judge.s, list[dict[str, Any]]()
    wanted = [(n, sites, 1) for n in PATIENTS for sites in SITES] + [(20, 6, c) for c in cohorts if c > 1]
    for seed in range(splits):
        for kind in (*world.test, *world.common):
            random = np.random.default_rng([seed, 7])
            order = random.permutation(world.of_class(kind))
            held, tested = order[: len(order) // 2], order[len(order) // 2 :][:EXEMPLARS]
            others = [
                random.permutation(world.of_class(k))[:EXEMPLARS] for k in (*world.test, *world.common) if k != kind
            ]
            rows = np.concatenate([tested, *others])
            chosen = np.arange(min(CURVE_EXEMPLARS, len(tested)))
            ids = (s.memory.ids[judge.place(kind)],)

            def measured(memory: Memory, kind: str = kind, rows: Array = rows, chosen: Array = chosen) -> float:
                whole = within(memory, judge)
                made = judge.prototypes(kind, world.one[rows[chosen]], whole)
                label = world.label[rows]
                return one_exemplar(judge, kind, made, world.one[rows], label, chosen, world.test)["all"]

            start = measured(Memory.empty(s.memory.coordinates, ids))
            for n, sites, rounds in wanted:
                if n * rounds > len(held) or n < sites:
                    continue
                groups = [g for r in range(rounds) for g in np.array_split(held[r * n : (r + 1) * n], sites)]
                for epsilon in (None, *EPSILONS):
                    parts = [
                        contribution(s.release, s.memory.coordinates, world.mean[g], np.zeros(len(g), int), 1, epsilon)
                        for g in groups
                    ]
                    found = measured(pool(s.memory.coordinates, ids, parts))
                    out.append(
                        {"split": seed, "class": kind, "patients": n, "sites": sites, "rounds": rounds}
                        | {"epsilon": epsilon or 0, "public": start, "auroc": found}
                    )
        print(f"curves: split {seed}, {len(out)} cells", flush=True)
    return out


def within(one: Memory, judge: Judge) -> Memory:
    """A memory of one class inside the whole catalogue."""
    whole = Memory.empty(one.coordinates, judge.s.memory.ids)
    place = whole.ids.index(one.ids[0])

    def inside(array: Array, mine: Array) -> Array:
        out = np.array(array)
        out[place] = mine[0]
        return out

    return Memory(
        one.coordinates,
        whole.ids,
        total=inside(whole.total, one.total),
        count=inside(whole.count, one.count),
        spread=inside(whole.spread, one.spread),
        noise=inside(whole.noise, one.noise),
        scale=inside(whole.scale, one.scale),
        threshold=one.threshold,
    )


def run(data: Path, out: Path, splits: int = 10, draws: int = 2, curve_splits: int = 2) -> dict[str, Any]:
    """Measure and write `results.json`, `results.md` and `kept.svg` in `out`; what a stopped run has measured is kept."""
    if min(splits, draws) < 2:
        raise InputError("must be at least 2", where="--splits, --draws")
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    release, pictures, world, judge = ready(data, out)
    cells: list[dict[str, Any]] = []
    gaps = []
    for seed in range(splits):
        split = world.split(seed)
        one = Run(judge, world, split)
        disease = world.test[seed % len(world.test)]
        exact = one.pooled(one.sent(split, None))
        gaps.append(
            judge.agree(disease, int(world.row[one.chosen[disease][0]]), world.row[one.rows[::7]].tolist(), exact)
        )
        cells += one.cells(draws)
        print(f"split {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    found = curves(judge, world, curve_splits) if curve_splits else []
    kinds, counts = np.unique(world.label, return_counts=True)
    results: dict[str, Any] = {
        "release": release.sha256,
        "data": {"file": pictures.source.where.name, "sha256": pictures.digest},
        "patients": dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
        "setting": {"sites": SIZES, "dirichlet": SPREAD, "delta": DELTA, "splits": splits, "draws": draws},
        "agrees with synthesis within": max(gaps),
        "arms": summary(cells, world.test),
        "curve": curve(found, judge.s.memory.coordinates.used),
        "cells": cells,
        "curve cells": found,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
    write_atomic(out / "results.md", report(results).encode())
    if found:
        write_atomic(out / "kept.svg", plot(results["curve"]))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.federated", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="folder with the image sets of the recipe")
    p.add_argument("--out", type=Path, required=True, help="folder; base network and features are kept here too")
    p.add_argument("--splits", type=int, default=10, help="into patients of the sites and tested patients")
    p.add_argument("--draws", type=int, default=2, help="of the noise, for each split and epsilon")
    p.add_argument("--curve-splits", type=int, default=2, help="of the curves; 0 leaves them out")
    a = p.parse_args(argv)
    torch.set_num_threads(1)
    return finish(lambda: run(a.data, a.out, a.splits, a.draws, a.curve_splits), a.out / "results.md")


if __name__ == "__main__":
    sys.exit(main())
