"""Attacks on what is published: `python -m bench.attacks --data ZIP|DIR --out DIR`.

Membership inference against the sums that a site sends, re-identification of the exemplar from a classifier, and its reconstruction.
Exit status 1 when an attack does better than the claim allows. Of reconstructions only those of drawn lesions are written."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench._attack_exemplar import STEPS, Found, behind, heads, invert, matched, pictured, reidentified
from bench._attack_members import SHOWN, Outcome, clopper_pearson, directions, informed, uninformed
from bench._step import DELTA, SiteFolder
from bench._step_games import worst
from bench.features import Lite0, base_features, lite0_features
from bench.pictures import Pictures, read_pictures
from bench.shipped import Ours
from sgps.classifier import Classifier
from sgps.draw import PRESETS, draw_patient
from sgps.encoders import target_of
from sgps.errors import InputError, SgpsError
from sgps.files import write_atomic
from sgps.memory import COUNTS, ROWS, record
from sgps.release import Release
from sgps.shipped import shipped_release
from sgps.synthesis import synthesize
from sgps_privacy.accountant import calibrate

Array = NDArray[Any]
EPSILONS = (1.0, 3.0, 8.0)
SIZES = (5, 20, 80)  # patients of the disease at the site, for the attacker who knows none of them
TARGETS = 40  # real lesions
DRAWN = 8000  # seed of the first drawn exemplar: further than any that training or the bank draws
WHOSE = ("its", "another's")  # reconstruction
PICTURE = "attacks-reconstruction.png"


class Plan(dict[str, int]):
    """How much of everything."""


FULL = Plan(rounds=1600, sums=6000, exemplars=200, inverted=16, steps=STEPS, drawn=6)
QUICK = Plan(rounds=80, sums=300, exemplars=4, inverted=2, steps=3, drawn=2)


def membership(
    ours: Ours, pictures: Pictures, features: Mapping[int, Array], test: Sequence[str], how: Plan
) -> list[Outcome]:
    """Targets are lesions of the commonest class that no training saw these of, and for the attacker who knows the disease alone also of
    the commonest of `test`; every one is a member in one world and not in the other."""
    release = ours.synthesizer.release
    memory, random = release.memory(), np.random.default_rng(3)
    known = np.array(sorted(features))
    label = pictures.label[known]
    kinds = [_commonest(label[~np.isin(label, test)]), _commonest(label[np.isin(label, test)])]
    rows = {kind: pictures.one_each(known[label == kind], random) for kind in kinds}
    put = {k: directions(memory.coordinates, np.stack([features[int(r)] for r in rows[k]])) for k in kinds}
    entry, targets = ours.synthesizer.catalogue.find(kinds[0]), []
    c = memory.ids.index(entry.id) if entry else 0
    for r in rows[kinds[0]][:TARGETS]:
        row, counts = record(memory.coordinates, {c: features[int(r)]}, len(memory.ids))
        targets.append({ROWS: row.astype(np.float32), COUNTS: counts.astype(np.float32)})
    out: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        site = SiteFolder(Path(folder), release, 5, EPSILONS)
        others = [r for r in site.records if r is not None][:3]
        steps = {e: site.step(e) for e in EPSILONS}
    for budget in (*EPSILONS, None):
        step = steps[budget or EPSILONS[-1]]
        trials = how["rounds"] if budget else min(how["rounds"], 400)
        canary = [worst(step)[0]]
        done = [
            informed(step, others, canary, trials, "knows all others, worst-case record", budget),
            informed(step, others, targets, trials, f"knows all others, lesions of {kinds[0]}", budget),
        ]
        grid, claim = (step.grid, (budget, float(step.facts["mu"]))) if budget else (None, None)
        for kind, every in put.items():
            fitting = [n for n in SIZES if n < len(every) // 2]
            done += [uninformed(every, n, kind, grid, claim, how["sums"], 0) for n in fitting]
        print("\n".join(o.line() for o in done), flush=True)
        out += done
    return out


def _commonest(label: Array) -> str:
    kinds, count = np.unique(label, return_counts=True)
    return str(kinds[count.argmax()])


def drawn(release: Release, how: Plan, folder: Path) -> tuple[Image.Image, list[float]]:
    """Drawn exemplars above what is made of their classifiers' directories alone, and the cosines reached."""
    names = [n for n in PRESETS if n in release.manifest.classes][: how["drawn"]]
    shown = [Image.fromarray(draw_patient(PRESETS[n], DRAWN + i)[0]) for i, n in enumerate(names)]
    rows = []
    for name, image in zip(names, shown, strict=True):
        synthesize({name: [image]}, {}, release).save(folder / name)
        rows.append(Classifier.load(folder / name).state["classifier.weight"][0].numpy())
    made, reached = inverted(release, np.stack(rows), how)
    size = release.manifest.architecture.size
    sheet = Image.new("RGB", (size * len(shown), size * 2), "white")
    for i, (before, after) in enumerate(zip(shown, pictured(made), strict=True)):
        sheet.paste(before.resize((size, size)), (i * size, 0))
        sheet.paste(after, (i * size, size))
    return sheet, reached.tolist()


def inverted(release: Release, head: Array, how: Plan) -> tuple[torch.Tensor, Array]:
    a = release.manifest.architecture
    if {*a.mean, *a.std} != {0.5}:
        raise InputError("takes pictures of another range", where="the release's base network")
    return invert(target_of(release), head, release.memory().coordinates.mean, a.size, how["steps"])


def reconstruction(
    ours: Ours,
    release: Release,
    pictures: Pictures,
    features: Mapping[int, Array],
    out: Path,
    test: Sequence[str],
    how: Plan,
) -> tuple[list[Found], list[float]]:
    """Whether another network, frozen Lite0, finds the exemplar by its reconstruction among all pictures of its disease; and, for comparison,
    another exemplar by it."""
    exemplars: list[tuple[str, int]] = []
    for disease in test:
        random, rows = np.random.default_rng(13), np.flatnonzero(pictures.label == disease)
        exemplars += [(disease, int(r)) for r in random.permutation(pictures.one_each(rows, random))[: how["inverted"]]]
    made, reached = inverted(release, np.concatenate([heads(ours, d, [[r]]) for d, r in exemplars]), how)
    seen = Lite0().features(pictured(made))
    found: tuple[list[Found], list[Found]] = ([], [])
    for disease in test:
        mine = [i for i, (d, _) in enumerate(exemplars) if d == disease]
        rows = np.flatnonzero(pictures.label == disease)
        known = lite0_features(pictures, rows, out)
        place = np.searchsorted(rows, [exemplars[i][1] for i in mine])
        for control in (False, True):  # what likeness alone gives: another exemplar in the place of the true one
            sought = np.roll(place, 1) if control else place
            right = [(np.arange(len(rows)) == p).astype(int) for p in sought]
            setting = f"{disease}: {WHOSE[control]} reconstruction"
            found[control].append(
                matched(seen[mine] - known.mean(0), known - known.mean(0), lambda i: right[i], setting)  # noqa: B023
            )
    for name, each in zip(WHOSE, found, strict=True):
        every = (np.concatenate([getattr(f, part) for f in each]) for part in ("ranks", "candidates"))
        each.append(Found(f"all: {name} reconstruction", *every))
    return [*found[0], *found[1]], reached.tolist()


def row_of(disease: str, found: Found) -> str:
    n, hits = len(found.ranks), int((found.ranks == 1).sum())
    low, high = clopper_pearson(hits, n, SHOWN)
    share = (found.ranks - 1) / np.maximum(found.candidates - 1, 1)
    half = 1.96 * share.std(ddof=1) / np.sqrt(n) if n > 1 else float("nan")
    tenth = 100 * float((share < 0.1).mean())
    return (
        f"| {disease} | {found.setting} | {n} | {int(np.median(found.candidates))} | {100 * hits / n:.1f} ({100 * low:.1f} to "
        f"{100 * high:.1f}) | {tenth:.0f} | {np.median(found.ranks):.0f} | {100 * share.mean():.1f} ± {100 * half:.1f} |"
    )


def report(
    results: Mapping[str, Any],
    members: Sequence[Outcome],
    found: Mapping[str, Sequence[Found]],
    redrawn: Sequence[Found],
) -> str:
    head = (
        "| disease | attacker has | exemplars | candidates | first, % (95 %) | in the best tenth, % | median rank | mean rank, % of the way down |",
        "|---|---|---|---|---|---|---|---|",
    )
    return "\n".join(
        [
            (
                f"Release {results['release'][:16]}, data {results['data']['file']} ({results['data']['sha256'][:16]}), delta {DELTA:g}; "
                f"{results['cpu_seconds']:.0f} processor-seconds."
            ),
            "",
            "| attacker | epsilon | AUC | at most | found at 1 % false alarms, % | at most | false alarms, % | runs | within the claim |",
            "|---|---|---|---|---|---|---|---|---|",
            *(m.line() for m in members),
            "",
            *head,
            *(row_of(disease, f) for disease, each in found.items() for f in each),
            "",
            *head,
            *(row_of(f.setting.split(":")[0], replace(f, setting=f.setting.split(": ")[1])) for f in redrawn),
            "",
            f"Cosine to the head: {np.mean(results['reached']):.3f} mean, {min(results['reached']):.3f} least; drawn "
            + ", ".join(f"{c:.3f}" for c in results["reached drawn"]),
            "",
        ]
    )


def run(data: Path, out: Path, test: Sequence[str], how: Plan, release: Release | None = None) -> dict[str, Any]:
    """Measure and write `results.json`, `results.md` and the drawn reconstructions in `out`. Raises InputError for data without `test`."""
    begun = time.process_time()
    release, pictures = release or shipped_release(), read_pictures(data, test)
    out.mkdir(parents=True, exist_ok=True)
    rows = np.concatenate([pictures.of(test), pictures.others(test, trained=False)])
    features = dict(zip(rows.tolist(), base_features(release, pictures, rows, out), strict=True))
    ours, most = Ours(release, pictures, features), how["exemplars"]
    members = membership(ours, pictures, features, test, how)
    sigma = calibrate(3.0, DELTA, 1)
    found: dict[str, list[Found]] = {}
    for d in test:
        found[d] = reidentified(ours, pictures, features, d, most, 0)
        found[d].append(behind(ours, pictures, features, d, most, sigma, 0))
        print("\n".join(row_of(d, f) for f in found[d]), flush=True)
    redrawn, reached = reconstruction(ours, release, pictures, features, out, test, how)
    with tempfile.TemporaryDirectory() as folder:
        sheet, drawn_reached = drawn(release, how, Path(folder))
    sheet.save(out / PICTURE)
    results = {
        "release": release.sha256,
        "data": {"file": data.name, "sha256": pictures.digest},
        "membership": [{**asdict(m), "auc bound": m.auc_bound, "holds": m.holds} for m in members],
        "ranks": {
            d: {f.setting: {"ranks": f.ranks.tolist(), "candidates": f.candidates.tolist()} for f in each}
            for d, each in {**found, "reconstruction": redrawn}.items()
        },
        "reached": reached,
        "reached drawn": drawn_reached,
        "cpu_seconds": round(time.process_time() - begun, 1),
        "holds": all(m.holds for m in members),
    }
    write_atomic(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    write_atomic(out / "results.md", report(results, members, found, redrawn).encode())
    return results


def main(argv: Sequence[str] | None = None, release: Release | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.attacks", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="zip or folder of class folders")
    p.add_argument("--meta-test", default="akiec,df,vasc", help="diseases whose exemplars are looked for")
    p.add_argument("--quick", action="store_true", help="the short form: says that it works, no figures")
    p.add_argument("--out", type=Path, required=True, help="folder; features are kept here too")
    a = p.parse_args(argv)
    torch.set_num_threads(1)
    try:
        results = run(a.data, a.out, a.meta_test.split(","), QUICK if a.quick else FULL, release)
    except SgpsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print((a.out / "results.md").read_text())
    return 0 if results["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
