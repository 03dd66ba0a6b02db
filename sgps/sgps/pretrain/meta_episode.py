"""Few-shot episodes for meta-training, and the head that the generator makes for one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgps.errors import InputError
from sgps.generator import ClassInputs, Generator, linear_head
from sgps.pretrain.meta_pool import MetaClass

Ints = npt.NDArray[np.int64]
MOST_WORTH = 20.0  # of a simulated row of the class memory, in patients


@dataclass(frozen=True)
class Space:
    """The base's features: centre [f] and scale of the head; coordinates of the class memory.

    directions [k, f]; radius; within: public within-class variance summed over the k coordinates.
    """

    centre: Tensor
    scale: float
    directions: Tensor
    radius: float
    within: float


@dataclass(frozen=True)
class Episode:
    """classes: N. support [N, K], query [N, Q]: rows of each class. text [N]: which wording.

    settled: places of classes that enter with the mean of all their images but the queries, as a rival of the bank does.
    """

    classes: tuple[MetaClass, ...]
    support: Ints
    query: Ints
    text: Ints
    settled: frozenset[int] = frozenset()

    @property
    def device(self) -> torch.device:
        return self.classes[0].eight.device

    @property
    def truth(self) -> Tensor:
        """[N * Q] class of each query."""
        return torch.arange(len(self.classes), device=self.device).repeat_interleave(self.query.shape[1])

    def prototypes(self) -> tuple[Tensor, Tensor]:
        """[N, f] mean eight-view features under the base, [N] of how many images."""
        rows = [
            np.setdiff1d(np.arange(len(c)), self.query[i]) if i in self.settled else self.support[i]
            for i, c in enumerate(self.classes)
        ]
        means = [c.eight[torch.from_numpy(r)].mean(0) for c, r in zip(self.classes, rows, strict=True)]
        return torch.stack(means), torch.tensor([float(len(r)) for r in rows], device=self.device)

    def queries(self) -> Tensor:
        """[N * Q, f] eight-view features."""
        return torch.cat([c.eight[torch.from_numpy(r)] for c, r in zip(self.classes, self.query, strict=True)])


def sample(
    classes: Sequence[MetaClass],
    ways: int,
    shots: int,
    queries: int,
    random: np.random.Generator,
    first_text: bool = False,
) -> Episode:
    """A random episode; no lesion is in it twice. first_text: always the first wording.

    Raises InputError when the classes or their rows do not suffice.
    """
    if len(classes) < ways:
        raise InputError(f"{ways} classes are needed, {len(classes)} are there", where=f"{ways}-way episodes")
    chosen = tuple(classes[i] for i in random.choice(len(classes), ways, replace=False))
    if small := [c.id for c in chosen if len(c) < shots + queries]:
        raise InputError(f"has fewer than {shots + queries} lesions", where=small[0])
    rows = np.stack([random.choice(len(c), shots + queries, replace=False) for c in chosen])
    text = np.array([0 if first_text else int(random.integers(len(c.attributes))) for c in chosen])
    return Episode(chosen, rows[:, :shots], rows[:, shots:], text)


def inputs(
    episode: Episode,
    space: Space,
    random: np.random.Generator | None = None,
    exchanged: bool = False,
    sentence: bool = True,
) -> ClassInputs:
    """What the generator sees of an episode.

    random: simulate rows of the class memory, the true mean of each class with the error that its worth stands for. exchanged:
    every class gets the text of its neighbour, as a control. sentence: else the sentence embedding is zero.
    """
    prototypes, shots = episode.prototypes()
    ways, width, device = len(prototypes), len(space.directions), episode.device
    row, worth = torch.zeros(ways, width, device=device), torch.zeros(ways, device=device)
    if random is not None:
        worth = torch.from_numpy(random.uniform(1, MOST_WORTH, ways)).float().to(device)
        error = torch.from_numpy(random.normal(size=(ways, width))).float().to(device)
        means = torch.stack([c.eight.mean(0) for c in episode.classes])
        place = (means - space.centre) @ space.directions.T + error * torch.sqrt(space.within / width / worth)[:, None]
        lifted, row = space.centre + place @ space.directions, place / space.radius
        prototypes = (shots[:, None] * prototypes + worth[:, None] * lifted) / (shots + worth)[:, None]
    texts = episode.text
    owners = episode.classes[1:] + episode.classes[:1] if exchanged else episode.classes
    if exchanged:
        texts = np.roll(texts, -1)
    sentences = torch.stack([c.sentences[t] for c, t in zip(owners, texts, strict=True)])
    return ClassInputs(
        features=prototypes,
        shots=shots,
        row=row,
        worth=worth,
        text=sentences if sentence else torch.zeros_like(sentences),
        attributes=torch.stack([c.attributes[t] for c, t in zip(owners, texts, strict=True)]),
    )


def head(
    generator: Generator,
    prototypes: Tensor,
    given: ClassInputs,
    tokens: Tensor | None,
    space: Space,
    parts: Collection[str],
) -> tuple[Tensor, Tensor]:
    """Weight [N, f] and bias [N]: the generator's with these parts, or plain centred cosine prototypes without any."""
    if not {"head", "text"} & set(parts) or tokens is None:
        return linear_head(prototypes, space.centre, space.scale)
    return generator.head(prototypes, given, tokens, space.centre, space.scale, parts)
