"""Few-shot classification of diseases that no training has seen: the shipped release beside other methods on the same episodes.

    python -m bench.fewshot --data ZIP|DIR --meta-test akiec,df,vasc --ways 2,3 --shots 1,5 --episodes 600 --out DIR

Settings are those of the release. Nothing is chosen on the test classes: the peers' strengths and temperatures come from public tasks
(the release's reference bank for its base network, lesions of the data's other classes, or drawn ones, for frozen Lite0). Everything that
was computed is kept in --out: a second run, or one that was interrupted, goes on from there.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.arms import CENTRED, METHODS, OURS, Arms
from bench.fewshot_plots import draw
from bench.fewshot_report import report
from bench.fewshot_world import Plan, World, seen, world
from bench.figures import compared
from bench.measure import Answers, Shelf, answer
from bench.program import finish
from bench.shifts import SHIFTS, Shifted
from bench.splits import splits
from sgps.device import choose, described
from sgps.episodes import paired_difference
from sgps.errors import InputError
from sgps.files import sha256_file, write_atomic
from sgps.release import MANIFEST, Release
from sgps.shipped import shipped_release

QUICK = (
    *("ours", "prototype", "prototype-centred", "prototype-lite0", "prototype-lite0-centred", "knn", "ridge"),
    *("logistic", "protonet", "simpleshot", "simpleshot-centred", "bd-cspn-centred", "laplacian-shot-centred"),
)
SHIFTED = (*QUICK[:11], "feat" + CENTRED)
SIDE_EPISODES = 300  # of shifts and other kinds of pictures


class Bench:
    """Answers of every method on one world, from the shelf where they are there."""

    def __init__(
        self, w: World, plan: Plan, release: Release, out: Path, arms: Arms | None = None, shift: str = ""
    ) -> None:
        self.w, self.plan, self.release = w, plan, release
        self.arms = arms or Arms(release, w.pictures, w.rows, out, w.test)
        self.shelf = Shelf(out / "answers", w.pictures.digest, ",".join(w.test), shift)
        self.say = f"{shift} " if shift else ""
        self.found: dict[str, dict[str, Answers]] = {}
        self.left_out: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def measure(self, name: str) -> None:
        began, most, kept = time.process_time(), self.plan.most(name, self.release), {}
        for e in self.w.sets:
            if (known := self.shelf.get(self._key(name), e, self.w.label, most)) is not None:
                kept[e.name] = known
        if len(kept) < len(self.w.sets):
            try:
                method = self.arms.get(name)
            except InputError as error:
                method = str(error)
            if isinstance(method, str):
                self.left_out[name] = method
                return
            for e in self.w.sets:
                if e.name not in kept:
                    try:
                        kept[e.name] = answer(method, e, self.w.label, most, name)
                    except InputError as error:
                        self.left_out[name] = str(error)
                        return
                    self.shelf.put(self._key(name), e, most, kept[e.name])
        self.found[name] = {e.name: kept[e.name] for e in self.w.sets}
        self.seconds[name] = round(time.process_time() - began, 1)
        text = ", ".join(f"{k} {100 * a.accuracy().mean():.1f}" for k, a in self.found[name].items())
        print(f"{self.say}{name}: {text} ({self.seconds[name]:.0f} s)", flush=True)

    def _key(self, name: str) -> str:
        """What an answer is kept under: frozen Lite0 knows no release."""
        return name if "lite0" in name else f"{name}-{self.release.sha256[:16]}"

    def left(self, methods: Sequence[str]) -> float:
        """Processor-seconds to expect, features not counted."""
        total = 0.0
        for name in (n for n in methods if not self.arms.lacks(n)):
            most, kind = self.plan.most(name, self.release), METHODS[name]
            for e in self.w.sets:
                if not self.shelf.path(self._key(name), e, most).is_file():
                    seconds = 1.2 if most < self.plan.count and name.startswith(OURS) else kind.seconds
                    total += kind.once + seconds * most
        return total

    def differences(self) -> dict[str, dict[str, Any]]:
        """Ours minus every method on the episodes that both have, Holm's correction over all of them."""
        pairs = {}
        for peer, by in self.found.items():
            for kind, theirs in by.items():
                ours = self.found[OURS][kind].accuracy()
                n = min(len(ours), len(theirs.probability))
                if peer != OURS:
                    pairs[f"{peer} {kind}"] = paired_difference(ours[:n], theirs.accuracy()[:n])
        return compared(pairs)


def chosen(names: Sequence[str]) -> list[str]:
    """Methods by name or family, ours first. Raises InputError for an unknown one."""
    families = {k.family for k in METHODS.values()}
    groups = {f: [n for n, k in METHODS.items() if k.family == f] for f in families}
    groups |= {"all": list(METHODS), "quick": list(QUICK), OURS: [OURS]}
    out = [OURS]
    for name in names:
        if name not in groups and name not in METHODS:
            raise InputError(
                f"{name} is unknown", where="--methods", do=f"choose from {', '.join([*groups, *METHODS])}"
            )
        out += groups.get(name, [name])
    return sorted(dict.fromkeys(out), key=list(METHODS).index)


def run(
    data: Path,
    out: Path,
    test: Sequence[str] = (),
    plan: Plan | None = None,
    release: Release | None = None,
    shifts: bool = False,
    all_splits: bool = False,
    domains: Sequence[Path] = (),
) -> dict[str, Any]:
    """Measure and write `results.json`, `results.md`, `episodes.json.gz` and figures in `out`. release: the shipped one unless given.

    The files are written after every method, so that an interrupted run leaves a table. Raises InputError for unknown methods or
    data that do not support any episode.
    """
    plan, start = plan or Plan(), time.perf_counter()
    methods = chosen(plan.methods)
    if min(plan.ways) < 2 or min(plan.shots) < 1:
        raise InputError("an episode needs two classes and one exemplar of each", where="--ways, --shots")
    if min(plan.count, plan.slow) < 2:
        raise InputError("an interval needs at least 2", where="--episodes")
    release = release or shipped_release()
    out.mkdir(parents=True, exist_ok=True)
    w = world(data, test, plan, release, out)
    packed = w.packed()
    write_atomic(out / "episodes.json.gz", packed)
    bench = Bench(w, plan, release, out)
    print(
        f"about {bench.left(methods) / 60:.0f} processor-minutes to go for {len(methods)} methods, features apart",
        flush=True,
    )
    lesion = w.pictures.lesion[w.rows]
    results: dict[str, Any] = {
        "release": release.sha256,
        "learned": list(release.manifest.architecture.learned),
        "data": {"file": data.name, "sha256": w.pictures.digest},
        "classes": {
            c: {"images": int((w.label == c).sum()), "lesions": len(set(lesion[w.label == c].tolist()))} for c in w.test
        },
        "episodes": {
            "count": plan.count,
            "slow": plan.slow,
            "seed": plan.seed,
            "sha256": hashlib.sha256(packed).hexdigest(),
            "queries": {e.name: e.index.shape[2] - e.shots for e in w.sets},
        },
        "notes": list(w.notes),
        "device": described(plan.device),
        "seen": seen(release, w),
        "methods": {},
        "shifts": {},
        "splits": {},
        "domains": {},
    }

    def write() -> None:
        results["seconds"] = round(time.perf_counter() - start, 1)
        write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
        write_atomic(out / "results.md", report(results).encode())

    def measure(names: Sequence[str]) -> None:
        for name in names:
            bench.measure(name)
            if name in bench.found:
                results["methods"][name] = {k: a.to_mapping() for k, a in bench.found[name].items()}
            results["methods"] = {m: results["methods"][m] for m in METHODS if m in results["methods"]}
            results["ours minus"] = bench.differences()
            results["left out"], results["processor seconds"] = bench.left_out, bench.seconds
            write()

    cheap = [n for n in methods if n == OURS or not METHODS[n].slow]
    measure(cheap)
    if all_splits:
        rows = np.concatenate([w.rows, w.pictures.others(w.test, trained=True, unknown=True)])
        results["splits"] = splits(w.pictures, rows, out, plan.ways, plan.shots, plan.seed)
        write()
    if shifts:
        for shift in SHIFTS:
            results["shifts"][shift] = _shifted(bench, shift, out)
            write()
    for other in domains:
        results["domains"][other.name] = _domain(other, plan, release, out)
        write()
    measure([n for n in methods if n not in cheap])
    draw(results, out)
    return results


def _shifted(plain: Bench, shift: str, out: Path) -> dict[str, Any]:
    queries = Shifted.under(plain.w.pictures, shift)
    plan = replace(plain.plan, count=min(plain.plan.count, SIDE_EPISODES))
    bench = Bench(plain.w, plan, plain.release, out, plain.arms.showing(queries), shift)
    for name in (n for n in SHIFTED if n in plain.found):
        bench.measure(name)
    return {
        "methods": {n: {k: _short(a) for k, a in by.items()} for n, by in bench.found.items()},
        "ours minus": bench.differences(),
    }


def _domain(data: Path, plan: Plan, release: Release, out: Path) -> dict[str, Any]:
    plan = replace(plan, count=min(plan.count, SIDE_EPISODES))
    w = world(data, (), plan, release, out)
    bench = Bench(w, plan, release, out)
    print(f"{data.name}: {', '.join(w.test)}", flush=True)
    for name in chosen(["quick"]):
        bench.measure(name)
    return {
        "classes": list(w.test),
        "seen": seen(release, w),
        "notes": list(w.notes),
        "methods": {n: {k: _short(a) for k, a in by.items()} for n, by in bench.found.items()},
        "ours minus": bench.differences(),
    }


def _short(a: Answers) -> Mapping[str, Any]:
    kept = a.to_mapping()
    return {k: kept[k] for k in ("accuracy", "auroc", "brier", "ece", "recall", "worst class", "episodes")}


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.fewshot", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="zip or folder of class folders")
    p.add_argument(
        "--meta-test",
        default="",
        help="classes that no training has seen; akiec,df,vasc where they are there, else all",
    )
    p.add_argument("--ways", type=numbers, default=[2, 3])
    p.add_argument("--shots", type=numbers, default=[1, 5])
    p.add_argument("--episodes", type=int, default=600)
    p.add_argument(
        "--slow-episodes", type=int, default=150, help="of methods that make or tune a body for every episode"
    )
    p.add_argument("--seed", type=int, default=0, help="of the episodes")
    p.add_argument(
        "--methods", default="all", help=f"all, quick, control, peer, transductive or of {', '.join(METHODS)}"
    )
    p.add_argument(
        "--shifts", action="store_true", help="queries under another camera, crop, compression, hair, marks, rotation"
    )
    p.add_argument("--splits", action="store_true", help="all ways to take three test classes, on frozen Lite0")
    p.add_argument(
        "--domains", type=Path, nargs="*", default=[], help="further zips or folders; every class is a test class"
    )
    p.add_argument("--release", type=Path, help="folder of another release than the shipped one")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda: of features under the release's base network")
    p.add_argument("--out", type=Path, required=True, help="folder; features and answers are kept here too")
    a = p.parse_args(argv)

    def work() -> None:
        plan = Plan(
            a.ways, a.shots, a.episodes, a.slow_episodes, a.seed, methods=a.methods.split(","), device=choose(a.device)
        )
        release = Release.open(a.release, sha256=sha256_file(a.release / MANIFEST)) if a.release else None
        test = [c for c in a.meta_test.split(",") if c]
        run(a.data, a.out, test, plan, release, a.shifts, a.splits, a.domains)

    return finish(work, a.out / "results.md")


if __name__ == "__main__":
    sys.exit(main())
