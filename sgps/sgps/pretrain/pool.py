"""The training pool: public images without held-out lesions, and without any image of a meta-test class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgps.device import CPU
from sgps.pretrain.augment import augment, to_float
from sgps.pretrain.images import Images
from sgps.pretrain.recipe import Recipe, refuse_meta_test

Ints = npt.NDArray[np.int64]


def held_out(lesion: npt.NDArray[np.str_], label: npt.NDArray[np.str_], recipe: Recipe) -> npt.NDArray[np.bool_]:
    """True for images of held-out lesions of the base classes. The split does not depend on the training seed."""
    random = np.random.default_rng(0)
    out = np.zeros(len(lesion), bool)
    for name in recipe.base_classes:
        ids = np.unique(lesion[label == name])
        random.shuffle(ids)
        held = int(recipe.held_out * len(ids))
        if recipe.atlas is not None:
            held = max(held, len(ids) - recipe.atlas)
        out |= np.isin(lesion, ids[:held])
    return out


def step_random(seed: int, stage: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The random sources of one training step. They depend on nothing else, so that a resumed run repeats itself."""
    random = np.random.default_rng([seed, stage, step])
    return random, torch.Generator().manual_seed(int(random.integers(1 << 62)))


@dataclass(frozen=True)
class Member:
    """One set inside the pool: row numbers of its pixels, and for each row class, lesion and body site (-1: none)."""

    images: Images
    rows: Ints
    label: Ints
    lesion: Ints
    site: Ints
    chance: npt.NDArray[np.float64]
    turn: bool


@dataclass(frozen=True)
class Batch:
    """x float32 (n, 3, size, size); label, site (-1: none) and lesion int64 (n,)."""

    x: Tensor
    label: Tensor
    site: Tensor
    lesion: Tensor


class Pool:
    """Draws augmented batches: a share of skin, the rest from the other sets by the square root of their size."""

    def __init__(self, sets: Mapping[str, Images], recipe: Recipe, device: torch.device = CPU) -> None:
        """sets: images by set name. device: of the batches. Raises ConfigError when a meta-test class is among them."""
        self.device = device
        kept: dict[str, Ints] = {}
        for kind in recipe.sets:
            images, keep = sets[kind.name], np.ones(len(sets[kind.name]), bool)
            if kind.role == "skin":
                keep = np.isin(images.label, recipe.base_classes) & ~held_out(images.lesion, images.label, recipe)
            refuse_meta_test(images.label[keep].tolist(), recipe, kind.name)
            kept[kind.name] = np.flatnonzero(keep)
        labels = {k: np.char.add(f"{k}:", sets[k].label[rows]) for k, rows in kept.items()}
        self.classes = sorted({str(name) for column in labels.values() for name in column})
        skin = recipe.skin.name
        self.sites = sorted(set(sets[skin].site[kept[skin]].tolist()))
        self.members, lesions = [], 0
        for kind in sorted(recipe.sets, key=lambda k: k.role != "skin"):  # skin first
            images, rows = sets[kind.name], kept[kind.name]
            label = np.searchsorted(self.classes, labels[kind.name]).astype(np.int64)
            names, lesion = np.unique(images.lesion[rows], return_inverse=True)
            site = np.full(len(rows), -1, np.int64)
            if kind.name == skin:
                site = np.searchsorted(self.sites, images.site[rows]).astype(np.int64)
            chance = 1 / np.sqrt(
                np.bincount(label, minlength=len(self.classes))[label]
            )  # square-root balance of classes
            member = Member(images, rows, label, lesion + lesions, site, chance / chance.sum(), kind.turn)
            self.members.append(member)
            lesions += len(names)

    def counts(self) -> dict[str, int]:
        """Training images of each class."""
        total = np.sum([np.bincount(m.label, minlength=len(self.classes)) for m in self.members], 0)
        return dict(zip(self.classes, (int(n) for n in total), strict=True))

    def draw(self, count: int, random: np.random.Generator, skin: float) -> list[tuple[int, Ints]]:
        """(member, places in it) for `count` images."""
        first, others = self.members[0], self.members[1:]
        of_skin = int(count * skin)
        picks = [(0, random.choice(len(first.rows), of_skin, p=first.chance))]
        weight = np.sqrt([len(m.rows) for m in others])
        shares = random.multinomial(count - of_skin, weight / weight.sum())
        for place, (member, n) in enumerate(zip(others, shares, strict=True), 1):
            if n:
                picks.append((place, random.choice(len(member.rows), n, p=member.chance)))
        return picks

    def batch(
        self,
        picks: Sequence[tuple[int, Ints]],
        size: int,
        generator: torch.Generator,
        colour: float,
        area: tuple[float, float],
    ) -> Batch:
        """The picked images, augmented anew at each call."""
        x = []
        for place, rows in picks:
            member = self.members[place]
            raw = to_float(member.images.pixels[member.rows[rows]], self.device)
            x.append(augment(raw, size, generator, turn=member.turn, colour=colour, area=area))

        def column(values: list[Ints]) -> Tensor:
            return torch.from_numpy(np.concatenate(values)).to(self.device)

        return Batch(
            torch.cat(x),
            column([self.members[p].label[r] for p, r in picks]),
            column([self.members[p].site[r] for p, r in picks]),
            column([self.members[p].lesion[r] for p, r in picks]),
        )
