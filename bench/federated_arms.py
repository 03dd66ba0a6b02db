"""What `bench.federated` runs of the product: the engine's noised sums, the pooled memory, prototypes, head and score."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.shipped import Ours
from sgps.calibration import score
from sgps.generator import linear_head, spread_of
from sgps.memory import COUNTS, ROWS, Contribution, Coordinates, Memory, record
from sgps.release import Release
from sgps.rivals import choose, same_disease
from sgps.synthesis import RIVALS
from sgps_client.kinds import WORK
from sgps_privacy.accountant import calibrate
from sgps_privacy.engine import PrivateRound
from sgps_privacy.terms import Terms

Array = NDArray[Any]
DELTA = 1e-5
NAMES = (ROWS, COUNTS)
_SAME = 2e-4  # float32 logits of `compose` against those of the same functions on many exemplars at once


@lru_cache
def noise_multiplier(epsilon: float) -> float:
    return calibrate(epsilon, DELTA, 1)


def contribution(
    release: Release, coordinates: Coordinates, patients: Array, place: Array, classes: int, epsilon: float | None
) -> Contribution:
    """What one site sends. patients [n, f], place [n]: features and classes of its patients. No epsilon: the exact sums."""
    made = [record(coordinates, {int(c): x}, classes) for c, x in zip(place, patients, strict=True)]
    k = len(coordinates.directions)
    if epsilon is None:
        rows, counts = np.zeros((classes, k)), np.zeros(classes)
        for r, n in made:
            rows, counts = rows + r, counts + n
        return Contribution(rows, counts, 0.0)
    terms = Terms("rows", noise_multiplier(epsilon), 1.0, 1, (1.0,), (NAMES,), 1)
    tensors = [{ROWS: torch.from_numpy(r).float(), COUNTS: torch.from_numpy(n).float()} for r, n in made]
    start = {ROWS: torch.zeros(classes, k), COUNTS: torch.zeros(classes)}
    sent = PrivateRound(terms, WORK["rows"].loss(release, NAMES)).run(start, tensors, max(1, len(tensors)))
    return Contribution(sent[ROWS], sent[COUNTS], terms.sigma)


def area(positive: Array, negative: Array) -> float:
    """AUROC; ties count half."""
    order = np.sort(negative)
    low, high = np.searchsorted(order, positive, "left"), np.searchsorted(order, positive, "right")
    return float((low + high).mean() / (2 * len(order)))


class Judge:
    """The product's prototypes and scores of many exemplars at once; `agree` compares them with `Synthesizer.compose`."""

    def __init__(self, ours: Ours) -> None:
        s = ours.synthesizer
        if s.generator is not None:
            raise ValueError("a release without a generator is needed: its head is centred cosine")
        self.ours, self.s = ours, s
        self.rival_weight, self.rival_bias = self._head(s.bank.means)

    def _head(self, prototypes: Array, seen: Sequence[Array] = ()) -> tuple[Array, Array]:
        """seen: exemplars and own patients [k, f] of each disease, where several are told apart."""
        made, centre = torch.from_numpy(np.asarray(prototypes, np.float32)), torch.from_numpy(self.s.centre)
        spread = spread_of([torch.from_numpy(np.asarray(x, np.float32)) for x in seen], centre)
        weight, bias = linear_head(made, centre, self.s.scale, spread)
        return weight.numpy(), bias.numpy()

    def place(self, disease: str) -> int:
        entry = self.s.catalogue.find(disease)
        if entry is None or entry.id not in self.s.memory.ids:
            raise ValueError(f"{disease} is not in the release's catalogue")
        return self.s.memory.ids.index(entry.id)

    def prototypes(self, disease: str, exemplars: Array, memory: Memory, own: Array | None = None) -> Array:
        """exemplars [e, f], one each; own [n, f]: the site's own patients -> [e, f]."""
        entry, n = self.s.catalogue.find(disease), 0 if own is None else len(own)
        seen = exemplars if own is None or not n else (exemplars + own.sum(0)) / (1 + n)
        return memory.blend(seen, 1 + n, self.place(disease), self.s.inside(entry.domain if entry else ""))

    def logits(self, prototypes: Array, queries: Array) -> Array:
        """[q, e]"""
        weight, bias = self._head(prototypes)
        return np.asarray(queries @ weight.T + bias)

    def between(self, prototypes: Array, seen: Sequence[Array], queries: Array) -> Array:
        """Logits [q, N] of several diseases told apart, one prototype each."""
        weight, bias = self._head(prototypes, seen)
        return np.asarray(queries @ weight.T + bias)

    def scores(self, disease: str, prototypes: Array, queries: Array) -> Array:
        """The one-exemplar score of every query under every prototype [q, e]."""
        s, entry = self.s, self.s.catalogue.find(disease)
        text = s.text.embed([self.ours.text(disease)])
        itself = same_disease(s.bank, (disease, *(entry.names if entry else ())), text[0])
        others = [i for i in s.bank.of_domain(entry.domain if entry else "") if i not in itself]
        others = others or [i for i in range(len(s.bank.classes)) if i not in itself]
        own, rivals = self.logits(prototypes, queries), queries @ self.rival_weight.T + self.rival_bias
        out = np.empty_like(own)
        for e, p in enumerate(prototypes):
            beside = choose(s.bank, others, p, text[0], s.centre, RIVALS)
            out[:, e] = score(np.column_stack([own[:, e], rivals[:, beside]]), 1)[:, 0]
        return out

    def agree(self, disease: str, row: int, queries: Sequence[int], memory: Memory) -> float:
        """Largest difference to `Synthesizer.compose` for one exemplar. Raises ValueError when it is more than rounding."""
        made = self.ours.compose({disease: [row]}, memory=memory)
        wanted = score(self.ours.logits(made, queries, [disease]), 1)[:, 0]
        known = self.ours.encoder.of
        found = self.scores(disease, self.prototypes(disease, known([row]), memory), known(queries))[:, 0]
        gap = float(np.abs(wanted - found).max())
        if gap > _SAME * max(1.0, float(np.abs(wanted).max())):
            raise ValueError(f"{disease}: the bench's scores differ from those of synthesis by {gap:.2g}")
        return gap


def one_exemplar(
    judge: Judge, disease: str, prototypes: Array, queries: Array, label: Array, self_place: Array, test: Sequence[str]
) -> dict[str, float]:
    """Mean AUROC over exemplars against the other test classes and against all other classes, classes weighing the same.

    self_place [e]: the query that is the exemplar itself, left out.
    """
    scores, out = judge.scores(disease, prototypes, queries), dict[str, list[float]]()
    own = np.flatnonzero(label == disease)
    for e, itself in enumerate(self_place.tolist()):
        positive = scores[own[own != itself], e]
        by = {str(c): area(positive, scores[label == c, e]) for c in np.unique(label) if c != disease}
        out.setdefault("other", []).append(float(np.mean([by[c] for c in by if c in test])) if len(test) > 1 else 0.5)
        out.setdefault("all", []).append(float(np.mean(list(by.values()))))
    return {k: float(np.mean(v)) for k, v in out.items()}


def three_way(
    judge: Judge,
    prototypes: Mapping[str, Array],
    exemplars: Mapping[str, Array],
    own: Mapping[str, Array],
    queries: Array,
    label: Array,
    places: Mapping[str, Array],
    seed: int,
) -> float:
    """Accuracy of N-way 1-shot episodes over the given diseases: 300 episodes, 15 queries a class, the same for every arm.

    exemplars [e, f] and prototypes [e, f] made of one each; own [n, f]: the site's own patients behind all prototypes of a disease.
    """
    random, names = np.random.default_rng([seed, 6]), sorted(prototypes)
    alone = {d: judge.logits(prototypes[d], queries) for d in names} if not own else {}
    right = []
    for _ in range(300):
        chosen = {d: int(random.integers(len(prototypes[d]))) for d in names}
        asked = []
        for d in names:
            mine = np.flatnonzero(label == d)
            asked.append(random.permutation(mine[mine != places[d][chosen[d]]])[:15])
        rows = np.concatenate(asked)
        if own:
            seen = [np.vstack([exemplars[d][chosen[d]], *own.get(d, ())]) for d in names]
            logits = judge.between(np.stack([prototypes[d][chosen[d]] for d in names]), seen, queries[rows])
        else:
            logits = np.column_stack([alone[d][rows, chosen[d]] for d in names])
        right.append(float((np.array(names)[logits.argmax(1)] == label[rows]).mean()))
    return float(np.mean(right))


def known_classes(judge: Judge, memory: Memory, common: Sequence[str], queries: Array, label: Array) -> float:
    """Macro AUROC of the classifier of the common classes, made of the bank's samples of them and their rows, on new patients."""
    bank, made = judge.s.bank, []
    for kind in common:
        i = next(i for i, c in enumerate(bank.classes) if c.id == judge.s.memory.ids[judge.place(kind)])
        shots = int((bank.label == i).sum())
        made.append(memory.blend(bank.means[i], shots, judge.place(kind), judge.s.inside(bank.classes[i].domain)))
    logits, out = judge.logits(np.stack(made), queries), []
    for place, kind in enumerate(common):
        margin = logits[:, place] - np.delete(logits, place, 1).max(1)
        out.append(area(margin[label == kind], margin[label != kind]))
    return float(np.mean(out))
