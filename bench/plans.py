"""Which plan `sgps-server init` should write: candidates as an operator can write them, judged on the common classes alone.

    python -m bench.plans --data DIR --out DIR

Candidates: `kind: rows` at epsilon 1, 2, 3, 4, 6, 8; at epsilon 3 also with `centre_sites: true` (the mean of the site first; epsilon pays for
both), and as two rounds, each of a cohort of half the patients. Terms come from the coordinator's code, noised numbers from the engine, the rest
from the class memory and synthesis. Base network and data as in `bench.federated` (the same --out can be used); nv, mel, bkl and bcc are each in turn
the disease that only others hold, akiec, df and vasc are never looked at.

Grid: 20, 40, 80 patients x 3, 6 sites x cameras (one for all; another one for each site and for the receiving hospital: colour and exposure
shifts of `bench.shifts`, on pixels). All cells of the grid weigh the same.

Rule, fixed before the first run: the default is the plan with the smallest epsilon whose share of the gain kept is at least 85 % over the cells of 40 or
more patients, and of whose single draws (a disease, a cell, a draw of the noise, a split; over the whole grid) at most 2 % lie more than a point
of AUROC below the exemplar alone. Share kept: mean gain over mean gain of the same patients' plain rows without noise, same cameras. Among
plans of equal epsilon that pass, the one with the larger mean gain over the whole grid. If none passes, the default stays and the page says so.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from bench.features import base_features
from bench.federated import RECIPE, ready, within
from bench.federated_arms import NAMES, Judge, one_exemplar
from bench.federated_world import World, patients_of
from bench.pictures import Pictures
from bench.plans_report import report, summary
from bench.program import finish
from bench.shifts import SHIFTS, Shifted
from sgps import site_mean
from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.memory import COUNTS, ROWS, Contribution, Memory, pool, record
from sgps.pretrain.recipe import read_recipe
from sgps.release import Release
from sgps_client.kinds import WORK
from sgps_privacy.engine import PrivateRound
from sgps_privacy.terms import Terms
from sgps_server.config import Federation, Listen
from sgps_server.kinds import terms_of

Array = NDArray[Any]
PATIENTS, SITES = (20, 40, 80), (3, 6)
OTHERS = 20  # patients of each other common class at a site, for its mean
TESTED, EXEMPLARS = 40, 20  # tested patients of a class; those that are exemplars
CAMERAS = max(SITES)
RECEIVER = CAMERAS  # the camera of the receiving hospital
ONE, MANY = "one camera", "cameras differ"


@dataclass(frozen=True)
class Plan:
    """What federation.yaml says. None as epsilon: no noise, which no federation.yaml can say."""

    epsilon: float | None
    centre_sites: bool = False
    rounds: int = 1  # of `rows`, each of a cohort of its own

    @property
    def name(self) -> str:
        more = ", centred" * self.centre_sites + f", {self.rounds} rounds" * (self.rounds > 1)
        return ("no noise" if self.epsilon is None else f"epsilon {self.epsilon:g}") + more

    def terms(self, release: Release, sites: int) -> tuple[Terms | None, Terms | None]:
        """Of the mean before the rows, and of the rows: what the coordinator would issue. None where there is no such round or noise."""
        if self.epsilon is None:
            return None, None
        rounds = self.rounds * (2 if self.centre_sites else 1)
        url, listen = "https://localhost:8443", Listen(host="localhost", port=8443)
        settings = Federation(
            name="bench",
            url=url,
            listen=listen,
            rounds=rounds,
            centre_sites=self.centre_sites,
            epsilon=self.epsilon,
            delta=1e-5,
            quorum=sites,
        )
        before = "site_mean" if self.centre_sites else None
        mean = terms_of(settings, before, None, release) if before else None
        return mean, terms_of(settings, "rows", before, release)


PLANS = (
    *(Plan(e) for e in (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)),
    Plan(3.0, centre_sites=True),
    Plan(3.0, rounds=2),
)
EXACT = (Plan(None), Plan(None, centre_sites=True))


@dataclass(frozen=True)
class Camera(Shifted):
    """The same pictures taken by one camera: its own colour cast, and for every second one its own exposure."""

    number: int = 0

    @classmethod
    def at(cls, pictures: Pictures, number: int) -> "Camera":
        p = pictures
        return cls(p.source, p.name, p.label, p.lesion, f"camera {number}", number)

    def image(self, row: int) -> Image:
        random = np.random.default_rng([self.number, 11])
        taken = SHIFTS["colour"](Pictures.image(self, row), random)
        return SHIFTS["gamma"](taken, random) if self.number % 2 else taken


@dataclass(frozen=True)
class Views:
    """Features of the world's common patients. sites: number of sites -> [p, f] as the site that holds the patient sees them; one [p, f]: as the
    receiving hospital sees the first picture. Patient p is of site `turn[p] % S`."""

    turn: Array
    sites: Mapping[int, Array] = field(repr=False)
    one: Array = field(repr=False)


def cameras(release: Release, world: World, pictures: Pictures, rows: Sequence[Array], out: Path) -> dict[str, Views]:
    """rows: pictures of each patient of the world. Features under cameras are kept under `out`."""
    common = [world.of_class(k) for k in world.common]
    turn = np.full(len(world.label), -1)
    for mine in common:
        turn[mine] = np.arange(len(mine))
    every = np.concatenate(common)
    seen = {s: np.full(world.mean.shape, np.nan) for s in SITES}
    for number in range(CAMERAS):
        camera = Camera.at(pictures, number)
        for s in SITES:
            mine = every[turn[every] % s == number]
            if len(mine):
                flat = base_features(release, camera, np.concatenate([rows[p] for p in mine]), out).astype(np.float64)
                start = np.cumsum([0, *(len(rows[p]) for p in mine)])[:-1]
                seen[s][mine] = np.add.reduceat(flat, start) / np.array([len(rows[p]) for p in mine])[:, None]
    one = np.full(world.one.shape, np.nan)
    one[every] = base_features(release, Camera.at(pictures, RECEIVER), world.row[every], out)
    return {ONE: Views(turn, dict.fromkeys(SITES, world.mean), world.one), MANY: Views(turn, seen, one)}


def noised_sum(
    kind: str, release: Release, records: Sequence[Mapping[str, Array]], terms: Terms | None
) -> dict[str, Array]:
    """What a site sends: the engine's noised sum of its records, or the exact one where there are no terms."""
    names = tuple(records[0])
    if terms is None:
        return {n: np.sum([r[n] for r in records], axis=0) for n in names}
    made = [{n: torch.from_numpy(np.asarray(r[n])).float() for n in names} for r in records]
    start = {n: torch.zeros_like(x) for n, x in made[0].items()}
    return dict(PrivateRound(terms, WORK[kind].loss(release, names)).run(start, made, len(made)))


class Cell:
    """One disease in one split: who holds it, who is tested, how a memory of its one row does."""

    def __init__(self, judge: Judge, world: World, views: Views, kind: str, seed: int) -> None:
        self.judge, self.world, self.views, self.kind = judge, world, views, kind
        self.release, self.coordinates = judge.s.release, judge.s.memory.coordinates
        random = np.random.default_rng([seed, 9])
        order = random.permutation(world.of_class(kind))
        self.held, tested = order[: len(order) // 2], order[len(order) // 2 :][:TESTED]
        rest = {k: random.permutation(world.of_class(k)) for k in world.common if k != kind}
        self.others = np.concatenate([ps[TESTED:] for ps in rest.values()])
        self.rows = np.concatenate([tested, *(ps[:TESTED] for ps in rest.values())])
        self.chosen = np.arange(min(EXEMPLARS, len(tested)))
        self.ids = (judge.s.memory.ids[judge.place(kind)],)
        self.means = {c: m for c, m in site_mean.common(self.release).items() if c != judge.place(kind)}

    def groups(self, patients: int, sites: int) -> list[Array]:
        """Patients of the disease at each site."""
        turn, sizes = self.views.turn[self.held] % sites, [len(g) for g in np.array_split(np.arange(patients), sites)]
        return [self.held[turn == s][:n] for s, n in enumerate(sizes)]

    def offset(self, site: int, sites: int, terms: Terms | None) -> Array:
        """The noised mean of a site, from its patients of the other common classes; those of the disease are zero records."""
        records = []
        for kind in self.world.common:
            mine = self.others[self.world.label[self.others] == kind]
            mine = mine[self.views.turn[mine] % sites == site][:OTHERS]
            for patient in mine:
                features = {self.judge.place(kind): self.views.sites[sites][patient]}
                if found := site_mean.record(self.coordinates, self.means, features):
                    records.append(dict(zip((site_mean.SUM, site_mean.COUNT), found, strict=True)))
        sent = noised_sum("site_mean", self.release, records, terms)
        sigma = terms.sigma if terms else 0.0
        return site_mean.offset(sent[site_mean.SUM], sent[site_mean.COUNT], sigma, self.coordinates)

    def memory(self, plan: Plan, groups: Sequence[Array]) -> Memory:
        """The pooled row of a plan."""
        sites, parts = len(groups), list[Contribution]()
        mean, rows = plan.terms(self.release, sites)
        for s, group in enumerate(groups):
            for cohort in np.array_split(group, plan.rounds):
                centre = self.offset(s, sites, mean) if plan.centre_sites else None
                made = [record(self.coordinates, {0: self.views.sites[sites][p]}, 1, centre) for p in cohort]
                sent = noised_sum("rows", self.release, [dict(zip(NAMES, m, strict=True)) for m in made], rows)
                parts.append(Contribution(sent[ROWS], sent[COUNTS], rows.sigma if rows else 0.0))
        return pool(self.coordinates, self.ids, parts)

    def auroc(self, memory: Memory) -> float:
        """Of one exemplar against the other common classes."""
        one, whole = self.views.one, within(memory, self.judge)
        made = self.judge.prototypes(self.kind, one[self.rows[self.chosen]], whole)
        label = self.world.label[self.rows]
        return one_exemplar(self.judge, self.kind, made, one[self.rows], label, self.chosen, self.world.common)["all"]

    def results(self, camera: str, seed: int, draws: int) -> Iterator[dict[str, Any]]:
        start = self.auroc(Memory.empty(self.coordinates, self.ids))
        for n in PATIENTS:
            for sites in SITES:
                groups = self.groups(n, sites)
                if sum(map(len, groups)) < n:
                    raise InputError(f"{self.kind}: too few patients for {n} in {sites} sites", where="--data")
                for plan in (*EXACT, *PLANS):
                    for draw in range(draws if plan.epsilon else 1):
                        found = self.auroc(self.memory(plan, groups))
                        yield {
                            "split": seed,
                            "class": self.kind,
                            "cameras": camera,
                            "patients": n,
                            "sites": sites,
                            "plan": plan.name,
                            "draw": draw,
                            "alone": start,
                            "auroc": found,
                        }


def run(data: Path, out: Path, splits: int, draws: int) -> dict[str, Any]:
    """Measure and write `plans.json` and `plans.md` in `out`; splits that a stopped run has measured are kept."""
    if splits < 2 or draws < 1:
        raise InputError("at least 2 splits and 1 draw", where="--splits, --draws")
    start = time.process_time()
    out.mkdir(parents=True, exist_ok=True)
    release, pictures, world, judge = ready(data, out)
    views = cameras(release, world, pictures, patients_of(pictures, read_recipe(RECIPE)), out)
    cells = list[dict[str, Any]]()
    for seed in range(splits):
        path = out / f"plans-{release.sha256[:16]}-{draws}-{seed}.json"
        if not path.is_file():
            found = [
                c
                for camera, view in views.items()
                for kind in world.common
                for c in Cell(judge, world, view, kind, seed).results(camera, seed, draws)
            ]
            write_atomic(path, json.dumps(found).encode())
            print(f"split {seed}: {time.process_time() - start:.0f} processor-seconds", flush=True)
        cells += json.loads(path.read_text())
    results = {
        "release": release.sha256,
        "data": {"file": pictures.source.where.name, "sha256": pictures.digest},
        "setting": {"splits": splits, "draws": draws},
        "plans": summary(cells, {p.name: p.epsilon or 0.0 for p in PLANS}, EXACT[0].name),
        "cells": cells,
    }
    write_atomic(out / "plans.json", json.dumps(results, indent=1).encode())
    write_atomic(out / "plans.md", report(results).encode())
    return results


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.plans", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="folder with the image sets of the recipe")
    p.add_argument("--out", type=Path, required=True, help="folder; base network and features are kept here too")
    p.add_argument("--splits", type=int, default=6, help="into patients of the sites and tested patients")
    p.add_argument("--draws", type=int, default=3, help="of the noise, for each cell, plan and split")
    a = p.parse_args(argv)
    torch.set_num_threads(1)
    return finish(lambda: run(a.data, a.out, a.splits, a.draws), a.out / "plans.md")


if __name__ == "__main__":
    sys.exit(main())
