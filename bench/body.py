"""Why a generated body adds nothing: what the best body within the bounds could add, and how much of it can be inferred.

    python -m bench.body --out DIR [--data ZIP|DIR] [--body FILE] [--meta-test akiec,df,vasc]

An *oracle* body is fitted by gradient to labelled pictures of a task's own classes, which no hospital has; it bounds what a generator
that knew everything could do. Compared with it: bodies fitted to the exemplars alone, one body for all tasks, bodies of other tasks,
and what a trained generator or a ridge map predicts. Steps and rate are chosen on drawn classes that are not reported. Everything is
kept under --out: a run that was stopped continues.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch

from bench import body_fit, body_tasks
from bench.body_fit import (
    SHOTS,
    Array,
    Trial,
    World,
    acting,
    cosines,
    fit,
    flat,
    generated,
    left_out,
    scaled,
    summary_of,
    unflat,
)
from bench.body_report import report
from bench.body_tasks import Kind, Task, drawn_kind, drawn_task, frames, plain, skin_kinds
from bench.pictures import read_pictures
from bench.program import finish
from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.generator import Generator
from sgps.pretrain.networks import load_state
from sgps.release import Release
from sgps.shipped import shipped_release
from sgps.target import Coefficients

BASE, ORACLE, SECOND, SWAPPED, COMMON, FOREIGN, RIDGE = (
    "base", "oracle", "second oracle", "swapped", "common", "common of the other kind", "ridge",
)  # fmt: skip
FACTORS, LENDERS = (0.25, 0.5, 2.0), 2
Figures = TypeVar("Figures")


@dataclass(frozen=True)
class Plan:
    """Sizes. tasks, choice: first profiles of drawn tasks, three profiles each; trained: profiles of the common body, of the range that
    meta-training uses. bounded: tasks of each kind whose oracle is fitted again under other bounds."""

    tasks: tuple[int, ...] = tuple(range(9100, 9124, 3))
    choice: tuple[int, ...] = tuple(range(9200, 9206, 3))
    trained: range = range(2000, 2040)
    patients: int = 16
    lesions: int = 100
    known: int = 40
    shown: int = 30
    real_draws: int = 1
    episodes: int = 200
    rates: tuple[float, ...] = (0.01, 0.03)
    marks: tuple[int, ...] = (4, 12)
    few_rates: tuple[float, ...] = (0.03,)
    few_marks: tuple[int, ...] = (2, 6)
    common_steps: int = 2  # times those of an oracle
    draws: int = 1
    bounded: int = 2
    public: int = 8  # pictures of each side


class Bench:
    """One measurement with all that it has kept."""

    def __init__(
        self, release: Release, out: Path, plan: Plan, seed: int, generator: Generator | None, data: str
    ) -> None:
        self.world, self.plan, self.seed, self.generator = World.of(release), plan, seed, generator
        code = b"".join(Path(str(m.__file__)).read_bytes() for m in (body_fit, body_tasks))
        sizes = [plan.known, plan.shown, plan.episodes, plan.patients, plan.lesions, list(plan.trained), plan.public]
        asked = json.dumps([release.sha256, seed, data, sizes]).encode()
        self.work = out / f"work-{hashlib.sha256(code + asked).hexdigest()[:12]}"
        self.work.mkdir(parents=True, exist_ok=True)
        self.mask, self.trials = acting(self.world.target), dict[str, Trial]()
        self.public = torch.zeros(0)

    def figures(self, name: str, make: Callable[[], Figures]) -> Figures:
        """JSON that is kept."""
        path = self.work / f"{name}.json"
        if not path.is_file():
            write_atomic(path, json.dumps(make()).encode())
            print(f"{name}, {time.process_time():.0f} s", flush=True)
        found: Figures = json.loads(path.read_bytes())
        return found

    def fitted(
        self, name: str, pictures: Sequence[Array], ways: int, marks: Sequence[int], rate: float, bound: float = 1.0
    ) -> dict[int, Coefficients]:
        """Coefficients that are kept."""
        path = self.work / f"{name}.safetensors"
        if not path.is_file():
            seed = int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:4], "big")
            made, losses = fit(self.world, pictures, ways, marks, rate, seed, bound)
            kept = {
                f"{m}.{part}": getattr(c, part).clone() for m, c in made.items() for part in ("core", "chan", "tap")
            }
            write_atomic(path, safetensors.torch.save({**kept, "losses": torch.tensor(losses)}))
        found = safetensors.torch.load(path.read_bytes())
        return {m: Coefficients(*(found[f"{m}.{part}"] for part in ("core", "chan", "tap"))) for m in marks}

    def trial(self, task: Task) -> Trial:
        if task.name not in self.trials:
            self.trials = {task.name: Trial(self.world, task, self.public, self.plan.episodes, self.seed)}
        return self.trials[task.name]

    def judged(self, task: Task, arm: str, c: Callable[[], Coefficients | None]) -> dict[str, float]:
        whole = arm in (BASE, ORACLE)
        return self.figures(f"{task.name} {arm}", lambda: self.trial(task).judged(c(), whole))

    # ---- choices

    def choose(self) -> dict[str, Any]:
        """Steps and rate of the oracle and of bodies from 1 and 5 exemplars: the most accurate on drawn classes that are not reported."""
        p = self.plan
        tasks = [drawn_task(f, p.known, p.shown) for f in p.choice]
        gains: dict[str, dict[str, list[float]]] = {"oracle": {}, **{str(k): {} for k in SHOTS}}
        for task in tasks:
            base = self.judged(task, BASE, lambda: None)
            for rate in p.rates:
                made = self.fitted(f"{task.name} choice {rate:g}", task.frames, len(task.classes), p.marks, rate)
                for mark in made:
                    found = self.judged(task, f"choice {rate:g} {mark}", partial(made.__getitem__, mark))
                    gain = float(np.mean([found[f"shown {k}"] - base[f"shown {k}"] for k in SHOTS]))
                    gains["oracle"].setdefault(f"{rate:g} {mark}", []).append(gain)
            for k in SHOTS:
                for rate in p.few_rates:
                    for mark in p.few_marks:
                        found = self.few(task, k, 0, p.few_marks, rate)
                        gain = found[f"fitted {mark}"] - found[BASE]
                        gains[str(k)].setdefault(f"{rate:g} {mark}", []).append(gain)
        out = {}
        for name, by in gains.items():
            best = max(by, key=lambda s: float(np.mean(by[s])))
            out[name] = {"rate": float(best.split()[0]), "steps": int(best.split()[1]), "gains": by}
        return out

    # ---- arms

    def few(self, task: Task, shots: int, draw: int, marks: Sequence[int], rate: float) -> dict[str, float]:
        """From the same exemplars: base, fitted body after each number of steps, and the trained generator's."""

        def make() -> dict[str, float]:
            trial = self.trial(task)
            own, rest = trial.exemplars(shots, draw)
            images = [image for part in task.shown for image in part]
            given = [[images[i] for i in row] for row in own]
            name = f"{task.name} few {shots} {draw} {rate:g} {max(marks)}"
            made = self.fitted(name, [frames(g) for g in given], len(given), marks, rate)
            out = {BASE: trial.from_exemplars(own, rest, None)}
            for mark, c in made.items():
                out[f"fitted {mark}"] = trial.from_exemplars(own, rest, c)
            if self.generator is not None:
                out["generator"] = trial.from_exemplars(own, rest, generated(self.world, self.generator, task, given))
            return out

        return self.figures(f"{task.name} few {shots} {draw} {rate:g} {max(marks)}", make)

    def oracle(self, task: Task, chosen: Mapping[str, Any]) -> Coefficients:
        rate, steps = chosen["oracle"]["rate"], chosen["oracle"]["steps"]
        return self.fitted(f"{task.name} oracle", task.frames, len(task.classes), [steps], rate)[steps]

    def common(self, kind: Kind, chosen: Mapping[str, Any]) -> Coefficients:
        rate, steps = chosen["oracle"]["rate"], self.plan.common_steps * chosen["oracle"]["steps"]
        path = self.work / f"{kind.name} common.safetensors"
        pictures = kind.common() if kind.common and not path.is_file() else []
        return self.fitted(f"{kind.name} common", pictures, len(kind.tasks[0].classes), [steps], rate)[steps]

    def borrowed(self, kind: Kind, task: Task, chosen: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Base, oracle and the mean over oracles of other tasks."""
        lend = {t.name: t for t in kind.lending}
        arms = {
            BASE: self.judged(task, BASE, lambda: None),
            ORACLE: self.judged(task, ORACLE, lambda: self.oracle(task, chosen)),
        }
        lent = [
            self.judged(task, f"lent by {n}", partial(self.oracle, lend[n], chosen))
            for n in kind.lenders(task, LENDERS)
        ]
        if lent:
            arms[SWAPPED] = {k: float(np.mean([one[k] for one in lent])) for k in lent[0]}
        return arms

    def shared(
        self, kind: Kind, task: Task, kinds: Sequence[Kind], chosen: Mapping[str, Any]
    ) -> dict[str, dict[str, float]]:
        """One body for all tasks of a kind, and that of the other kind."""
        return {
            COMMON if o is kind else FOREIGN: self.judged(task, f"common {o.name}", partial(self.common, o, chosen))
            for o in kinds
            if o.common is not None
        }

    def moved(self, kind: Kind, task: Task, chosen: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """The oracle's coefficients at another length; for some tasks fitted anew within other bounds."""

        def longer(factor: float) -> Coefficients:
            return scaled(self.oracle(task, chosen), factor)

        out = {}
        for f in FACTORS:
            out[f"oracle x {f:g}"] = self.judged(task, f"scaled {f:g}", partial(longer, f))
        for f in FACTORS if task in kind.tasks[: self.plan.bounded] else ():
            out[f"bounds x {f:g}"] = self.judged(task, f"bounds {f:g}", partial(self.bounded, task, f, chosen))
        return out

    def bounded(self, task: Task, factor: float, chosen: Mapping[str, Any]) -> Coefficients:
        rate, steps = chosen["oracle"]["rate"], chosen["oracle"]["steps"]
        name = f"{task.name} bounds {factor:g}"
        return self.fitted(name, task.frames, len(task.classes), [steps], rate, factor)[steps]

    def few_shots(self, task: Task, chosen: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Means over the draws of exemplars."""
        out = {}
        for k in SHOTS:
            rate, steps = chosen[str(k)]["rate"], chosen[str(k)]["steps"]
            each = [self.few(task, k, draw, [steps], rate) for draw in range(self.plan.draws)]
            names = {BASE: BASE, f"fitted {steps}": "fitted", "generator": "generator"}
            out[str(k)] = {
                title: float(np.mean([e[name] for e in each])) for name, title in names.items() if name in each[0]
            }
        return out

    def coefficients(self, kind: Kind, chosen: Mapping[str, Any], tasks_out: dict[str, Any]) -> dict[str, Any]:
        """How near predicted coefficients come to the oracle's; the ridge map's bodies are judged too."""
        tasks = kind.tasks
        oracle = np.stack([flat(self.oracle(t, chosen), self.mask) for t in tasks])
        second = [self.second(kind, t, chosen) for t in tasks]
        predicted = left_out(np.stack([summary_of(self.world, t) for t in tasks]), oracle, 0.1)
        for place, task in enumerate(tasks):
            c = partial(unflat, predicted[place, place], self.mask)
            tasks_out[task.name]["arms"][RIDGE] = self.judged(task, RIDGE, c)
        rows = {"ridge map, this task left out": predicted}
        if (twins := [x for x in second if x is not None]) and len(twins) == len(tasks):
            rows = {"an oracle from other pictures of the classes": np.stack(twins), **rows}
        if self.generator is not None:
            made = [generated(self.world, self.generator, t, [own[:5] for own in t.known]) for t in tasks]
            rows["trained generator, five exemplars"] = np.stack([flat(c, self.mask) for c in made])
            made = [generated(self.world, self.generator, t, [own[:1] for own in t.known]) for t in tasks]
            rows["trained generator, one exemplar"] = np.stack([flat(c, self.mask) for c in made])

        def related(i: int, j: int) -> bool:
            return bool(set(tasks[i].classes) & set(tasks[j].classes))

        found = {}
        for title, values in rows.items():
            own, other = cosines(values, oracle, related)
            found[title] = {
                "own": own.tolist(),
                "other": other.tolist(),
                "size": float(np.sqrt((values**2).mean())),
            }
        mean = np.stack([np.delete(oracle, i, 0).mean(0) for i in range(len(oracle))])
        found["mean of the other tasks' oracles"] = {
            "own": cosines(mean, oracle, related)[0].tolist(),
            "size": float(np.sqrt((mean**2).mean())),
        }
        return {"found": found, "size of the oracle": float(np.sqrt((oracle**2).mean())), "numbers": oracle.shape[1]}

    def second(self, kind: Kind, task: Task, chosen: Mapping[str, Any]) -> Array | None:
        """Coefficients of an oracle of the same classes from other pictures (skin: another division of the lesions)."""
        if any(task.again):
            rate, steps = chosen["oracle"]["rate"], chosen["oracle"]["steps"]
            pictures = [frames(x) for x in task.again]
            return flat(self.fitted(f"{task.name} second", pictures, len(pictures), [steps], rate)[steps], self.mask)
        twin = kind.twin(task)
        return None if twin is None else flat(self.oracle(twin, chosen), self.mask)


def run(
    out: Path,
    data: Path | None = None,
    body: Path | None = None,
    test: Sequence[str] = (),
    plan: Plan | None = None,
    release: Release | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure and write `results.json` and `results.md` in `out`.

    Raises InputError for data without skin classes or a file that is no generator.
    """
    plan, release, begun = plan or Plan(), release or shipped_release(), time.process_time()
    pictures = read_pictures(data, test) if data else None
    if test and pictures is None:
        raise InputError("wants --data", where="--meta-test", do="name the pictures")
    bench = Bench(release, out, plan, seed, _generator(body, release), pictures.digest if pictures else "")
    tasks = tuple(drawn_task(f, plan.known, plan.shown) for f in plan.tasks)
    kinds = [drawn_kind(tasks, plan.trained, plan.patients, plan.public)]
    if pictures:
        kinds += skin_kinds(pictures, test, plan.known, plan.shown, plan.real_draws, plan.lesions, plan.public, seed)
    bench.public = plain([image for k in kinds for image in k.public], release)
    chosen = bench.figures("choice", bench.choose)
    found: dict[str, Any] = {k.name: {"tasks": {t.name: {"arms": {}} for t in k.tasks}} for k in kinds}
    results = {"release": release.sha256, "seed": seed, "chosen": chosen, "kinds": found}
    first = [k for k in kinds if k.name != "test"]

    def each(these: Sequence[Kind], arms: Callable[[Kind, Task], Mapping[str, Any]]) -> None:
        for kind in these:
            for task in kind.tasks:
                found[kind.name]["tasks"][task.name]["arms"] |= arms(kind, task)
        _write(out, results, begun)

    each(first, lambda k, t: bench.borrowed(k, t, chosen))
    for kind in first:
        for task in kind.tasks:
            found[kind.name]["tasks"][task.name]["few"] = bench.few_shots(task, chosen)
    _write(out, results, begun)
    for kind in first:
        found[kind.name]["coefficients"] = bench.coefficients(kind, chosen, found[kind.name]["tasks"])
    each(first, lambda k, t: bench.shared(k, t, kinds, chosen))
    each(first, lambda k, t: bench.moved(k, t, chosen))
    each([k for k in kinds if k.name == "test"], lambda k, t: bench.borrowed(k, t, chosen))
    return results


def _write(out: Path, results: dict[str, Any], begun: float) -> None:
    results["seconds"] = round(time.process_time() - begun, 1)
    write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
    write_atomic(out / "results.md", report(results).encode())


def _generator(path: Path | None, release: Release) -> Generator | None:
    if path is None:
        return None
    try:
        return Generator.from_tensors(load_state(path), release.manifest.architecture.depth)
    except ValueError as error:
        raise InputError("is no generator of this release's size", where=path) from error


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.body", description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, required=True, help="folder; everything that was fitted is kept here too")
    p.add_argument("--data", type=Path, help="zip or folder of class folders with the common skin lesions")
    p.add_argument("--body", type=Path, help="body-*.safetensors of a `sgps pretrain generator` work folder")
    p.add_argument("--meta-test", default="", help="classes for one final run with nothing left to choose")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args(argv)
    torch.set_num_threads(1)
    test = [c for c in a.meta_test.split(",") if c]
    return finish(lambda: run(a.out, a.data, a.body, test, seed=a.seed), a.out / "results.md")


if __name__ == "__main__":
    sys.exit(main())
