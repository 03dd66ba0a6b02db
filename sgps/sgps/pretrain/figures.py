"""Final figures of a base network on the frozen episodes. Nothing is chosen on them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sgps.episodes import (
    EpisodeSet,
    accuracy,
    exemplar_score,
    interval,
    one_exemplar_auroc,
    paired_difference,
)
from sgps.pretrain.features import Features
from sgps.pretrain.frozen import HELD_OUT, TEST
from sgps.pretrain.images import Tick, read_named
from sgps.pretrain.networks import extract
from sgps.pretrain.recipe import Recipe
from sgps.pretrain.statistics import Space

TEACHER_SIZE = 128  # pixels, the best of 96, 128 and 224 for frozen Lite0
TEACHER_LESIONS = 150  # of a base class, for the teacher's centre

Array = npt.NDArray[np.float32]


def _rows(features: Mapping[str, Any], sets: Mapping[str, EpisodeSet]) -> dict[str, dict[str, str]]:
    """Accuracies in percent with 95 % intervals: of every set, method and kind of episode; differences to the first method."""
    out: dict[str, dict[str, str]] = {}
    for key, one in sets.items():
        reference: dict[str, npt.NDArray[np.float64]] = {}
        for method, by_set in features.items():
            row = {}
            for episodes in one.episodes:
                values = accuracy(by_set[key], episodes)
                reference.setdefault(episodes.name, values)
                row[episodes.name] = interval(values).percent()
                if values is not reference[episodes.name]:
                    difference = paired_difference(values, reference[episodes.name])
                    row[f"{episodes.name} gain"] = difference.percent()
            out[f"{key}, {method}"] = row
    return out


def _aurocs(
    features: Mapping[str, Array], sets: Mapping[str, EpisodeSet], means: Array, recipe: Recipe
) -> dict[str, str]:
    """Mean one-exemplar AUROC in percent of each meta-test class against the other two and against all six."""
    every = np.concatenate([features[TEST], features[HELD_OUT]])
    label = np.concatenate([sets[TEST].label, sets[HELD_OUT].label])
    lesion = np.concatenate([sets[TEST].lesion, sets[HELD_OUT].lesion])
    score = partial(exemplar_score, rivals=means)
    out = {}
    for title, negatives in (
        ("other rare", recipe.meta_test),
        ("all others", (*recipe.meta_test, *recipe.base_classes)),
    ):
        for shots in (1, 5):
            found = one_exemplar_auroc(every, label, lesion, recipe.meta_test, negatives, score, shots)
            values = {k: 100 * v.mean() for k, v in found.items()} | {"mean": 100 * np.mean(list(found.values()))}
            out[f"{shots} exemplar against {title}"] = " ".join(f"{k} {v:.1f}" for k, v in values.items())
    return out


def measure(
    data: Path,
    recipe: Recipe,
    net: Any,
    teacher: Any,
    atlas: Features,
    atlas_pixels: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]],
    space: Space,
    sets: Mapping[str, EpisodeSet],
    tick: Tick,
) -> dict[str, Any]:
    """Figures on the frozen episodes: frozen Lite0 at 128 px, the base with one and with eight views, centred cosine.

    atlas_pixels: uint8 images of these rows of the atlas; the teacher's centre comes from up to 150 lesions of each class.
    """
    done, total = 0, sum(len(s.name) for s in sets.values())
    lite: dict[str, Array] = {}
    one: dict[str, Array] = {}
    eight: dict[str, Array] = {}
    chosen = _teacher_rows(atlas, recipe.base_classes)
    rough, _ = extract(teacher, lambda part: atlas_pixels(chosen[part]), len(chosen), TEACHER_SIZE, count_views=1)
    middle = np.mean([rough[atlas.label[chosen] == c].mean(0) for c in recipe.base_classes], 0)
    for key, episodes in sets.items():
        pixels = read_named(data, recipe.skin, episodes.name.tolist())
        lite[key] = extract(teacher, pixels.__getitem__, len(pixels), TEACHER_SIZE, count_views=1)[0] - middle
        plain, turned = extract(net, pixels.__getitem__, len(pixels), recipe.size)
        one[key] = (plain - space.plain_mean).astype(np.float32)
        eight[key] = (turned - space.coordinates.mean).astype(np.float32)
        done += len(pixels)
        tick(done, total)
    methods = {"Lite0 at 128 px": lite, "one view": one, "eight views": eight}
    means = space.means - space.coordinates.mean
    fresh = eight[HELD_OUT] @ space.coordinates.directions.T
    groups = [fresh[sets[HELD_OUT].label == c] for c in recipe.base_classes]
    return {
        "accuracy": _rows(methods, sets),
        "auroc, eight views": _aurocs(eight, sets, means, recipe),
        "coordinates": {
            "radius": round(space.coordinates.radius, 3),
            "within": round(space.coordinates.within, 3),
            "held-out radius": round(float(np.median(np.linalg.norm(fresh, axis=1))), 3),
            "held-out within": round(float(np.mean([g.var(0, ddof=1).sum() for g in groups])), 3),
            "variance kept, held-out": _kept(eight[HELD_OUT], space),
            "variance kept, test": _kept(eight[TEST], space),
        },
    }


def _kept(centred: Array, space: Space) -> float:
    """Share of the squared norm that the coordinates keep."""
    return round(float(((centred @ space.coordinates.directions.T) ** 2).sum() / (centred**2).sum()), 4)


def _teacher_rows(atlas: Features, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """First images of up to 150 seeded lesions of each class."""
    random, rows = np.random.default_rng(0), []
    for name in classes:
        images = np.flatnonzero(atlas.label == name)
        first = images[np.unique(atlas.lesion[images], return_index=True)[1]]
        rows.append(random.permutation(first)[:TEACHER_LESIONS])
    return np.sort(np.concatenate(rows))
