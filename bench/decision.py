"""How sure a classifier may be, and what it must refuse: on drawn classes, brain MRI and held-out lesions, never on the test classes.

`bench.judge` writes the tables. Skin classes are those that the base network was trained on, other lesions of them; it was trained on
no drawn class that is judged and on no MRI. X-ray, ultrasound and histology are only shown to classifiers of other kinds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.features import Array, base_features
from bench.figures import brier, ece, softmax, table
from bench.networks import MRI, SKIN, judges
from bench.pictures import Pictures, read_pictures
from bench.shipped import Ours
from sgps import foreign
from sgps.bank import Bank
from sgps.calibration import fit_temperature
from sgps.draw import clinical_text, draw_profile
from sgps.episodes import auroc, sample_episodes
from sgps.errors import InputError
from sgps.generator import KNOWN_KIND, STRANGE_KIND, Trust
from sgps.rehearsal import Judged, Rehearsal, between, rehearse, tasks
from sgps.release import Release
from sgps.rivals import STRANGE, Familiarity, domain_of

SETTINGS, MODES = ((2, 1), (2, 5), (3, 1), (3, 5)), ((1, 1), (1, 5), (2, 1), (2, 5), (3, 1), (3, 5))
OTHERS = {"x-ray": "cxr_224.zip", "ultrasound": "busi_224.zip", "histology": "lc25000_lung_dedup_224.zip"}
KINDS = {"skin": "dermoscopy", "drawn": "drawn"}  # of the judges; of the others what their classes look like
MOST, SHOWN, QUERIES = (
    100,
    30,
    15,
)  # pictures of a class of another kind; of them and of an unknown class in a task; of a known class
OWN, MIXED, TURN, DRAWN, ALL = (
    "own kind",
    "own kind and drawn, mixed",
    "own kind and drawn, in turn",
    "drawn alone",
    "all kinds, in turn",
)
STATISTICS = ("largest logit", "margin of two", "largest cosine", "another class nearer", "distance to the kind")


@dataclass(frozen=True)
class Set:
    """Pictures of one kind, one a lesion, and their features."""

    name: str
    pictures: Pictures
    rows: Array
    features: Array

    @property
    def label(self) -> Array:
        return np.asarray(self.pictures.label[self.rows])


def sets(release: Release, data: Path, out: Path, seed: int) -> tuple[list[Set], list[Set]]:
    """The judges, and what is only shown to classifiers of other kinds. Raises InputError when a set is not there."""
    own = [(j.name, j.pictures, j.rows) for j in judges(data, out, seed)]
    shown = []
    for name, file in OTHERS.items():
        if not (data / file).is_file():
            raise InputError("is not there", where=data / file, do=f"give the folder that holds {MRI}, {SKIN} and it")
        pictures = read_pictures(data / file)
        shown.append((name, pictures, pictures.few(sorted(set(pictures.label.tolist())), MOST)))
    first, rest = (
        [Set(n, p, rows, base_features(release, p, rows, out)) for n, p, rows in group] for group in (own, shown)
    )
    return first, rest


def kind_of(s: Set, bank: Bank, centre: Array) -> str:
    if s.name in KINDS:
        return KINDS[s.name]
    looks = [domain_of(bank, s.features[s.label == c].mean(0), centre) for c in np.unique(s.label)]
    return max(sorted(set(looks)), key=looks.count)


def temperatures(
    bank: Bank, kind: str, centre: Array, scale: float, ways: int, shots: int, trust: Trust
) -> dict[str, float]:
    """Of every way to draw the tasks that fit it."""
    own, drawn = bank.of_domain(kind), bank.of_domain("drawn")
    groups = {
        OWN: [own],
        MIXED: [sorted({*own, *drawn})],
        TURN: [own, drawn],
        DRAWN: [drawn],
        ALL: [bank.of_domain(d) for d in bank.domains],
    }
    empty = np.zeros((0, bank.features.shape[1]))
    j = Judged(bank, centre, scale, empty, empty[:, 0], ways, (), (), (), kind, shots, 5, trust)
    out = {}
    for name, members in groups.items():
        found = [
            t
            for g in members
            for t in tasks(j, g, min(ways, len(g)), np.random.default_rng(0), (False, True))
            if len(g) > 1
        ]
        out[name] = fit_temperature([t.logits for t in found], [t.truth for t in found])
    return out


def judge_temperature(
    bank: Bank, centre: Array, scale: float, judged: Sequence[Set], count: int, seed: int
) -> dict[str, Any]:
    """Judge -> setting -> tasks of the temperature -> temperature, calibration error, Brier score, log loss."""
    out: dict[str, Any] = {}
    for s in judged:
        lesion, by = s.pictures.lesion[s.rows], dict[str, Any]()
        strange = Familiarity(bank, centre)(s.features).mean() < STRANGE
        trust = STRANGE_KIND if strange else KNOWN_KIND
        for ways, shots in SETTINGS:
            e = sample_episodes(s.label, lesion, sorted(set(s.label.tolist())), ways, shots, count=count, seed=seed)
            truth = np.repeat(np.arange(ways), e.index.shape[2] - shots)
            logits = []
            for index in e.index:
                queries = s.features[index[:, shots:]].reshape(-1, s.features.shape[1])
                logits.append(between(centre, scale, [*s.features[index[:, :shots]]], queries, trust))
            found = temperatures(bank, kind_of(s, bank, centre), centre, scale, ways, shots, trust)
            found["best here"] = fit_temperature(logits, [truth] * len(logits))
            by[e.name] = {name: {"temperature": t, **_worth(logits, truth, t)} for name, t in found.items()}
        out[s.name] = by
    return out


def _worth(logits: Sequence[Array], truth: Array, temperature: float) -> dict[str, float]:
    p = np.stack([softmax(z, temperature) for z in logits])
    right = p.argmax(2) == truth
    own = p[:, np.arange(len(truth)), truth]
    return {
        "ece": ece(p.max(2).ravel(), right.ravel()),
        "brier": float(np.mean([brier(one, truth) for one in p])),
        "log loss": float(-np.log(np.maximum(own, 1e-12)).mean()),
        "accuracy": float(right.mean()),
    }


def without(bank: Bank, place: int) -> Bank:
    """The bank without one class."""
    keep, rows = [i for i in range(len(bank.classes)) if i != place], bank.label != place
    label = bank.label[rows]
    return replace(
        bank,
        classes=tuple(bank.classes[i] for i in keep),
        embedding=bank.embedding[keep],
        means=bank.means[keep],
        inside=bank.inside[keep],
        features=bank.features[rows],
        label=label - (label > place),
        apart=bank.apart[rows],
    )


class Refusing:
    """Classifiers of one judge, made by the release's own synthesis, each from a bank that lacks the class that is unknown to it."""

    def __init__(self, release: Release, s: Set, shown: Sequence[Set]) -> None:
        self.s, self.shown = s, shown
        self.ours = Ours(release, s.pictures, dict(zip(s.rows.tolist(), s.features, strict=True)))
        self.whole = self.ours.synthesizer.bank
        self.texts = {draw_profile(n).id: clinical_text(draw_profile(n)) for n in _profiles(s)}
        self.rehearsed: dict[tuple[Any, ...], Rehearsal] = {}

    def measure(self, ways: int, shots: int, count: int, seed: int) -> dict[str, Any]:
        """Who is shown -> rule -> share that it refuses; statistic -> AUROC against the known."""
        random, classes = np.random.default_rng(seed), sorted(set(self.s.label.tolist()))
        rates: dict[str, dict[str, list[float]]] = {}
        for _ in range(count):
            *asked, unknown = (str(c) for c in random.choice(classes, ways + 1, replace=False))
            own = {c: random.permutation(np.flatnonzero(self.s.label == c)) for c in classes}
            s = self.ours.synthesizer
            mine = [i for i, c in enumerate(self.whole.classes) if c.id == unknown]
            s.bank = without(self.whole, mine[0]) if mine else self.whole
            s.familiarity = Familiarity(s.bank, s.centre)
            said = {c: self.texts[c] for c in asked if c in self.texts}
            made = self.ours.compose({c: self.s.rows[own[c][:shots]].tolist() for c in asked}, said)
            beside = [s.bank.classes[i].id for i in made.beside]
            known = [own[c][shots if c in asked else 0 :][:QUERIES] for c in [*asked, *beside] if c in own]
            shown = {
                "known": self.s.features[np.concatenate(known)],
                "unknown": self.s.features[own[unknown][:SHOWN]],
                **{o.name: o.features[random.integers(len(o.features), size=SHOWN)] for o in self.shown},
            }
            j = s.judged(made)
            key = (unknown if mine else "", j.named, shots, j.domain, tuple(j.foreign), j.trust)
            if key not in self.rehearsed:
                self.rehearsed[key] = rehearse(j)
            found = {who: _refused(j, self.rehearsed[key], f) for who, f in shown.items()}
            for who, by in found.items():
                for rule, values in by.items():
                    if rule in STATISTICS and who != "known":
                        both = np.concatenate([values, found["known"][rule]])
                        value = auroc(both, np.arange(len(both)) < len(values))
                    elif rule in STATISTICS:
                        continue
                    else:
                        value = float(values.mean())
                    rates.setdefault(who, {}).setdefault(rule, []).append(value)
        return {who: {rule: float(np.mean(v)) for rule, v in by.items()} for who, by in rates.items()}


def _profiles(s: Set) -> list[int]:
    return [int(c.rsplit("-", 1)[1]) for c in sorted(set(s.label.tolist()))] if s.name == "drawn" else []


def _refused(j: Judged, r: Rehearsal, features: Array) -> dict[str, Array]:
    """By rule whether it refuses, by statistic how strange: [n] of features [n, f]."""
    logits = np.asarray(features @ j.weight.T + j.bias, np.float64)
    weight, bias = foreign.head(j.bank, j.foreign, j.centre, j.scale)
    ahead, best = (features @ weight.T + bias).max(1) - logits.max(1), np.sort(logits, 1)
    length = np.linalg.norm(features - j.centre, axis=1)
    own = [j.bank.means[i] for i in j.bank.of_domain(j.domain)]
    few, kind = logits.max(1) < r.least, ahead > (np.inf if r.limit is None else r.limit)
    return {
        "largest logit below": few,
        "another kind": kind,
        "none of these": few | kind,
        STATISTICS[0]: -logits.max(1),
        STATISTICS[1]: best[:, -2] - best[:, -1],
        STATISTICS[2]: -logits.max(1) / length,
        STATISTICS[3]: ahead,
        STATISTICS[4]: np.linalg.norm(features - np.mean(own, 0), axis=1),
    }


def judge_refusal(
    release: Release, judged: Sequence[Set], shown: Sequence[Set], count: int, seed: int
) -> dict[str, Any]:
    """Judge -> mode -> who is shown -> rule or statistic -> share or AUROC."""
    out: dict[str, Any] = {}
    for s in judged:
        refusing = Refusing(release, s, [o for o in (*judged, *shown) if o.name != s.name])
        out[s.name] = {f"{w}w{k}s": refusing.measure(w, k, count, seed) for w, k in MODES}
    return out


def judge_decision(release: Release, data: Path, out: Path, count: int, seed: int) -> dict[str, Any]:
    """Both tables. Raises InputError when a set of pictures is not there."""
    judged, shown = sets(release, data, out, seed)
    synthesizer = Ours(release, judged[0].pictures, {}).synthesizer
    fixed = (synthesizer.bank, synthesizer.centre, synthesizer.scale)
    return {
        "temperature": judge_temperature(*fixed, judged, 4 * count, seed),
        "refusal": judge_refusal(release, judged, shown, count, seed),
    }


def report(r: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown."""
    first = next(iter(r["temperature"].values()))
    cells = [(judge, k) for judge in r["temperature"] for k in first]
    rows = []
    for arm in next(iter(first.values())):
        found = [r["temperature"][judge][k][arm] for judge, k in cells]
        rows.append([arm, *(f"{100 * f['ece']:.1f} ({f['temperature']:.1f})" for f in found)])
        rows[-1] += [f"{np.mean([f[k] for f in found]):.3f}" for k in ("brier", "log loss")]
    lines = ["", "Temperature: calibration error in percent (temperature), by the tasks that it is fitted on."]
    head = ["tasks", *(f"{j} {k}" for j, k in cells), "Brier, mean", "log loss, mean"]
    lines += ["", table(head, rows), "", '"None of these": share of the pictures that are refused, in percent.']
    for judge, by in r["refusal"].items():
        who = list(next(iter(by.values())))
        rows = [
            [f"{k}, {rule}", *(f"{100 * by[k][w][rule]:.1f}" for w in who)]
            for k in by
            for rule in ("largest logit below", "another kind", "none of these")
        ]
        lines += ["", f"Classifiers of {judge}.", "", table(["ways and shots, rule", *who], rows)]
    lines += [
        "",
        "AUROC of what might tell the unknown from the known, in percent: unknown class / mean of the other kinds.",
    ]
    rows = []
    for s in STATISTICS:
        row = [s]
        for by in r["refusal"].values():
            for found in by.values():
                far = np.mean([v[s] for w, v in found.items() if w not in ("known", "unknown")])
                row.append(f"{100 * found['unknown'][s]:.0f} / {100 * far:.0f}")
        rows.append(row)
    return [*lines, "", table(["statistic", *(f"{j} {k}" for j, by in r["refusal"].items() for k in by)], rows)]
