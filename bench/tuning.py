"""What a round of kind `episodes` brings: drawn patients at three sites, drawn classes that nobody holds or saw.

    python -m bench.tuning --out OUT

Patients of drawn classes tune small parts of the shipped generator with the product's engine, without noise and under patient-level
privacy. Measured on the loss of other patients and classes, and on few-shot tasks that synthesis itself makes. Step length and clip are
chosen without noise on classes of their own; nothing is chosen on the measured ones. Drawn lesions say nothing about patients.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.shipped import Rows, Texts, shown
from sgps import tuning
from sgps.attributes import parse
from sgps.catalogue import Catalogue, Entry
from sgps.draw import clinical_text, draw_patient, draw_profile
from sgps.encoders import ImageEncoder
from sgps.episodes import auroc, paired_difference
from sgps.files import sha256_file, write_atomic
from sgps.images import batch
from sgps.memory import Contribution, Memory, pool
from sgps.memory import record as row_record
from sgps.release import BANK, CATALOGUE, GENERATOR, MANIFEST, MEMORY, Release, memory_bytes, write
from sgps.settings import dump
from sgps.shipped import shipped_release
from sgps.subset import generator_bytes
from sgps.synthesis import Synthesizer
from sgps_privacy.accountant import calibrate, gaussian_mu, signal_ratio
from sgps_privacy.audit import without_noise
from sgps_privacy.engine import PrivateRound
from sgps_privacy.terms import Terms

Array = NDArray[Any]
SITES, DELTA, STEPS = 3, 1e-5, 10
EPSILONS, DRAWS = (8.0,), 3
HEAD = ("generator.gate.weight", "generator.gate.bias", "generator.token_up.core")
TEXT = ("generator.text_up.core",)
BODY = ("generator.core.bias", "generator.chan.bias", "generator.tap.bias")
SUBSETS: Final = {"head": HEAD, "head and text": HEAD + TEXT}
BODY_PATIENTS, BODY_STEPS = 6, 3  # at each site: a gradient through the network takes about 0.3 processor-seconds
LENGTHS = (
    0.1,
    0.3,
    1.0,
    3.0,
)  # of the whole walk, if every gradient were as long as the clip; in units of the parameters
VIEWS = 2


@dataclass(frozen=True)
class Group:
    """Drawn classes and their patients. first: profile seed."""

    name: str
    first: int
    classes: int
    patients: int

    @property
    def ids(self) -> list[str]:
        return [f"drawn-{seed}" for seed in range(self.first, self.first + self.classes)]


SITE = Group("at the sites", 4000, 60, 10)
NEW_PATIENTS = Group("other patients of the sites' classes", 4000, 60, 3)  # numbered on from those at the sites
CHOICE = Group("to choose with", 4200, 20, 4)
HELD = Group("classes that nobody holds", 4300, 40, 8)


@dataclass(frozen=True)
class Patient:
    """id: class. features [views, f]. pictures: as drawn."""

    id: str
    features: Array
    pictures: tuple[Array, ...]


def extended(release: Release, folder: Path) -> Release:
    """The release with a catalogue of the drawn classes of this benchmark, and an empty memory for them."""
    if not folder.exists():
        entries = []
        for seed in [s for g in (SITE, CHOICE, HELD) for s in range(g.first, g.first + g.classes)]:
            text, values = clinical_text(draw_profile(seed)), {1: dict[str, list[str]](), -1: dict[str, list[str]]()}
            for name, sign in parse(text, "drawn").items():
                group, value = name.split(": ", 1)
                values[sign].setdefault(group, []).append(value)
            present, absent = ({g: tuple(v) for g, v in values[sign].items()} for sign in (1, -1))
            for group in present.keys() & absent.keys():
                absent[group] = tuple(v for v in absent[group] if v not in present[group])
            entries.append(
                Entry(
                    id=f"drawn-{seed}", name=f"drawn {seed}", domain="drawn", text=text, present=present, absent=absent
                )
            )
        catalogue = Catalogue(note="drawn classes of a benchmark", entries=tuple(entries))
        memory = Memory.empty(release.memory().coordinates, catalogue.ids)
        manifest = release.manifest.model_copy(update={"classes": catalogue.ids, "name": "tuning"})
        contents: dict[str, bytes | Path] = {
            GENERATOR: release.folder / GENERATOR,
            BANK: release.folder / BANK,
            MEMORY: memory_bytes(memory),
            CATALOGUE: dump(catalogue.model_dump(mode="json")).encode(),
        }
        write(folder, contents, manifest, None)
    return Release.open(folder, sha256=sha256_file(folder / MANIFEST))


def patients(group: Group, release: Release, work: Path, start: int = 0) -> list[Patient]:
    """Drawn once, and their features cached by the release's encoder."""
    path = work / f"{group.first}-{start}-{group.classes}x{group.patients}-{release.manifest.encoder_sha256[:12]}.npz"
    if not path.exists():
        encoder, pictures, features = ImageEncoder(release), [], []
        for seed in range(group.first, group.first + group.classes):
            profile = draw_profile(seed)
            for number in range(start, start + group.patients):
                shown = draw_patient(profile, number, views=VIEWS)
                pictures.append(np.stack(shown))
                features.append(encoder.features([Image.fromarray(p) for p in shown]))
        np.savez(path, pictures=np.stack(pictures), features=np.stack(features))
    found = np.load(path)
    ids = [i for i in group.ids for _ in range(group.patients)]
    return [Patient(i, f, tuple(p)) for i, f, p in zip(ids, found["features"], found["pictures"], strict=True)]


def records(release: Release, people: Sequence[Patient], pictures: bool = False) -> list[dict[str, torch.Tensor]]:
    a = release.manifest.architecture
    return [
        tuning.record(
            release,
            [p.id] * len(p.features),
            p.features,
            batch([Image.fromarray(x) for x in p.pictures], a.size, a.mean, a.std) if pictures else None,
        )
        for p in people
    ]


def after_rows(release: Release, people: Sequence[Patient], folder: Path) -> Release:
    """The release after a `rows` round of the three sites at epsilon 8, by the product's records and noise."""
    if not folder.exists():
        memory, contributions = release.memory(), []
        classes, sigma = len(memory.ids), calibrate(8.0, DELTA, 1)
        names = ("memory.rows", "memory.counts")

        def loss(theta: Mapping[str, torch.Tensor], record: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return -(theta[names[0]] * record[names[0]]).sum() - (theta[names[1]] * record[names[1]]).sum()

        for site in range(SITES):
            mine = []
            for p in people[site::SITES]:
                found = row_record(memory.coordinates, {memory.ids.index(p.id): p.features.mean(0)}, classes)
                mine.append({n: torch.from_numpy(x.astype(np.float32)) for n, x in zip(names, found, strict=True)})
            start = {names[0]: torch.zeros(classes, 64), names[1]: torch.zeros(classes)}
            sent = PrivateRound(Terms("rows", sigma, 1.0, 1, (1.0,), (names,), 1), loss).run(start, mine, len(mine))
            contributions.append(Contribution(sent[names[0]], sent[names[1]], sigma))
        contents: dict[str, bytes | Path] = {n: release.folder / n for n in (GENERATOR, BANK, CATALOGUE)}
        contents[MEMORY] = memory_bytes(pool(memory.coordinates, memory.ids, contributions))
        write(folder, contents, release.manifest, None)
    return Release.open(folder, sha256=sha256_file(folder / MANIFEST))


class Tuned:
    """One subset: its loss, the records of the sites, and rounds of them."""

    def __init__(
        self, release: Release, names: Sequence[str], sites: Sequence[Sequence[Any]], choice: Sequence[Any]
    ) -> None:
        self.release, self.names, self.sites, self.choice = release, tuple(names), sites, choice
        self.loss, self.begun = tuning.episode_loss(release, names), tuning.start(release, names)
        self.numbers = sum(a.size for a in self.begun.values())
        slopes = [self._slope(r) for r in choice]
        self.clip = float(np.median(slopes))

    def _slope(self, record: Any) -> float:
        leaves = {n: torch.from_numpy(a).requires_grad_() for n, a in self.begun.items()}
        found = torch.autograd.grad(self.loss(leaves, record), tuple(leaves.values()))
        return float(torch.cat([g.reshape(-1) for g in found]).norm())

    def mean_loss(self, change: Mapping[str, Array], records: Sequence[Any]) -> Array:
        at = {n: torch.from_numpy(a + change.get(n, 0)).float() for n, a in self.begun.items()}
        with torch.no_grad():
            return np.array([float(self.loss(at, r)) for r in records])

    def round(self, length: float, sigma: float | None, steps: int = STEPS) -> dict[str, Array]:
        """The mean of the sites' changes after one round. length: of the walk if every gradient were as long as the clip.
        sigma: none is no noise."""
        rounds = PrivateRound if sigma is not None else without_noise(PrivateRound)
        changes = []
        for mine in self.sites:
            terms = Terms(
                "episodes", sigma or 1.0, 1.0, steps, (self.clip,), (self.names,), len(mine), length / steps / self.clip
            )
            start = {n: torch.from_numpy(a) for n, a in self.begun.items()}
            changes.append(rounds(terms, self.loss).run(start, mine, len(mine)))
        return {n: np.mean([c[n] for c in changes], 0) for n in self.names}

    def chosen_length(self, steps: int = STEPS) -> float:
        return min(LENGTHS, key=lambda r: self.mean_loss(self.round(r, None, steps), self.choice).mean())


class Judge:
    """Few-shot tasks of synthesis on classes that nobody holds; the same tasks for every arm."""

    def __init__(self, people: Sequence[Patient], tasks: int = 100, seed: int = 0) -> None:
        self.people, random = people, np.random.default_rng(seed)
        self.label = np.array([p.id for p in people])
        self.first = np.stack([p.features[0] for p in people])
        ids = sorted(set(self.label))
        self.three = []
        for _ in range(tasks):
            ways = random.choice(len(ids), 3, replace=False)
            self.three.append([random.permutation(np.flatnonzero(self.label == ids[w])) for w in ways])
        self.one = [int(random.choice(np.flatnonzero(self.label == i))) for i in ids for _ in range(2)]

    def accuracy(self, made: Synthesizer) -> Array:
        out = []
        for task in self.three:
            c = made.compose({self.label[own[0]]: shown(own[:1]) for own in task}, {})
            truth = np.concatenate([[self.label[own[0]]] * (len(own) - 1) for own in task])
            queries = self.first[np.concatenate([own[1:] for own in task])]
            logits = queries @ c.weight.numpy().T + c.bias.numpy()
            out.append(float((np.array([d.key for d in c.asked])[logits.argmax(1)] == truth).mean()))
        return np.array(out)

    def one_exemplar(self, made: Synthesizer) -> Array:
        out = []
        for exemplar in self.one:
            c = made.compose({self.label[exemplar]: shown([exemplar])}, {})
            rest = np.arange(len(self.label)) != exemplar
            logits = self.first[rest] @ c.weight.numpy().T + c.bias.numpy()
            out.append(auroc(logits[:, 0] - logits[:, 1:].max(1), self.label[rest] == self.label[exemplar]))
        return np.array(out)

    def synthesizer(
        self, release: Release, names: Sequence[str], change: Mapping[str, Array], folder: Path, texts: Texts
    ) -> Synthesizer:
        """Synthesis with a changed generator, as a release would carry it."""
        a = release.manifest.architecture.model_copy(update={"learned": tuning.learned(release, names)})
        contents: dict[str, bytes | Path] = {n: release.folder / n for n in (BANK, CATALOGUE, MEMORY)}
        contents[GENERATOR] = generator_bytes(release, change)
        write(folder, contents, release.manifest.model_copy(update={"architecture": a}), None)
        made = Synthesizer(Release.open(folder, sha256=sha256_file(folder / MANIFEST)))
        made.encoder = Rows(made.encoder, self._picture, dict(enumerate(self.first)))
        made.text = texts
        return made

    def _picture(self, patient: int) -> Image.Image:
        return Image.fromarray(self.people[patient].pictures[0])


@dataclass(frozen=True)
class Bench:
    """judges: few-shot tasks by name of the group. losses: people by name of the group."""

    out: Path
    judges: Mapping[str, Judge]
    people: Mapping[str, Sequence[Patient]]
    texts: Texts

    def figures(
        self, tuned: Tuned, change: Mapping[str, Array], heard: Mapping[str, Sequence[Any]]
    ) -> dict[str, Array]:
        """Of one arm: values by record, task or exemplar."""
        found = {f"loss, {name}": tuned.mean_loss(change, r) for name, r in heard.items()}
        with tempfile.TemporaryDirectory(dir=self.out) as folder:
            for name, judge in self.judges.items():
                made = judge.synthesizer(tuned.release, tuned.names, change, Path(folder) / name, self.texts)
                found[f"3w1s, {name}"] = 100 * judge.accuracy(made)
                found[f"one exemplar, {name}"] = 100 * judge.one_exemplar(made)
        return found

    def subset(self, setting: str, release: Release, name: str) -> list[dict[str, Any]]:
        heard = {g: records(release, p) for g, p in self.people.items()}
        own = heard[SITE.name]
        tuned = Tuned(release, SUBSETS[name], [own[site::SITES] for site in range(SITES)], heard.pop(CHOICE.name))
        before = self.figures(tuned, {}, heard)
        length = tuned.chosen_length()
        arms: list[tuple[str, float | None, int]] = [("no noise", None, 1)]
        arms += [(f"epsilon {e:g}", calibrate(e, DELTA, STEPS), DRAWS) for e in EPSILONS]
        lines = []
        for arm, sigma, draws in arms:
            begun = time.process_time()
            each = [self.figures(tuned, tuned.round(length, sigma), heard) for _ in range(draws)]
            gains = {n: paired_difference(np.mean([f[n] for f in each], 0), before[n]) for n in before}
            ratio = None if sigma is None else signal_ratio(
                len(tuned.sites[0]), gaussian_mu(float(arm.split()[1]), DELTA), tuned.numbers, SITES
            )  # fmt: skip
            lines.append(
                {
                    "setting": setting, "subset": name, "numbers": tuned.numbers, "arm": arm, "signal": ratio,
                    "clip": tuned.clip, "length": length, "seconds": round(time.process_time() - begun, 1),
                    "before": {n: float(v.mean()) for n, v in before.items()},
                    "gain": {n: [g.mean, g.half] for n, g in gains.items()},
                }
            )  # fmt: skip
            say(json.dumps({k: lines[-1][k] for k in ("setting", "subset", "arm", "signal", "clip", "length", "gain")}))
        return lines


def body(release: Release, people: Mapping[str, Sequence[Patient]]) -> dict[str, Any]:
    """A few steps of the body without noise: does the loss of others fall, and what does a gradient cost."""
    few = {n: p[:: max(1, len(p) // (SITES * BODY_PATIENTS))][: SITES * BODY_PATIENTS] for n, p in people.items()}
    heard = {n: records(release, p, pictures=True) for n, p in few.items()}
    own = heard.pop(SITE.name)
    begun = time.process_time()
    tuned = Tuned(release, BODY, [own[site::SITES] for site in range(SITES)], heard[CHOICE.name][:8])
    each = (time.process_time() - begun) / 8
    lines = []
    for length in (1.0,):
        change = tuned.round(length, None, BODY_STEPS)
        gains = {
            n: paired_difference(tuned.mean_loss(change, r), tuned.mean_loss({}, r))
            for n, r in {**heard, SITE.name: own}.items()
        }
        lines.append({"length": length, "gain": {n: [g.mean, g.half] for n, g in gains.items()}})
        say(json.dumps(lines[-1]))
    return {"numbers": tuned.numbers, "clip": tuned.clip, "seconds of a gradient": each, "lines": lines}


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    shipped = shipped_release()
    release = extended(shipped, out / f"release-{shipped.sha256[:12]}")
    begun = time.process_time()
    people = {
        SITE.name: patients(SITE, release, out),
        NEW_PATIENTS.name: patients(NEW_PATIENTS, release, out, SITE.patients),
        CHOICE.name: patients(CHOICE, release, out),
        HELD.name: patients(HELD, release, out),
    }
    say(f"pictures and features: {time.process_time() - begun:.0f} s")
    rows = after_rows(release, people[SITE.name], out / f"rows-{shipped.sha256[:12]}")
    judges = {g.name: Judge(people[g.name]) for g in (HELD,)}
    bench = Bench(out, judges, people, Texts())
    found = []
    for setting, r, name in (
        ("empty memory", release, "head"),
        ("after a rows round", rows, "head"),
        ("empty memory", release, "head and text"),
    ):
        found += bench.subset(setting, r, name)
        write_atomic(out / "tuning.json", json.dumps({"release": shipped.sha256, "arms": found}, indent=1).encode())
    whole = {"release": shipped.sha256, "arms": found, "body": body(release, people)}
    write_atomic(out / "tuning.json", json.dumps(whole, indent=1).encode())


if __name__ == "__main__":
    main()
