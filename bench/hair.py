"""Hair removed before the network sees a picture: what it costs where there is none, and what it brings back where there is.

    python -m bench.hair --data DIR --out DIR [--meta-test akiec,df,vasc]

Nearest prototype, 300 episodes, on the drawn classes and held-out lesions of `bench.networks`; hair only over the queries, removal of
support and queries. `real`: the hairiest pictures of common classes. With --meta-test those classes are measured, and nothing else.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from bench.features import Array, base_features
from bench.figures import percent, table
from bench.hairless import found, without
from bench.networks import PATIENTS, SETTINGS, SKIN, Judge, judges
from bench.pictures import Pictures, read_pictures
from bench.program import finish
from bench.shifts import SHIFTS, Shift
from sgps.draw import draw_profile, write_folder
from sgps.episodes import Episodes, cosine, interval, paired_difference, sample_episodes, unit
from sgps.files import write_atomic
from sgps.pretrain.recipe import read_recipe
from sgps.shipped import shipped_release

EPISODES, HAIRIEST, SHOTS = 300, 100, 5
_VERSION = b"1"
Features = Callable[[Pictures, Array], Array]


def _strokes(light: bool) -> Shift:
    """Smooth hairs of 0.6 to 1.6 % of the shorter side that let the skin through, dark brown or nearly white."""

    def draw(image: Image.Image, random: np.random.Generator) -> Image.Image:
        wide = (3 * image.width, 3 * image.height)
        cover, side = Image.new("L", wide), min(wide)
        pen = ImageDraw.Draw(cover)
        for _ in range(int(random.integers(5, 20))):
            points, angle = [random.uniform(0, 1, 2) * wide], random.uniform(0, 2 * np.pi)
            bend = random.uniform(-0.1, 0.1)
            for _ in range(int(random.integers(6, 16))):
                angle += bend
                points.append(points[-1] + 0.07 * side * np.array([np.cos(angle), np.sin(angle)]))
            width = max(1, round(random.uniform(0.006, 0.016) * side))
            pen.line([tuple(p) for p in points], int(random.integers(120, 240)), width, joint="curve")
        cover = cover.filter(ImageFilter.GaussianBlur(1.5)).resize(image.size, Image.Resampling.BOX)
        tint, least, most = ((1, 0.96, 0.88), 215, 250) if light else ((1, 0.8, 0.65), 25, 80)
        colour = tuple(int(c) for c in random.integers(least, most) * np.array(tint))
        return Image.composite(Image.new("RGB", image.size, colour), image, cover)

    return draw


KINDS: dict[str, Shift] = {"hair": SHIFTS["hair"], "soft": _strokes(light=False), "light": _strokes(light=True)}
DRAWN, OTHERS, FRESH = range(7400, 7420), range(7500, 7512), "drawn, others"
JUDGED = {"MRI": (), "drawn": ("hair",), FRESH: ("hair",), "skin": tuple(KINDS)}  # kinds of hair by judge


@dataclass(frozen=True)
class Changed(Pictures):
    """The same pictures, each through `change`, which returns the very picture where it has nothing to do."""

    inner: Pictures
    key: str
    change: Shift
    seen: dict[int, tuple[Image.Image, Image.Image]] = field(default_factory=dict)  # before and after

    @classmethod
    def through(cls, inner: Pictures, key: str, change: Shift) -> "Changed":
        return cls(inner.source, inner.name, inner.label, inner.lesion, inner, key, change)

    def _both(self, row: int) -> tuple[Image.Image, Image.Image]:
        if row not in self.seen:
            seed = int.from_bytes(self.inner.sha256(row)[:8], "little")
            before = self.inner.image(row)
            self.seen[row] = before, self.change(before, np.random.default_rng(seed))
        return self.seen[row]

    def touched(self, rows: Array) -> float:
        """Share that is not the very same."""
        return float(np.mean([before is not after for before, after in (self._both(int(r)) for r in rows)]))

    def image(self, row: int) -> Image.Image:
        return self._both(row)[1]

    def sha256(self, row: int) -> bytes:
        before, after = self._both(row)
        own = self.inner.sha256(row)
        return own if after is before else hashlib.sha256(own + self.key.encode() + _VERSION + after.tobytes()).digest()


def cleaned(pictures: Pictures) -> Changed:
    return Changed.through(pictures, "without", lambda image, _: without(image))


def hairs(pictures: Pictures, kind: str) -> Changed:
    return Changed.through(pictures, kind, KINDS[kind])


def _right(support: Array, queries: Array, e: Episodes) -> Array:
    """Share of right answers by episode."""
    truth, width = np.repeat(np.arange(e.ways), e.index.shape[2] - e.shots), support.shape[-1]
    return np.array(
        [
            (cosine(support[i[:, : e.shots]], queries[i[:, e.shots :]].reshape(-1, width)).argmax(1) == truth).mean()
            for i in e.index
        ]
    )


def measure(
    pictures: Pictures, rows: Array, features: Features, centre: Array, seed: int, kinds: Sequence[str]
) -> dict[str, Any]:
    """By setting: accuracy, removal's gain as the pictures are, and for each kind of hair what it costs and what removal brings back."""
    label, lesion = pictures.label[rows], pictures.lesion[rows]
    classes = sorted(set(label.tolist()))
    sets = [sample_episodes(label, lesion, classes, w, s, count=EPISODES, seed=seed) for w, s in SETTINGS]
    bare = cleaned(pictures)
    plain, better = (features(p, rows) - centre for p in (pictures, bare))
    out: dict[str, Any] = {"pictures": len(rows), "touched": bare.touched(rows), "by": {}}
    hairy = {}
    for kind in kinds:
        shown = hairs(pictures, kind)
        hairy[kind] = [features(p, rows) - centre for p in (shown, cleaned(shown))]
    for e in sets:
        off = _right(plain, plain, e)
        by = {"clean": vars(interval(off)), "clean, gain": vars(paired_difference(_right(better, better, e), off))}
        for kind, (before, after) in hairy.items():
            lost = _right(plain, before, e)
            by |= {
                f"{kind}, loss": vars(paired_difference(lost, off)),
                f"{kind}, gain": vars(paired_difference(_right(better, after, e), lost)),
            }
        out["by"][e.name] = by
    return out


def real(skin: Pictures, features: Features, centre: Array, seed: int) -> dict[str, Any]:
    """The hairiest pictures of common classes, one a lesion, against five of each class that are not: recall, with equal classes."""
    test = read_recipe(None).meta_test
    held, trained = (skin.others(test, trained=t, unknown=False) for t in (False, True))
    rows = np.concatenate([held, trained])
    share = np.array([found(np.asarray(skin.image(int(r)))).mean() for r in rows])
    asked, bare = rows[np.argsort(-share)[:HAIRIEST]], held[share[: len(held)] == 0]
    classes, random = np.unique(skin.label[asked]), np.random.default_rng(seed)
    truth = np.searchsorted(classes, skin.label[asked])
    before, after, support = (
        unit(features(p, r) - centre) for p, r in ((skin, asked), (cleaned(skin), asked), (skin, bare))
    )
    right = np.zeros((2, len(asked)))
    for _ in range(EPISODES):
        drawn = [random.permutation(np.flatnonzero(skin.label[bare] == c))[:SHOTS] for c in classes]
        prototypes = unit(np.stack([support[d].mean(0) for d in drawn]))
        right += np.stack([(q @ prototypes.T).argmax(1) == truth for q in (before, after)]) / EPISODES
    weight = len(asked) / (len(classes) * np.bincount(truth)[truth])
    return {
        "pictures": dict(zip(classes.tolist(), np.bincount(truth).tolist(), strict=True)),
        "held_out": int(np.isin(asked, held).sum()),
        "share": [float(s) for s in np.sort(share)[::-1][[0, HAIRIEST - 1]]],
        "any": float((share > 0).mean()),
        "before": vars(interval(right[0] * weight)),
        "gain": vars(paired_difference(right[1] * weight, right[0] * weight)),
    }


def report(r: Mapping[str, Any]) -> str:
    """Markdown."""
    hairy, bare = (f"{r[k]:.1f}" for k in ("milliseconds", "milliseconds_clean"))
    lines = [
        f"Release {r['release'][:16]}, one view, {EPISODES} episodes of each kind, percent. Removal takes {hairy} processor-milliseconds",
        f"for a picture of 128 x 128 pixels with twelve strokes, {bare} for one as it is.",
    ]
    for name, found_ in r["sets"].items():
        kinds = list(next(iter(found_["by"].values())))
        rows = [[k, *(percent(by[k], "gain" in k or "loss" in k) for by in found_["by"].values())] for k in kinds]
        lines += [
            "",
            f"{name}: removal changes {100 * found_['touched']:.1f} % of {found_['pictures']} pictures as they are.",
            "",
        ]
        lines += [table(["", *found_["by"]], rows)]
    if real := r.get("real"):
        counts = ", ".join(f"{n} {c}" for c, n in real["pictures"].items())
        most, least = (f"{100 * share:.1f}" for share in real["share"])
        about = f"{counts}; {real['held_out']} of lesions that no training saw; {least} to {most} % hair"
        before, gain = percent(real["before"]), percent(real["gain"], True)
        lines += [
            "",
            f"The {HAIRIEST} hairiest pictures ({about}): recall with equal classes {before}, removal {gain}.",
        ]
    return "\n".join(lines) + "\n"


def _drawn(out: Path, seed: int) -> Judge:
    """Twenty drawn classes besides those of `bench.networks`."""
    folder = out / "drawn-others"
    if not folder.is_dir():
        write_folder(folder, [draw_profile(n) for n in (*DRAWN, *OTHERS)], PATIENTS, seed)
    pictures = read_pictures(folder)
    rows, centre = (pictures.of([draw_profile(n).id for n in numbers]) for numbers in (DRAWN, OTHERS))
    return Judge(FRESH, pictures, rows, centre)


def _milliseconds(pictures: Pictures, rows: Array) -> float:
    images = [pictures.image(int(r)).resize((128, 128)) for r in rows]
    start = time.process_time()
    for image in images:
        without(image)
    return 1000 * (time.process_time() - start) / len(images)


def run(data: Path, out: Path, test: Sequence[str] = (), seed: int = 11) -> dict[str, Any]:
    """Measure and write `results.json` and `results.md` in `out`. test: these classes and nothing else."""
    out.mkdir(parents=True, exist_ok=True)
    release, skin = shipped_release(), read_pictures(data / SKIN)
    centre = release.memory().coordinates.mean.astype(np.float32)

    def features(pictures: Pictures, rows: Array) -> Array:
        return base_features(release, pictures, rows, out, views=1)

    sets: dict[str, Any] = {}
    results = {"release": release.sha256, "seed": seed, "sets": sets}
    if test:
        rows = skin.one_each(skin.of(test), np.random.default_rng(seed))
        sets["test"] = measure(skin, rows, features, centre, seed, tuple(KINDS))
    else:
        for j in (*judges(data, out, seed), _drawn(out, seed)):
            if len(j.centre):
                found_, kind = features(j.pictures, j.centre), j.pictures.label[j.centre]
                middle = np.mean([found_[kind == c].mean(0) for c in np.unique(kind)], 0)
            else:
                middle = np.zeros_like(centre)
            sets[j.name] = measure(j.pictures, j.rows, features, middle, seed, JUDGED[j.name])
        results["real"] = real(skin, features, centre, seed)
    some = skin.others(read_recipe(None).meta_test, trained=True, unknown=False)[:100]
    results["milliseconds"], results["milliseconds_clean"] = (
        _milliseconds(p, some) for p in (hairs(skin, "hair"), skin)
    )
    write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
    write_atomic(out / "results.md", report(results).encode())
    return results


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.hair", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="folder with the public image sets")
    p.add_argument(
        "--meta-test", default="", help="measure these classes of HAM10000 and nothing else, comma-separated"
    )
    p.add_argument("--seed", type=int, default=11)
    p.add_argument("--out", type=Path, required=True, help="folder; features are kept here too")
    a = p.parse_args(argv)
    test = [c for c in a.meta_test.split(",") if c]
    return finish(lambda: run(a.data, a.out, test, a.seed), a.out / "results.md")


if __name__ == "__main__":
    sys.exit(main())
