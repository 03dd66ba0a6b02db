"""What one exemplar is worth before and after the federation, over many exemplars and on patients that no site has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from sgps.calibration import score
from sgps.demo.world import Picture, World
from sgps.encoders import ImageEncoder
from sgps.episodes import Interval, auroc, interval, paired_difference, unit
from sgps.memory import Contribution, Memory, pool, record
from sgps.pretrain.networks import extract, read_teacher
from sgps.release import Release
from sgps.synthesis import Composition, Synthesizer

Array = NDArray[Any]
Tick = Callable[[str, int, int], None]
BEFORE, AFTER, EXACT = (
    "before the federation: the exemplar alone",
    "after it, with privacy",
    "after it, without noise (reference)",
)
PEERS = ("nearest prototype, frozen Lite0", "nearest prototype, base network")
GRID = np.linspace(0, 1, 101)  # false-alarm rates of a mean ROC curve
TEACHER_SIZE = 128  # pixels: frozen Lite0 is best there


@dataclass
class Arm:
    """One method. auroc: disease -> one value for each exemplar, in percent. roc: disease -> [exemplars, 101]."""

    name: str
    auroc: dict[str, list[float]] = field(default_factory=dict)
    roc: dict[str, list[Array]] = field(default_factory=dict)

    def add(self, disease: str, scores: Array, positive: Array) -> None:
        fpr, tpr, _ = roc_curve(positive, scores)
        self.auroc.setdefault(disease, []).append(100 * auroc(scores, positive))
        self.roc.setdefault(disease, []).append(np.interp(GRID, fpr, tpr))

    def mean(self, disease: str) -> Interval:
        return interval(np.array(self.auroc[disease]))

    def gain(self, disease: str, over: "Arm") -> Interval:
        return paired_difference(np.array(self.auroc[disease]), np.array(over.auroc[disease]))


@dataclass(frozen=True)
class Measured:
    """arms in the order of the table. exemplars: number behind each disease's figures. queries: tested patients by disease."""

    arms: tuple[Arm, ...]
    exemplars: dict[str, int]
    queries: dict[str, int]

    def arm(self, name: str) -> Arm:
        return next(a for a in self.arms if a.name == name)


def exact_memory(world: World, release: Release, encoder: ImageEncoder) -> Memory:
    """The class memory that the same patients would give without noise: possible here, because the demo's data are public."""
    memory = release.memory()
    features = encoder.features([p.image() for p in world.at_sites])
    patients = sorted({p.patient for p in world.at_sites})
    rows, counts = np.zeros(memory.total.shape), np.zeros(len(memory.ids))
    for patient in patients:
        mine = [i for i, p in enumerate(world.at_sites) if p.patient == patient]
        place = memory.ids.index(world.at_sites[mine[0]].disease)
        r, n = record(memory.coordinates, {place: features[mine].mean(0)}, len(memory.ids))
        rows, counts = rows + r, counts + n
    return pool(memory.coordinates, memory.ids, [Contribution(rows, counts, 0.0)])


def measure(world: World, before: Release, after: Release, count: int, seed: int, tick: Tick) -> Measured:
    """AUROC of one exemplar against the held-out patients of the other two diseases, for up to `count` exemplars of each disease.

    A query is the first picture of a patient; the exemplar's patient is never a query. Every arm sees the same exemplars.
    """
    synthesizer = Synthesizer(before)
    encoder = synthesizer.encoder
    pictures = world.held_out
    images = [p.image() for p in pictures]
    tick("features", 0, 2)
    base = encoder.features(images)
    tick("features", 1, 2)
    lite = _lite0(images)
    tick("features", 2, 2)
    memories = {BEFORE: before.memory(), AFTER: after.memory(), EXACT: exact_memory(world, before, encoder)}
    arms = {name: Arm(name) for name in (*PEERS, *memories)}
    first = [i for i, p in enumerate(pictures) if p.patient not in {q.patient for q in pictures[:i]}]
    rng, used = np.random.default_rng(seed), {}
    chosen = {d: rng.permutation([i for i, p in enumerate(pictures) if p.disease == d])[:count] for d in world.diseases}
    total, done = sum(map(len, chosen.values())), 0
    for disease, exemplars in chosen.items():
        used[disease] = len(exemplars)
        for e in exemplars.tolist():
            queries = [i for i in first if pictures[i].patient != pictures[e].patient]
            positive = np.array([pictures[i].disease == disease for i in queries])
            for name, feature in zip(PEERS, (lite, base), strict=True):
                arms[name].add(disease, unit(feature[queries]) @ unit(feature[e]), positive)
            for name, memory in memories.items():
                made = synthesizer.compose({disease: [images[e]]}, {}, memory=memory)
                logits = _logits(made, base, queries, images, encoder)
                arms[name].add(disease, score(logits, 1)[:, 0], positive)
            done += 1
            tick("exemplars", done, total)
    return Measured(
        tuple(arms.values()), used, {d: sum(pictures[i].disease == d for i in first) for d in world.diseases}
    )


def _logits(
    made: Composition, base: Array, queries: Sequence[int], images: Sequence[Any], encoder: ImageEncoder
) -> Array:
    """Logits [n, N] of the composed network, averaged over views: the classifier is linear, so features may be averaged first."""
    features = (
        base[list(queries)] if made.body is None else encoder.features([images[i] for i in queries], body=made.body)
    )
    return np.asarray(features @ made.weight.numpy().T + made.bias.numpy(), dtype=np.float64)


def _lite0(images: Sequence[Any]) -> Array:
    """Features of the peer, eight views too."""

    def load(part: slice) -> NDArray[np.uint8]:
        return np.stack([_square(image) for image in images[part]])

    with torch.inference_mode():
        return extract(read_teacher(), load, len(images), TEACHER_SIZE)[1]


def _square(image: Any) -> NDArray[np.uint8]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((160, 160)), dtype=np.uint8)


def story_picture(world: World, disease: str, seed: int) -> Picture:
    """The exemplar that the pictures show: one held-out patient of the disease, drawn by the seed."""
    choices = [p for p in world.held_out if p.disease == disease]
    return choices[int(np.random.default_rng(seed).integers(len(choices)))]
