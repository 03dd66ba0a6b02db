"""The frozen episode file: which images the final figures are measured on. Made once, kept beside the code."""

from pathlib import Path

import numpy as np

from sgps.episodes import SETTINGS, Episodes, EpisodeSet, pack_episodes, read_episodes, sample_episodes
from sgps.pretrain.images import Source, listing
from sgps.pretrain.pool import held_out
from sgps.pretrain.recipe import Recipe

FROZEN = Path(__file__).with_name("episodes.json.gz")
TEST, HELD_OUT = "test", "held_out"
MOST_HELD_OUT = 250  # lesions of a base class, one image each


def _ordered(episodes: Episodes) -> Episodes:
    """Support and queries each in ascending order: the same episodes in a smaller file."""
    support, queries = np.split(episodes.index, [episodes.shots], axis=2)
    return Episodes(episodes.ways, episodes.shots, np.concatenate([np.sort(support), np.sort(queries)], axis=2))


def build_episodes(data: Path, recipe: Recipe) -> bytes:
    """Episodes on all lesions of the meta-test classes, and on held-out lesions of the base classes.

    600 episodes of each of 2 and 3 ways, 1 and 5 shots on the test classes; 300 on held-out lesions.
    """
    source = Source(data, recipe.skin.file or "")
    name, label, lesion, _ = (np.array(c, np.str_) for c in zip(*listing(source, recipe.skin), strict=True))
    random, chosen = np.random.default_rng(1), np.zeros(len(name), bool)
    held = held_out(lesion, label, recipe)
    for one in recipe.base_classes:
        for part in (held, ~held):
            images = np.flatnonzero((label == one) & part)
            first = images[np.unique(lesion[images], return_index=True)[1]]
            order = random.permutation(first)
            if part is held:
                chosen[order[:MOST_HELD_OUT]] = True
    sets = {}
    for key, keep, classes, count in (
        (TEST, np.isin(label, recipe.meta_test), recipe.meta_test, 600),
        (HELD_OUT, chosen, recipe.base_classes, 300),
    ):
        columns = (name[keep], label[keep], lesion[keep])
        episodes = [_ordered(sample_episodes(*columns[1:], classes, *s, count=count)) for s in SETTINGS]
        sets[key] = EpisodeSet(*columns, tuple(episodes))
    return pack_episodes(sets)


def frozen_episodes() -> dict[str, EpisodeSet]:
    """The two shipped sets, `test` and `held_out`."""
    return read_episodes(FROZEN)
