"""What `bench.fewshot` is asked for, and the episodes that the data can give."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.arms import METHODS, OURS
from bench.features import Array, base_features
from bench.pictures import Pictures, read_pictures
from sgps.device import CPU
from sgps.episodes import Episodes, EpisodeSet, pack_episodes, sample_episodes
from sgps.errors import InputError
from sgps.pretrain.recipe import read_recipe
from sgps.release import Release

MOST_LESIONS, FEWEST_QUERIES = 300, 5  # of a class


@dataclass(frozen=True)
class Plan:
    """What is asked for. ways, shots: every combination; queries: of a class, fewer where a class is small; device: of features."""

    ways: Sequence[int] = (2, 3)
    shots: Sequence[int] = (1, 5)
    count: int = 600
    slow: int = 150
    seed: int = 0
    queries: int = 15
    methods: Sequence[str] = tuple(METHODS)
    device: torch.device = CPU

    def most(self, name: str, release: Release) -> int:
        """Episodes of a method: the slow ones, which make or tune a network for each, get `slow`."""
        bodies = name.startswith(OURS) and name != "ours-no-body" and "body" in release.manifest.architecture.learned
        return min(self.count, self.slow) if bodies or METHODS[name].slow else self.count


@dataclass(frozen=True)
class World:
    """Pictures of the test classes that can be read, and the episodes on them. notes: what was left out, and why."""

    pictures: Pictures
    test: tuple[str, ...]
    rows: Array
    sets: tuple[Episodes, ...]
    notes: tuple[str, ...]

    @property
    def label(self) -> Array:
        return np.asarray(self.pictures.label[self.rows])

    def packed(self) -> bytes:
        own = (self.pictures.name[self.rows], self.label, self.pictures.lesion[self.rows])
        return pack_episodes({"test": EpisodeSet(*own, self.sets)})


def world(data: Path, test: Sequence[str], plan: Plan, release: Release, out: Path) -> World:
    """test: none for the recipe's test classes where the data have them all, else for every class.

    Raises InputError when no episode can be made.
    """
    pictures, notes = read_pictures(data, test), list[str]()
    there = sorted(set(pictures.label.tolist()))
    usual = read_recipe(None).meta_test
    test = tuple(test) or (tuple(usual) if set(usual) <= set(there) else tuple(there))
    rows = pictures.few(test, MOST_LESIONS)
    if len(rows) < len(pictures.of(test)):
        notes.append(f"at most {MOST_LESIONS} lesions of a class were drawn")
    _, first = np.unique([pictures.sha256(int(r)) for r in rows], return_index=True)
    if len(first) < len(rows):
        notes.append(f"{len(rows) - len(first)} pictures are copies of others, byte for byte, and were left out")
        rows = rows[np.sort(first)]
    bad = np.isnan(base_features(release, pictures, rows, out, broken=True, device=plan.device)[:, 0])
    if bad.any():
        notes.append(f"{int(bad.sum())} pictures cannot be read, the first is {pictures.name[rows[bad][0]]}")
        rows = rows[~bad]
    label, lesion, sets = pictures.label[rows], pictures.lesion[rows], list[Episodes]()
    count = {c: len(np.unique(lesion[label == c])) for c in test}
    for ways in plan.ways:
        for shots in plan.shots:
            usable = [c for c in test if count[c] >= shots + min(FEWEST_QUERIES, plan.queries)]
            if small := [c for c in test if c not in usable]:
                notes.append(f"{ways}-way {shots}-shot without {', '.join(small)}: too few lesions")
            if len(usable) < ways:
                notes.append(f"no {ways}-way {shots}-shot episodes: {len(usable)} classes have enough lesions")
                continue
            queries = min(plan.queries, min(count[c] for c in usable) - shots)
            if queries < plan.queries:
                notes.append(f"{ways}-way {shots}-shot has {queries} queries a class: the smallest class gives no more")
            sets.append(sample_episodes(label, lesion, usable, ways, shots, queries, plan.count, plan.seed))
    if not sets:
        found = ", ".join(f"{c} {n}" for c, n in count.items())
        raise InputError(
            f"has too few lesions for any episode ({found})",
            where=data,
            do="ask for fewer shots, or name larger classes",
        )
    return World(pictures, test, rows, tuple(sets), tuple(dict.fromkeys(notes)))


def seen(release: Release, w: World) -> list[str]:
    """Test classes on which the release's base network was trained, as its manifest tells."""
    mine = [p for p in release.manifest.provenance if p.sha256 == w.pictures.digest]
    return sorted({c for c in w.test for p in mine if c in p.classes and c not in p.left_out})
