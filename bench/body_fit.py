"""A body fitted to labelled pictures by gradient on its bounded coefficients, and what a body is worth on other pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench.body_tasks import Task, plain
from sgps.encoders import target_of, view_means
from sgps.episodes import QUERIES, accuracy, sample_episodes, unit
from sgps.generator import BOUNDS, TEXT, ClassInputs, Generator, linear_head
from sgps.pretrain.augment import augment, to_float
from sgps.release import GENERATOR, Release
from sgps.target import Coefficients, Target

Array = NDArray[Any]
BATCH, EPISODES = 18, 8  # pictures of a step, and few-shot tasks that are made of their features
AREA, COLOUR = (0.7, 1.0), 0.0
SHOTS, READ = (1, 5), 48  # exemplars of a class; pictures that are read at a time


@dataclass(frozen=True)
class World:
    """The release's frozen side and its head: centre [f] and scale."""

    release: Release
    target: Target
    centre: Tensor
    scale: float

    @classmethod
    def of(cls, release: Release) -> "World":
        centre = torch.from_numpy(release.memory().coordinates.mean.astype(np.float32))
        return cls(release, target_of(release), centre, float(release.tensors(GENERATOR, "head.scale")[""][0]))

    @torch.inference_mode()
    def features(self, x: Tensor, c: Coefficients | None) -> Array:
        """[n, f] of plain views, centred. c: none is the base."""
        body = None if c is None else self.target.materialise(c)
        parts = [self.target.features(x[i : i + READ], body) for i in range(0, len(x), READ)]
        return (torch.cat(parts) - self.centre).numpy()


def acting(target: Target) -> Coefficients:
    """1 for coefficients that move something, 0 for others: a kernel has either core or taps, few layers a bias of their own."""
    mask = Coefficients.zero(len(target.layers))
    for place, layer in enumerate(target.layers):
        (mask.tap if layer.depthwise else mask.core)[place] = 1
        if layer.norm is not None:
            mask.chan[place] = 1
        elif layer.bias:
            mask.chan[place, 1] = 1
    return mask


def flat(c: Coefficients, mask: Coefficients) -> Array:
    """The coefficients that act, each over its bound."""
    parts = [
        (x[m > 0] / b).double().numpy()
        for x, m, b in zip(
            (c.core, c.chan, c.tap),
            (mask.core, mask.chan, mask.tap),
            BOUNDS,
            strict=True,
        )
    ]
    return np.concatenate(parts)


def unflat(values: Array, mask: Coefficients) -> Coefficients:
    """The way back of `flat`."""
    made, start = [], 0
    for m, b in zip((mask.core, mask.chan, mask.tap), BOUNDS, strict=True):
        out, many = torch.zeros_like(m), int(m.sum())
        out[m > 0] = torch.from_numpy(values[start : start + many]).float() * b
        made.append(out)
        start += many
    return Coefficients(*made)


def scaled(c: Coefficients, factor: float) -> Coefficients:
    return Coefficients(c.core * factor, c.chan * factor, c.tap * factor)


def few_shot_loss(world: World, features: Tensor, picture: Array, random: np.random.Generator) -> Tensor:
    """Mean cross-entropy of random one- to five-shot tasks inside a batch, by the centred cosine head.

    features [N, b, f]; picture [N, b]: exemplars and queries are never the same picture, unless a class has one only.
    """
    ways, many = picture.shape
    total = torch.zeros(())
    for _ in range(EPISODES):
        shots, prototypes, queries, truth = int(random.choice((1, 1, 2, 5))), [], [], []
        for c in range(ways):
            order = random.permutation(many)
            names, first = np.unique(picture[c][order], return_index=True)
            chosen = order[np.sort(first)][: max(1, min(shots, len(names) // 2))]
            same = np.isin(picture[c], picture[c][chosen]) if len(names) > 1 else np.isin(np.arange(many), chosen)
            prototypes.append(features[c, torch.from_numpy(chosen)].mean(0))
            queries.append(features[c, torch.from_numpy(np.flatnonzero(~same))])
            truth += [c] * len(queries[-1])
        weight, bias = linear_head(torch.stack(prototypes), world.centre, world.scale)
        total = total + F.cross_entropy(torch.cat(queries) @ weight.T + bias, torch.tensor(truth)) / EPISODES
    return total


def fit(
    world: World,
    frames: Sequence[Array],
    ways: int,
    marks: Sequence[int],
    rate: float,
    seed: int,
    bound: float = 1.0,
) -> tuple[dict[int, Coefficients], list[float]]:
    """Coefficients after each number of steps, from zero on, and the loss of each step (Adam on c = bound rho tanh(raw)).

    frames: uint8 [n, h, w, 3] of each class; where there are more classes than `ways`, each step draws so many. Pictures are cut, turned
    and mirrored anew each time.
    """
    layers, size = len(world.target.layers), world.release.manifest.architecture.size
    start = Coefficients.zero(layers)
    raw = [x.requires_grad_() for x in (start.core, start.chan, start.tap)]
    optimizer, losses, out = torch.optim.Adam(raw, lr=rate), [], {}
    for step in range(max(marks)):
        random = np.random.default_rng([seed, step])
        source = torch.Generator().manual_seed(int(random.integers(1 << 62)))
        chosen = random.choice(len(frames), ways, replace=False) if len(frames) > ways else np.arange(ways)
        many = BATCH // ways
        rows = [random.choice(len(frames[c]), many, replace=len(frames[c]) < many) for c in chosen]
        pixels = np.concatenate([frames[c][r] for c, r in zip(chosen, rows, strict=True)])
        x = augment(to_float(pixels), size, source, turn=True, colour=COLOUR, area=AREA)
        c = Coefficients(*(bound * b * torch.tanh(r) for b, r in zip(BOUNDS, raw, strict=True)))
        found = world.target.features(x.contiguous(memory_format=torch.channels_last), world.target.materialise(c))
        loss = few_shot_loss(world, found.view(ways, many, -1), np.stack(rows), random)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step + 1 in marks:
            with torch.no_grad():
                out[step + 1] = Coefficients(*(bound * b * torch.tanh(r) for b, r in zip(BOUNDS, raw, strict=True)))
    return out, losses


def nearest(support: Array, queries: Array) -> Array:
    """Cosine to the mean of each class's exemplars; centred features, support [N, K, f]."""
    return np.asarray(unit(queries) @ unit(support.mean(1)).T)


class Trial:
    """Pictures of one task, ready to be judged under any body; the same exemplars and queries for each."""

    def __init__(self, world: World, task: Task, public: Tensor, episodes: int, seed: int) -> None:
        self.world, self.task, self.public, self.episodes, self.seed = world, task, public, episodes, seed

    @cached_property
    def before(self) -> Array:
        return self.world.features(self.public, None)

    @cached_property
    def shown(self) -> tuple[Tensor, Array]:
        """Pictures and their classes' places."""
        return self.task.tensor(self.task.shown, self.world.release), places(self.task.shown)

    @cached_property
    def known(self) -> tuple[Tensor, Array]:
        return self.task.tensor(self.task.known, self.world.release), places(self.task.known)

    def judged(self, c: Coefficients | None, whole: bool = False) -> dict[str, float]:
        """Accuracy on the shown pictures from 1 and 5 of them, and the mean cosine of features of public pictures before and after.

        whole: also from all known pictures, and on the known pictures from 1 of them.
        """
        x, truth = self.shown
        features = self.world.features(x, c)
        out = {f"shown {k}": self._accuracy(features, truth, k) for k in SHOTS}
        after = self.world.features(self.public, c)
        out["cosine"] = float((unit(after) * unit(self.before)).sum(1).mean())
        if whole:
            x, own = self.known
            known = self.world.features(x, c)
            out["known 1"] = self._accuracy(known, own, 1)
            means = np.stack([known[own == i].mean(0) for i in range(len(self.task.classes))])
            out["shown all"] = float((nearest(means[:, None], features).argmax(1) == truth).mean())
        return out

    def _accuracy(self, features: Array, truth: Array, shots: int) -> float:
        label = truth.astype(str)
        ways, fewest = len(self.task.classes), int(np.bincount(truth).min())
        names = [str(i) for i in range(ways)]
        own = np.arange(len(label)).astype(str)
        drawn = sample_episodes(label, own, names, ways, shots, min(QUERIES, fewest - shots), self.episodes, self.seed)
        return float(accuracy(features, drawn, nearest).mean())

    def exemplars(self, shots: int, draw: int) -> tuple[Array, Array]:
        """[N, K] places of exemplars among the shown, and the places of all others."""
        random, label = np.random.default_rng([shots, draw]), self.shown[1]
        own = np.stack([random.permutation(np.flatnonzero(label == c))[:shots] for c in range(len(self.task.classes))])
        return own, np.setdiff1d(np.arange(len(label)), own.ravel())

    def from_exemplars(self, own: Array, rest: Array, c: Coefficients | None) -> float:
        """Accuracy on all others."""
        x, truth = self.shown
        features = self.world.features(x, c)
        return float((nearest(features[own], features[rest]).argmax(1) == truth[rest]).mean())


def places(part: Sequence[Sequence[Any]]) -> Array:
    """[n] which class each picture is of."""
    return np.repeat(np.arange(len(part)), [len(own) for own in part])


def generated(world: World, generator: Generator, task: Task, images: Sequence[Sequence[Any]]) -> Coefficients:
    """What a trained generator makes of these exemplars of each class and the classes' texts (attributes alone, as it was trained)."""
    many, n = [len(own) for own in images], len(images)
    with torch.inference_mode():
        views = world.release.manifest.architecture.views
        x = plain([image for own in images for image in own], world.release)
        means = [f.mean(0) for f in torch.split(view_means(world.target, x, views), many)]
        width = generator.memory.in_features - 1
        given = ClassInputs(
            features=torch.stack(means),
            shots=torch.tensor(many, dtype=torch.float32),
            row=torch.zeros(n, width),
            worth=torch.zeros(n),
            text=torch.zeros(n, TEXT),
            attributes=task.attributes,
        )
        return generator.coefficients(generator.tokens(given, ("text",)))


def summary_of(world: World, task: Task) -> Array:
    """[2 f] mean and spread over the classes of their prototypes' directions, from all known pictures: in no order of the classes."""
    features = world.features(task.tensor(task.known, world.release), None)
    ends = np.cumsum([len(own) for own in task.known])[:-1]
    means = unit(np.stack([part.mean(0) for part in np.split(features, ends)]))
    return np.concatenate([means.mean(0), means.std(0)]).astype(np.float64)


def left_out(x: Array, y: Array, ridge: float) -> Array:
    """[n, n, d]: at (i, j) what ridge regression of y [n, d] on x [n, f] without task i says for the input of task j.

    ridge: share of the kernel's mean diagonal.
    """
    out = np.empty((len(x), *y.shape))
    for i in range(len(x)):
        others = np.delete(np.arange(len(x)), i)
        mx, my = x[others].mean(0), y[others].mean(0)
        a = x[others] - mx
        kernel = a @ a.T
        kernel += (ridge * np.trace(kernel) / len(kernel) + 1e-12) * np.eye(len(kernel))
        out[i] = my + ((x - mx) @ a.T) @ np.linalg.solve(kernel, y[others] - my)
    return out


def cosines(predicted: Array, oracle: Array, related: Callable[[int, int], bool]) -> tuple[Array, Array]:
    """[n] cosine of each task's oracle [n, d] to what is predicted for it, and [n] the mean one to what is predicted from the inputs of
    unrelated tasks. predicted: [n, d], or [n, n, d] of `left_out`."""
    n = len(oracle)
    table = np.einsum("id,ijd->ij", unit(oracle), unit(np.broadcast_to(predicted, (n, *oracle.shape))))
    shuffled = [[table[i, j] for j in range(n) if j != i and not related(i, j)] for i in range(n)]
    return np.diag(table).copy(), np.array([np.mean(s) if s else np.nan for s in shuffled])
