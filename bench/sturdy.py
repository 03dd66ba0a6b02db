"""Base networks of other recipes beside the shipped one: on public judges, with hair over the queries and out of focus, paired.

    python -m bench.sturdy --data DIR --out DIR --base "TITLE=FILE" "TITLE=3/4*FILE+1/4*FILE" ... [--against TITLE] [--test TITLE]

FILE: weights as `sgps pretrain base` writes and keeps them; a sum of files is their weights' sum (WiSE-FT: Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models", eq. 1). Nearest prototype on centred cosine. Support and centre are never shifted. --against: what all
are compared with, the shipped one unless named. --test: this network and the one it is compared with on the frozen test episodes too,
with one and eight views; for once, at the end.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL.Image import Image
from torch import Tensor

from bench.features import LITE0_SIZE, Array, kept
from bench.figures import percent, table
from bench.networks import EPISODES, SETTINGS, SKIN, Judge, judges
from bench.pictures import Pictures, read_pictures
from bench.program import finish
from bench.shifts import Shifted
from sgps.encoders import target_of
from sgps.episodes import Episodes, Interval, accuracy, interval, paired_difference, sample_episodes
from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.images import batch, views
from sgps.pretrain.frozen import TEST, frozen_episodes
from sgps.pretrain.networks import HALF, TEACHER_SHA256, base_network, load_state, pooled, read_teacher, rounded
from sgps.pretrain.recipe import read_recipe
from sgps.shipped import shipped_release

SHIPPED, LITE0 = "shipped", f"frozen Lite0, {LITE0_SIZE} px"
SHIFTS, CLEAN = ("hair", "blur"), "clean"
SHIFTED_EPISODES, LOSS = 300, 0.005  # of the test under shifts; what a clean judge may lose
_BATCH = 32


@dataclass(frozen=True)
class Network:
    """net: timm's, for 128-pixel pictures with mean = std = 0.5; key: what its features are kept under."""

    key: str
    net: Any
    size: int

    def features(self, pictures: Pictures, rows: Array, count: int, out: Path) -> Array:
        """float32 [rows, f], the mean over `count` views."""

        @torch.inference_mode()
        def extract(images: Sequence[Image]) -> Array:
            parts = []
            for start in range(0, len(images), _BATCH):
                turned = views(batch(images[start : start + _BATCH], self.size, HALF, HALF), count)
                found = [pooled(self.net, x.contiguous(memory_format=torch.channels_last)) for x in turned]
                parts.append(torch.stack(found).mean(0).numpy())
            return np.concatenate(parts)

        return kept(f"{self.key}-{count}", extract, pictures, rows, out)


def read_sum(text: str) -> dict[str, Tensor]:
    """Weights of "FILE" or "3/4*FILE+1/4*FILE", rounded as a release stores them. Raises InputError."""
    out: dict[str, Tensor] = {}
    for part in text.split("+"):
        share, star, file = part.rpartition("*")
        try:
            factor = float(Fraction(share)) if star else 1.0
        except (ValueError, ZeroDivisionError) as error:
            raise InputError(f"{share} is no number", where=f"--base {text}", do="write 3/4*FILE+1/4*FILE") from error
        for name, value in load_state(Path(file)).items():
            if not value.is_floating_point():
                out.setdefault(name, value)
            else:
                out[name] = factor * value.float() + out.get(name, 0)
    return rounded(out)


def networks(asked: Sequence[str]) -> dict[str, Network]:
    """Title -> network: the shipped one, frozen Lite0 and those of --base. Raises InputError."""
    release, size = shipped_release(), read_recipe(None).size
    layout = {"memory_format": torch.channels_last}
    own = target_of(release).base
    out = {
        SHIPPED: Network(release.manifest.encoder_sha256[:16], base_network(own).eval().to(**layout), size),
        LITE0: Network(f"{TEACHER_SHA256[:16]}-{LITE0_SIZE}", read_teacher().to(**layout), LITE0_SIZE),
    }
    for one in asked:
        title, equals, text = one.partition("=")
        if not equals or title in out:
            raise InputError("needs a title of its own before =", where=f"--base {one}", do="write TITLE=FILE")
        state = read_sum(text)
        key = hashlib.sha256(safetensors.torch.save(state)).hexdigest()[:16]
        out[title] = Network(key, base_network(state).eval().to(**layout), size)
    return out


def shown(features: Array, queries: Array, episodes: Episodes) -> Array:
    """Accuracy in each episode when its queries are those rows of `queries`, its support those of `features`."""
    support, asked = np.split(episodes.index, [episodes.shots], axis=2)
    both = np.concatenate([support, asked + len(features)], axis=2)
    return accuracy(np.concatenate([features, queries]), Episodes(episodes.ways, episodes.shots, both))


@dataclass(frozen=True)
class Court:
    """Pictures and episodes that networks are judged by. shifts: without `clean`, which is always asked."""

    pictures: Pictures
    rows: Array
    centre: Array
    episodes: tuple[Episodes, ...]
    shifts: tuple[str, ...]
    shifted: int  # episodes of each setting under a shift

    @classmethod
    def of(cls, judge: Judge, seed: int) -> "Court":
        label, lesion = judge.pictures.label[judge.rows], judge.pictures.lesion[judge.rows]
        names = sorted(set(label.tolist()))
        found = [sample_episodes(label, lesion, names, *s, count=EPISODES, seed=seed) for s in SETTINGS]
        shifts = SHIFTS if len(judge.centre) else ()
        return cls(judge.pictures, judge.rows, judge.centre, tuple(found), shifts, EPISODES)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        return (CLEAN, *self.shifts)

    def answers(self, network: Network, count: int, out: Path) -> dict[str, dict[str, Array]]:
        """Shift -> setting -> accuracy in each episode."""
        plain = network.features(self.pictures, np.concatenate([self.rows, self.centre]), count, out)
        features, others, kind = plain[: len(self.rows)], plain[len(self.rows) :], self.pictures.label[self.centre]
        middle = np.mean([others[kind == c].mean(0) for c in np.unique(kind)], 0) if len(others) else 0 * plain[0]
        found = {CLEAN: {e.name: accuracy(features - middle, e) for e in self.episodes}}
        for shift in self.shifts:
            queries = network.features(Shifted.under(self.pictures, shift), self.rows, count, out)
            few = [Episodes(e.ways, e.shots, e.index[: self.shifted]) for e in self.episodes]
            found[shift] = {e.name: shown(features - middle, queries - middle, e) for e in few}
        return found


def frozen(data: Path, skin: Judge) -> Court:
    """The frozen test episodes, centred as the judge of skin lesions is."""
    pictures, one = read_pictures(data / SKIN), frozen_episodes()[TEST]
    place = {name: row for row, name in enumerate(pictures.name.tolist())}
    rows = np.array([place[name] for name in one.name.tolist()])
    return Court(pictures, rows, skin.centre, one.episodes, SHIFTS, SHIFTED_EPISODES)


def together(parts: Sequence[Interval]) -> Interval:
    """Mean of means of independent episodes."""
    half = float(np.sqrt(sum(p.half**2 for p in parts))) / len(parts)
    return Interval(float(np.mean([p.mean for p in parts])), half)


def against(own: Mapping[str, Mapping[str, Array]], reference: Mapping[str, Mapping[str, Array]]) -> dict[str, Any]:
    """Shift -> setting -> accuracy and its paired difference to the reference; `all` is the mean of the settings' differences."""
    out: dict[str, Any] = {}
    for shift, by in own.items():
        minus = {k: paired_difference(v, reference[shift][k]) for k, v in by.items()}
        out[shift] = {k: {**vars(interval(v)), "minus": vars(minus[k])} for k, v in by.items()}
        out[shift]["all"] = {"minus": vars(together(list(minus.values())))}
    return out


def verdict(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The rule, fixed before anything was measured: no clean judge loses more than 0.5 points; hair and defocus each gain, beyond
    their interval, in the mean over drawn and skin. gain: the mean of these four."""
    clean = {j: by[CLEAN]["all"]["minus"]["mean"] for j, by in found.items()}
    shifted = {s: together([Interval(**by[s]["all"]["minus"]) for by in found.values() if s in by]) for s in SHIFTS}
    passes = min(clean.values()) >= -LOSS and all(i.mean - i.half > 0 for i in shifted.values())
    return {
        "passes": bool(passes),
        "gain": vars(together(list(shifted.values()))),
        **{s: vars(i) for s, i in shifted.items()},
    }


def report(r: Mapping[str, Any]) -> str:
    """Markdown."""
    first = next(iter(r["networks"].values()))
    columns = [(j, s) for j, by in first.items() for s in by]
    head = ["network", *(f"{j}, {s}" for j, s in columns)]
    names = [f"{w}w{s}s" for w, s in SETTINGS]
    rows = [
        [title, *(" / ".join(f"{100 * found[j][s][k]['mean']:.1f}" for k in names) for j, s in columns)]
        for title, found in r["networks"].items()
    ]
    minus = [
        [title, *(percent(found[j][s]["all"]["minus"], signed=True) for j, s in columns)]
        for title, found in r["networks"].items()
        if title != r["against"]
    ]
    rule = [
        [title, *(percent(v[k], signed=True) for k in (*SHIFTS, "gain")), "passes" if v["passes"] else "does not pass"]
        for title, v in r["rule"].items()
    ]
    parts = [
        f"Accuracy in percent, one view, {EPISODES} episodes: {' / '.join(names)}.",
        table(head, rows),
        f"Minus {r['against']}, mean of the three settings, paired.",
        table(head, minus),
    ]
    if rule:
        parts.append(table(["network", *SHIFTS, "all four", "rule"], rule))
    for views_of, by in r.get("test", {}).items():
        names = list(next(iter(by.values()))[CLEAN])[:-1]
        lines = [
            [title, shift, *(f"{percent(cell[k])} ({percent(cell[k]['minus'], signed=True)})" for k in names)]
            for title, found in by.items()
            for shift, cell in found.items()
        ]
        parts += [f"Frozen test episodes, {views_of}; in brackets minus {r['against']}, paired."]
        parts += [table(["network", "queries", *names], lines)]
    return "\n\n".join(parts) + "\n"


def run(
    data: Path, out: Path, asked: Sequence[str], test: str | None = None, reference: str = SHIPPED, seed: int = 11
) -> dict[str, Any]:
    """Measure and write `results.json` and `results.md` in `out`. reference: title of what all are compared with. Raises InputError."""
    out.mkdir(parents=True, exist_ok=True)
    by_title = networks(asked)
    for option, title in (("--test", test), ("--against", reference)):
        if title is not None and title not in by_title:
            raise InputError(f"{title} is unknown", where=option, do=f"name one of {', '.join(by_title)}")
    given = judges(data, out, seed)
    courts = {j.name: Court.of(j, seed) for j in given}
    results = dict[str, Any](seed=seed, asked=list(asked), against=reference, networks={}, rule={})
    own = {name: court.answers(by_title[reference], 1, out) for name, court in courts.items()}

    def write() -> None:
        write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
        write_atomic(out / "results.md", report(results).encode())

    for title, network in by_title.items():
        found = {n: against(court.answers(network, 1, out), own[n]) for n, court in courts.items()}
        results["networks"][title] = found
        if reference == SHIPPED and title not in (SHIPPED, LITE0):
            results["rule"][title] = verdict(found)
        write()
    if test is not None:
        court = frozen(data, next(j for j in given if j.name == "skin"))
        results["test"] = {}
        for count in (1, 8):
            theirs = court.answers(by_title[reference], count, out)
            both = {
                t: against(court.answers(by_title[t], count, out), theirs) for t in dict.fromkeys((reference, test))
            }
            results["test"][f"{count} view{'s' * (count > 1)}"] = both
            write()
    return results


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.sturdy", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="folder of the public image sets")
    p.add_argument("--base", nargs="+", default=[], help='TITLE=FILE or "TITLE=3/4*FILE+1/4*FILE"')
    p.add_argument("--against", default=SHIPPED, help="title of the network that all are compared with")
    p.add_argument("--test", help="title of the network to measure, beside that one, on the frozen test episodes")
    p.add_argument("--seed", type=int, default=11)
    p.add_argument("--out", type=Path, required=True, help="folder; features are kept here too")
    a = p.parse_args(argv)
    return finish(lambda: run(a.data, a.out, a.base, a.test, a.against, a.seed), a.out / "results.md")


if __name__ == "__main__":
    sys.exit(main())
