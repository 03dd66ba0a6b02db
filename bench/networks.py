"""Base networks beside each other on judges that none of them was trained on: brain MRI, drawn classes, held-out skin lesions.

    python -m bench.networks --data DIR --out DIR [--release DIR ...] [--frozen]

Nearest prototype, 400 episodes. Skin and drawn pictures are centred by others of their kind, MRI is not: no network knows its kind.
--frozen: the 600 frozen test episodes too, for once, at the end; centred by what the release itself carries, by drawn classes, by skin.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from bench.features import Array, kept
from bench.figures import percent, table
from bench.pictures import Pictures, read_pictures
from bench.program import finish
from sgps.draw import draw_profile, write_folder
from sgps.encoders import ImageEncoder
from sgps.episodes import accuracy, interval, paired_difference, sample_episodes
from sgps.errors import InputError
from sgps.files import sha256_file, write_atomic
from sgps.images import batch
from sgps.pretrain.frozen import TEST, frozen_episodes
from sgps.pretrain.networks import HALF, TEACHER_SHA256, pooled, read_teacher
from sgps.pretrain.recipe import read_recipe
from sgps.release import MANIFEST, Release
from sgps.shipped import shipped_release

MRI, SKIN = "brain_mri_224.zip", "ham10000_200x150.zip"
DRAWN, OTHERS, PATIENTS = range(7000, 7020), range(7100, 7112), 30  # profiles that are judged, and that give the centre
LITE0_SIZES, SETTINGS, EPISODES = (96, 128, 160), ((2, 1), (3, 1), (3, 5)), 400
OWN, CLOSE = "its own", 0.01  # centre of a release's class memory; what another base may lose against the shipped one
Extract = Callable[[Sequence[Image]], Array]


@dataclass(frozen=True)
class Judge:
    """Pictures of classes to tell apart, one a lesion, and of others whose mean is the centre."""

    name: str
    pictures: Pictures
    rows: Array
    centre: Array

    def middle(self, network: str, extract: Extract, out: Path) -> Any:
        """Mean of the other classes' means, 0 where there are none."""
        if not len(self.centre):
            return 0
        others, kind = kept(network, extract, self.pictures, self.centre, out), self.pictures.label[self.centre]
        return np.mean([others[kind == c].mean(0) for c in np.unique(kind)], 0)

    def measure(self, network: str, extract: Extract, out: Path, seed: int) -> dict[str, Any]:
        """Accuracy by setting."""
        features = kept(network, extract, self.pictures, self.rows, out) - self.middle(network, extract, out)
        label, lesion, by = self.pictures.label[self.rows], self.pictures.lesion[self.rows], dict[str, Any]()
        for ways, shots in SETTINGS:
            e = sample_episodes(label, lesion, sorted(set(label.tolist())), ways, shots, count=EPISODES, seed=seed)
            by[e.name] = vars(interval(accuracy(features, e)))
        return by


def judges(data: Path, out: Path, seed: int) -> list[Judge]:
    """Raises InputError when a set is not there."""
    random, nobody = np.random.default_rng(seed), np.zeros(0, np.int64)
    for name in (MRI, SKIN):
        if not (data / name).is_file():
            raise InputError("is not there", where=data / name, do="give the folder of the public image sets")
    mri, skin = read_pictures(data / MRI), read_pictures(data / SKIN)
    folder = out / "drawn"
    if not folder.is_dir():
        write_folder(folder, [draw_profile(n) for n in (*DRAWN, *OTHERS)], PATIENTS, seed)
    drawn, judged = read_pictures(folder), [draw_profile(n).id for n in DRAWN]
    rows, test = mri.few(sorted(set(mri.label.tolist())), 150), read_recipe(None).meta_test
    _, first = np.unique([mri.sha256(int(r)) for r in rows], return_index=True)
    held, trained = (skin.others(test, trained=t, unknown=False) for t in (False, True))
    few = np.sort(
        np.concatenate(
            [random.permutation(trained[skin.label[trained] == c])[:60] for c in np.unique(skin.label[trained])]
        )
    )
    others = np.setdiff1d(np.arange(len(drawn.name)), drawn.of(judged))
    return [
        Judge("MRI", mri, rows[np.sort(first)], nobody),
        Judge("drawn", drawn, drawn.of(judged), others),
        Judge("skin", skin, held, few),
    ]


def networks(releases: Sequence[Release]) -> dict[str, tuple[str, Extract]]:
    """Title -> name of its features, pictures -> features."""
    out: dict[str, tuple[str, Extract]] = {}
    lite0 = read_teacher()
    for size in LITE0_SIZES:

        @torch.inference_mode()
        def plain(images: Sequence[Image], size: int = size) -> Array:
            parts = [pooled(lite0, batch(images[i : i + 32], size, HALF, HALF)) for i in range(0, len(images), 32)]
            return np.asarray(torch.cat(parts).numpy())

        out[f"frozen Lite0, {size} px"] = (f"{TEACHER_SHA256[:16]}-{size}-1", plain)
    for release in releases:
        encoder, a = ImageEncoder(release), release.manifest.architecture
        for views in (1, a.views):
            out[title_of(release, views)] = (f"{release.manifest.encoder_sha256[:16]}-{views}", _of(encoder, views))
    return out


def title_of(release: Release, views: int) -> str:
    size, name = release.manifest.architecture.size, release.manifest.name
    return f"{name} {release.sha256[:8]}, {size} px, {views} view{'s' * (views > 1)}"


def frozen(
    data: Path,
    asked: Sequence[Judge],
    given: Mapping[str, tuple[str, Extract]],
    centres: Mapping[str, Array],
    reference: str,
    out: Path,
) -> dict[str, Any]:
    """Network -> centre -> setting of the frozen test episodes -> accuracy, and minus the network `reference` with its own centre, paired.

    centres: what releases themselves are centred by. `close`: whether the lower end is above -1 point in every setting.
    """
    pictures, one = read_pictures(data / SKIN), frozen_episodes()[TEST]
    place, results = {name: row for row, name in enumerate(pictures.name.tolist())}, dict[str, Any]()
    rows, plain = np.array([place[name] for name in one.name.tolist()]), dict[str, Array]()
    for title in (reference, *(t for t in given if t != reference)):
        network, extract = given[title]
        features = kept(network, extract, pictures, rows, out)
        by = {OWN: centres[title]} if title in centres else {}
        by |= {j.name: j.middle(network, extract, out) for j in asked if len(j.centre)}
        results[title] = {}
        for name, centre in by.items():
            found = {e.name: accuracy(features - centre, e) for e in one.episodes}
            plain = plain or found
            minus = {k: paired_difference(v, plain[k]) for k, v in found.items()}
            cells = {k: {**vars(interval(v)), "minus": vars(minus[k])} for k, v in found.items()}
            close = all(m.mean - m.half > -CLOSE for m in minus.values())
            results[title][name] = {"by": cells, "close": bool(close)}
    return results


def _of(encoder: ImageEncoder, views: int) -> Extract:
    return lambda images: encoder.features(images, views)


def report(r: Mapping[str, Any]) -> str:
    """Markdown."""
    first = next(iter(r["networks"].values()))
    kinds = [(judge, k) for judge, by in first.items() for k in by]
    rows = [[title, *(f"{100 * found[j][k]['mean']:.1f}" for j, k in kinds)] for title, found in r["networks"].items()]
    half = max(100 * f[j][k]["half"] for f in r["networks"].values() for j, k in kinds)
    text = f"Accuracy in percent on {EPISODES} episodes; half an interval is at most {half:.1f}."
    lines = [text, "", table(["network", *(f"{j} {k}" for j, k in kinds)], rows)]
    if "frozen" in r:
        lines += ["", *_frozen_report(r["frozen"])]
    return "\n".join(lines) + "\n"


def _frozen_report(r: Mapping[str, Any]) -> list[str]:
    cells = [(title, centre, cell) for title, by in r.items() for centre, cell in by.items()]
    names, words = list(cells[0][2]["by"]), (f"below by {100 * CLOSE:.0f} or more", "close")
    said = f"Frozen test episodes; in brackets minus {cells[0][0]} with {cells[0][1]} centre, paired. Close: no lower end below -1 point."
    rows = [
        [
            t,
            c,
            *(f"{percent(x['by'][k])} ({percent(x['by'][k]['minus'], signed=True)})" for k in names),
            words[x["close"]],
        ]
        for t, c, x in cells
    ]
    return [said, "", table(["network", "centre", *names, ""], rows)]


def run(data: Path, out: Path, releases: Sequence[Release] = (), seed: int = 11, test: bool = False) -> dict[str, Any]:
    """Measure and write `results.json` and `results.md` in `out`. releases: beside the shipped one; test: on the frozen episodes too."""
    out.mkdir(parents=True, exist_ok=True)
    asked, results = judges(data, out, seed), dict[str, Any](seed=seed, networks={})
    every = [shipped_release(), *releases]
    given = networks(every)

    def write() -> None:
        write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
        write_atomic(out / "results.md", report(results).encode())

    for title, (name, extract) in given.items():
        results["networks"][title] = {j.name: j.measure(name, extract, out, seed) for j in asked}
        write()
    if test:
        centres = {title_of(r, r.manifest.architecture.views): r.memory().coordinates.mean for r in every}
        results["frozen"] = frozen(data, asked, given, centres, next(iter(centres)), out)
        write()
    return results


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.networks", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help=f"folder with {MRI} and {SKIN}")
    p.add_argument("--release", type=Path, nargs="*", default=[], help="folders of other releases")
    p.add_argument("--frozen", action="store_true", help="the frozen test episodes too; nothing may be chosen on them")
    p.add_argument("--seed", type=int, default=11)
    p.add_argument("--out", type=Path, required=True, help="folder; features are kept here too")
    a = p.parse_args(argv)

    def work() -> None:
        more = [Release.open(f, sha256=sha256_file(f / MANIFEST)) for f in a.release]
        run(a.data, a.out, more, a.seed, a.frozen)

    return finish(work, a.out / "results.md")


if __name__ == "__main__":
    sys.exit(main())
