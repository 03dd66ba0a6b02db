"""Which learned parts are switched on: those that are not worse than the zero generator on classes never seen.

A judge is a group of classes that the parts in question did not learn from. Every judge gives the same episodes to every set of parts, and a
paired difference of accuracies with its 95 % interval over episodes (design D2).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from sgps.episodes import Interval, auroc, interval, paired_difference
from sgps.generator import Generator
from sgps.pretrain.meta_episode import Episode, Space, head, inputs, sample
from sgps.pretrain.meta_pool import MetaClass
from sgps.pretrain.meta_train import pictures
from sgps.target import Target

Floats = npt.NDArray[np.float64]
Parts = tuple[str, ...]
CANDIDATES: Final[tuple[Parts, ...]] = (("head",), ("text",), ("head", "text"))
RIVALS, BEST_RIVAL = 5, 0.3  # of the one-exemplar task: how many, and the weight of the best one's cosine
EXEMPLAR_QUERIES = 15  # of each class
ONE_EXEMPLAR = "one exemplar, AUROC"


@dataclass(frozen=True)
class Judge:
    """classes: never taught to the candidates `of` in `generator`. ways: of its episodes.

    rivals: known classes like them, of the one-exemplar task; a disease is no rival of itself.
    """

    name: str
    classes: tuple[MetaClass, ...]
    generator: Generator
    ways: int
    rivals: tuple[MetaClass, ...] = ()
    of: tuple[Parts, ...] = CANDIDATES


@dataclass(frozen=True)
class Finding:
    """One judge, one task, one set of parts: accuracy or AUROC, and the paired difference to the zero generator, 0..1."""

    judge: str
    task: str
    parts: Parts
    accuracy: Interval
    zero: Interval
    gain: Interval

    @property
    def lower(self) -> float:
        return self.gain.mean - self.gain.half

    def record(self) -> dict[str, Any]:
        """Percent and points, for meta.yaml."""
        return {
            "judge": self.judge,
            "task": self.task,
            "parts": "+".join(self.parts) or "none",
            "accuracy": self.accuracy.percent(),
            "zero": self.zero.percent(),
            "gain": f"{100 * self.gain.mean:+.2f} ± {100 * self.gain.half:.2f}",
        }


def episodes(judge: Judge, shots: int, queries: int, count: int, seed: int) -> list[Episode]:
    random = np.random.default_rng([seed, judge.ways, shots])
    ways = min(judge.ways, len(judge.classes))
    return [sample(judge.classes, ways, shots, queries, random, first_text=True) for _ in range(count)]


@torch.inference_mode()
def head_accuracy(
    generator: Generator, drawn: Sequence[Episode], space: Space, parts: Parts, exchanged: bool = False
) -> Floats:
    """Accuracy of each episode on features under the base, with these of the parts head and text."""
    out = np.empty(len(drawn))
    for place, episode in enumerate(drawn):
        given = inputs(episode, space, exchanged=exchanged)
        tokens = generator.tokens(given, parts) if parts else None
        weight, bias = head(generator, given.features, given, tokens, space, parts)
        out[place] = float(((episode.queries() @ weight.T + bias).argmax(1) == episode.truth).float().mean())
    return out


def judge_head(
    judges: Sequence[Judge],
    space: Space,
    candidates: Sequence[Parts],
    queries: int,
    count: int,
    seed: int,
    exchanged: bool = False,
) -> list[Finding]:
    """Findings of all candidates at one and five shots."""
    found = []
    for judge in judges:
        judged = [parts for parts in candidates if parts in judge.of]
        if not judged:
            continue
        for shots in (1, 5):
            drawn = episodes(judge, shots, queries, count, seed)
            zero = head_accuracy(judge.generator, drawn, space, ())
            for parts in judged:
                values = head_accuracy(judge.generator, drawn, space, parts, exchanged)
                found.append(_finding(judge, f"{len(drawn[0].classes)}w{shots}s", parts, values, zero))
        if judge.rivals:
            tasks = exemplar_tasks(judge, space, count, seed)
            zero = exemplar_auroc(judge.generator, tasks, space, ())
            for parts in judged:
                values = exemplar_auroc(judge.generator, tasks, space, parts, exchanged)
                found.append(_finding(judge, ONE_EXEMPLAR, parts, values, zero))
    return found


def _finding(judge: Judge, task: str, parts: Parts, values: Floats, zero: Floats) -> Finding:
    return Finding(judge.name, task, parts, interval(values), interval(zero), paired_difference(values, zero))


@dataclass(frozen=True)
class ExemplarTask:
    """episode: the disease with one exemplar, then its rivals, settled and without queries. queries [m, f]; positive [m]."""

    episode: Episode
    queries: torch.Tensor
    positive: npt.NDArray[np.bool_]


def exemplar_tasks(judge: Judge, space: Space, count: int, seed: int) -> list[ExemplarTask]:
    """One exemplar of a class, the rivals nearest to it, and queries of the class and of others that are no rivals."""
    random, out = np.random.default_rng([seed, 77]), []
    queries = min(EXEMPLAR_QUERIES, min(len(c) for c in judge.classes) - 1)
    means = F.normalize(torch.stack([c.eight.mean(0) for c in judge.rivals]) - space.centre, dim=1)
    for _ in range(count):
        whole = sample(judge.classes, min(5, len(judge.classes)), 1, queries, random, first_text=True)
        own = whole.prototypes()[0][0] - space.centre
        order = (means @ F.normalize(own, dim=0)).argsort(descending=True).tolist()
        nearest = [i for i in order if judge.rivals[i].id != whole.classes[0].id][:RIVALS]
        classes = (whole.classes[0], *(judge.rivals[i] for i in nearest))
        support = np.concatenate([whole.support[:1], np.zeros((len(nearest), 1), np.int64)])
        none = np.zeros((len(classes), 0), np.int64)
        text = np.zeros(len(classes), np.int64)
        task = Episode(classes, support, none, text, frozenset(range(1, len(classes))))
        out.append(ExemplarTask(task, whole.queries(), whole.truth.cpu().numpy() == 0))
    return out


@torch.inference_mode()
def exemplar_auroc(
    generator: Generator, tasks: Sequence[ExemplarTask], space: Space, parts: Parts, exchanged: bool = False
) -> Floats:
    """AUROC of each task: cosine to the disease's row minus 0.3 times the one to the best rival's, features under the base."""
    out = np.empty(len(tasks))
    for place, task in enumerate(tasks):
        given = inputs(task.episode, space, exchanged=exchanged)
        tokens = generator.tokens(given, parts) if parts else None
        weight, _ = head(generator, given.features, given, tokens, space, parts)
        cosine = F.normalize(task.queries - space.centre, dim=1) @ F.normalize(weight, dim=1).T
        score = cosine[:, 0] - BEST_RIVAL * cosine[:, 1:].max(1).values
        out[place] = auroc(score.cpu().numpy(), task.positive)
    return out


@torch.inference_mode()
def body_accuracy(
    generator: Generator, target: Target, drawn: Sequence[Episode], space: Space, parts: Parts
) -> tuple[Floats, Floats, Floats]:
    """For each episode: accuracy under the generated body and under the base, and the mean cosine of centred features.

    Plain single views on both sides. parts: the other parts that are on, on both sides.
    """
    moved, still, cosine = np.empty(len(drawn)), np.empty(len(drawn)), np.empty(len(drawn))
    for place, episode in enumerate(drawn):
        ways, shots = episode.support.shape
        given = inputs(episode, space)
        tokens = generator.tokens(given, parts)
        support, queries = pictures(episode)
        after = target.features(torch.cat([support, queries]), target.materialise(generator.coefficients(tokens)))
        rows = [
            c.one[torch.from_numpy(r)]
            for side in (episode.support, episode.query)
            for c, r in zip(episode.classes, side, strict=True)
        ]
        before = torch.cat(rows)
        for values, features in ((moved, after), (still, before)):
            prototypes = features[: len(support)].view(ways, shots, -1).mean(1)
            weight, bias = head(generator, prototypes, given, tokens, space, parts)
            logits = features[len(support) :] @ weight.T + bias
            values[place] = float((logits.argmax(1) == episode.truth).float().mean())
        cosine[place] = float(F.cosine_similarity(after - space.centre, before - space.centre, dim=-1).mean())
    return moved, still, cosine


def judge_body(
    judge: Judge, target: Target, space: Space, parts: Parts, shots: int, queries: int, count: int, seed: int
) -> tuple[Finding, float]:
    """The part body beside `parts` against `parts` alone, and the cosine of features that it moves to."""
    drawn = episodes(judge, shots, queries, count, seed)
    moved, still, cosine = body_accuracy(judge.generator, target, drawn, space, parts)
    found = _finding(judge, f"{len(drawn[0].classes)}w{shots}s", ("body", *parts), moved, still)
    return found, float(cosine.mean())


def passes(found: Sequence[Finding], bound: float) -> bool:
    """Every lower bound above `bound`, and more gained than lost on average over judges."""
    return bool(found) and min(f.lower for f in found) > bound and float(np.mean([f.gain.mean for f in found])) > 0


def choose(found: Sequence[Finding], bound: float) -> Parts:
    """The candidate that passes with the largest mean gain; none if no one passes."""
    by_parts: Mapping[Parts, list[Finding]] = {
        p: [f for f in found if f.parts == p] for p in dict.fromkeys(f.parts for f in found)
    }
    good = {p: float(np.mean([f.gain.mean for f in fs])) for p, fs in by_parts.items() if passes(fs, bound)}
    return max(good, key=lambda p: (good[p], -len(p))) if good else ()


def records(found: Collection[Finding]) -> list[dict[str, Any]]:
    return [f.record() for f in found]
