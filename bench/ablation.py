"""What each part of the shipped synthesis is worth: body, centre, text, memory, views, rivals; one part changed at a time.

    python -m bench.ablation --data ZIP|DIR --out DIR [--body FILE]

On the test classes and on drawn classes that nothing was trained or chosen on: a text can only help there, since the part that reads
texts knows drawn attributes alone. Half of each class's lesions lies at six simulated sites and fills the class memory, where the
catalogue knows the class; episodes and exemplars are of the other half, one picture a lesion.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.exemplar_report import ranked
from bench.features import Array, base_features
from bench.figures import compared, percent, table
from bench.one_exemplar import World, exact_sums, noised, shares
from bench.pictures import read_pictures
from bench.program import finish
from bench.shipped import Ours, with_body, with_random_body, without
from sgps.calibration import score
from sgps.draw import clinical_text, draw_profile, write_folder
from sgps.episodes import Episodes, interval, paired_difference, sample_episodes
from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.memory import Memory
from sgps.pretrain.networks import load_state
from sgps.release import Release
from sgps.shipped import shipped_release

DRAWN, PATIENTS = range(8000, 8024), 40  # profiles outside every recipe, and patients of each
SHIPPED, ONE_VIEW = "shipped", "one view"
WAYS, SHOTS, QUERIES, RIVAL_FREE = (2, 3), (1, 5), 15, "rivals not subtracted"


@dataclass(frozen=True)
class Arm:
    """One changed part. against: the arm it is compared with; rivals: whether they are subtracted from one disease's score."""

    title: str
    ours: Ours
    exchanged: bool = False
    memory: Memory | None = None
    rivals: bool = True
    against: str = SHIPPED


@dataclass(frozen=True)
class Side:
    """A set of classes: pictures of the tested lesions, episodes on them, clinical texts and class memories."""

    name: str
    world: World
    tested: Array
    texts: Mapping[str, str]
    memories: Mapping[str, Memory]

    @classmethod
    def of(cls, name: str, release: Release, world: World, texts: Mapping[str, str], seed: int) -> "Side":
        random, memory, memories = np.random.default_rng([seed, 2]), release.memory(), dict[str, Memory]()
        held, given = shares(world, random)
        catalogue = Ours(release, world.pictures, world.features).synthesizer.catalogue
        ids = {d: e.id for d in world.test if (e := catalogue.find(d)) and e.id in memory.ids}
        if set(ids) == set(world.test):
            sums = exact_sums(world, memory, held, ids)
            for title, epsilon in (
                ("row of the class memory, no noise", None),
                ("row of the class memory, epsilon 3", 3.0),
            ):
                memories[title] = noised(sums, memory, epsilon, random)
        own = np.isin(world.pictures.label[world.queries], world.test)
        tested = world.queries[own & ~np.isin(world.pictures.lesion[world.queries], list(given))]
        return cls(name, world, tested, texts, memories)

    def arms(self, release: Release, out: Path, body: Path | None) -> list[Arm]:
        """Every arm that release and classes have."""
        pictures, known = self.world.pictures, self.world.features
        shipped, plain = Ours(release, pictures, known), Ours(release, pictures, known)
        plain.synthesizer.centre = np.zeros_like(plain.synthesizer.centre)
        rows = np.array(sorted(known))
        one = dict(zip(rows.tolist(), base_features(release, pictures, rows, out, views=1), strict=True))
        arms = [Arm(SHIPPED, shipped), Arm("no centre: plain cosine", plain)]
        if "text" in release.manifest.architecture.learned:
            arms.append(Arm("no text", Ours(without(release, "text"), pictures, known)))
            arms.append(Arm("texts exchanged between the classes", shipped, exchanged=True))
        arms += [Arm(title, shipped, memory=memory) for title, memory in self.memories.items()]
        arms += [Arm(RIVAL_FREE, shipped, rivals=False), Arm(ONE_VIEW, Ours(release, pictures, one, 1))]
        bodies = {
            "one view, body from a random generator": with_random_body(Ours(with_body(release), pictures, one, 1))
        }
        if body is not None:
            trained = Ours(with_body(release), pictures, one, 1)
            if trained.synthesizer.generator is None:
                raise InputError("the release has no generator", where="--body")
            trained.synthesizer.generator.load_state_dict(_body_of(body, trained))
            bodies["one view, body as meta-trained (not shipped)"] = trained
        return arms + [Arm(title, made, against=ONE_VIEW) for title, made in bodies.items()]

    def said(self, names: Sequence[str], exchanged: bool) -> dict[str, str]:
        """Texts of these classes; of a single one the next class's, where they are exchanged."""
        order = [*self.world.test]
        texts = [self.texts[n] for n in names]
        if exchanged:
            texts = (
                [*texts[1:], texts[0]]
                if len(names) > 1
                else [self.texts[order[(order.index(names[0]) + 1) % len(order)]]]
            )
        return dict(zip(names, texts, strict=True))


def _body_of(path: Path, ours: Ours) -> dict[str, torch.Tensor]:
    """The generator in use with decoder and heads of a `body-*.safetensors` that `sgps pretrain generator` keeps in its work folder."""
    generator = ours.synthesizer.generator
    now = generator.state_dict() if generator else {}
    found = load_state(path)
    if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in now.items()}:
        raise InputError("is no generator of this release's size", where=path)
    return found


def right(side: Side, arm: Arm, episodes: Episodes) -> Array:
    """[episodes] accuracy."""
    label, out = side.world.pictures.label, []
    for index in side.tested[episodes.index]:
        names = [str(c) for c in label[index[:, 0]]]
        support = dict(zip(names, index[:, : episodes.shots].tolist(), strict=True))
        queries = index[:, episodes.shots :].ravel().tolist()
        made = arm.ours.compose(support, side.said(names, arm.exchanged), arm.memory)
        truth = np.repeat(np.arange(len(names)), len(queries) // len(names))
        out.append(float((arm.ours.logits(made, queries, names).argmax(1) == truth).mean()))
    return np.array(out)


def alone(side: Side, arm: Arm, count: int) -> Array:
    """[exemplars] AUROC of one exemplar against the other classes of the set, at most `count` exemplars of each class."""
    label, out = side.world.pictures.label, []
    for disease in side.world.test:
        for e in side.tested[label[side.tested] == disease][:count].tolist():
            rows = side.tested[side.tested != e]
            made = arm.ours.compose({disease: [e]}, side.said([disease], arm.exchanged), arm.memory)
            logits = arm.ours.logits(made, rows.tolist(), [disease])
            value = score(logits, 1)[:, 0] if arm.rivals else logits[:, 0]
            out.append(ranked(value, label[rows], disease, side.world.test)["auroc other"])
    return np.array(out)


def measured(side: Side, arms: Sequence[Arm], count: int, slow: int, exemplars: int, seed: int) -> dict[str, Any]:
    """Of each arm accuracy and AUROC, and the difference to what it is compared with."""
    label, lesion = side.world.pictures.label[side.tested], side.world.pictures.lesion[side.tested]
    fewest = min(int((label == c).sum()) for c in side.world.test)
    sets = [
        sample_episodes(label, lesion, list(side.world.test), w, k, min(QUERIES, fewest - k), count, seed)
        for w in WAYS
        for k in SHOTS
        if fewest > k
    ]
    found: dict[str, dict[str, Array]] = {}
    for arm in arms:
        bodies = arm.against == ONE_VIEW
        found[arm.title] = {
            e.name: right(side, arm, replace(e, index=e.index[:slow] if bodies else e.index))
            for e in sets
            if arm.rivals
        }
        if not bodies:  # what a body does to rivals is another question: the bank holds no pictures of them
            found[arm.title]["one exemplar"] = alone(side, arm, exemplars)
        said = ", ".join(f"{k} {100 * v.mean():.1f}" for k, v in found[arm.title].items())
        print(f"{side.name}, {arm.title}: {said}", flush=True)
    pairs = {}
    for arm in arms[1:]:
        for k, values in found[arm.title].items():
            pairs[f"{arm.title} {k}"] = paired_difference(values, found[arm.against][k][: len(values)])
    return {
        "classes": list(side.world.test),
        "queries": {e.name: e.index.shape[2] - e.shots for e in sets},
        "arms": {t: {k: vars(interval(v)) | {"n": len(v)} for k, v in by.items()} for t, by in found.items()},
        "minus": compared(pairs),
        "against": {a.title: a.against for a in arms},
    }


def report(r: Mapping[str, Any]) -> str:
    """Markdown of what `run` returns."""
    learned = ", ".join(r["learned"]) or "none"
    lines = [f"Release {r['release'][:16]}, learned parts that are on: {learned}. Seed {r['seed']}. Data {r['data']}."]
    for name, side in r["sides"].items():
        kinds = [*side["queries"], "one exemplar"]
        rows = []
        for title, by in side["arms"].items():
            cells = []
            for k in kinds:
                d = side["minus"].get(f"{title} {k}")
                verdict = {"better": "higher", "worse": "lower", "tie": "tie"}[d["ours"]] if d else ""
                cells.append("" if k not in by else percent(by[k]) + (f" ({percent(d, True)} {verdict})" if d else ""))
            rows.append([title, *cells])
        queries = ", ".join(f"{k} {n}" for k, n in side["queries"].items())
        text = (
            f"{name}: {len(side['classes'])} classes. Accuracy on {r['episodes']} episodes of each kind (bodies: the first {r['slow']}; queries a "
            f"class: {queries}), and AUROC of one exemplar against the other classes, in percent. In brackets the arm minus the shipped "
            "settings (bodies: minus one view), paired; *higher*, *lower* or *tie* after Holm's correction over the table."
        )
        lines += [
            "",
            text,
            "",
            table(["", *kinds], rows),
        ]
    return "\n".join(lines) + "\n"


def run(
    data: Path,
    out: Path,
    test: Sequence[str] = ("akiec", "df", "vasc"),
    count: int = 300,
    slow: int = 60,
    exemplars: int = 40,
    body: Path | None = None,
    release: Release | None = None,
    drawn: range = DRAWN,
    patients: int = PATIENTS,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure and write `results.json` and `results.md` in `out`. drawn: profiles of the drawn classes, patients of each.

    Raises InputError for data without the classes or a file that is no generator of the release.
    """
    if min(count, slow, exemplars) < 2:
        raise InputError("must be at least 2", where="--episodes, --slow-episodes, --exemplars")
    start, release = time.perf_counter(), release or shipped_release()
    out.mkdir(parents=True, exist_ok=True)
    profiles = [draw_profile(n) for n in drawn]
    folder = out / f"drawn-{drawn.start}-{len(drawn)}-{patients}"
    if not folder.is_dir():
        write_folder(folder, profiles, patients, seed)
    results: dict[str, Any] = {
        "release": release.sha256,
        "learned": list(release.manifest.architecture.learned),
        "data": data.name,
        "seed": seed,
        "episodes": count,
        "slow": min(slow, count),
        "sides": {},
    }
    for name, where, classes in (("Test classes", data, [*test]), ("Drawn classes", folder, [p.id for p in profiles])):
        pictures = read_pictures(where, classes)
        world = World.of(release, pictures, classes, out, seed)
        ours = Ours(release, pictures, world.features)
        said = {p.id: clinical_text(p) for p in profiles}
        side = Side.of(name, release, world, {c: said.get(c) or ours.text(c) for c in classes}, seed)
        results["sides"][name] = measured(side, side.arms(release, out, body), count, slow, exemplars, seed)
        results["seconds"] = round(time.perf_counter() - start, 1)
        write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
        write_atomic(out / "results.md", report(results).encode())
    return results


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.ablation", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="zip or folder of class folders")
    p.add_argument("--meta-test", default="akiec,df,vasc", help="diseases that no training has seen")
    p.add_argument("--episodes", type=int, default=300, help="of each kind")
    p.add_argument("--slow-episodes", type=int, default=60, help="of arms that make a body for each")
    p.add_argument("--exemplars", type=int, default=40, help="of each class, alone against the others")
    p.add_argument("--body", type=Path, help="body-*.safetensors of a `sgps pretrain generator` work folder")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, required=True, help="folder; features are kept here too")
    a = p.parse_args(argv)
    test, work = a.meta_test.split(","), (a.episodes, a.slow_episodes, a.exemplars, a.body)
    return finish(lambda: run(a.data, a.out, test, *work, seed=a.seed), a.out / "results.md")


if __name__ == "__main__":
    sys.exit(main())
