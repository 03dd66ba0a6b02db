"""Few-shot episodes and how they are scored: accuracy with intervals, paired differences, AUROC, one-exemplar AUROC.

One image per lesion in an episode; the same seeded episodes for every method. NumPy and SciPy only.
"""

import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from sgps.errors import InputError
from sgps.files import read_limited

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]
Head = Callable[[Floats, Floats], Floats]  # support (N, K, D), queries (M, D) -> scores (M, N)

SETTINGS = ((2, 1), (2, 5), (3, 1), (3, 5))  # ways, shots
QUERIES = 15
LIMIT = 16 << 20  # bytes of an episode file, unpacked


@dataclass(frozen=True)
class Episodes:
    """index (n, ways, shots + queries): image numbers, support first."""

    ways: int
    shots: int
    index: Ints

    @property
    def name(self) -> str:
        return f"{self.ways}w{self.shots}s"


@dataclass(frozen=True)
class EpisodeSet:
    """Images by name with their class and lesion, and episodes over them."""

    name: Texts
    label: Texts
    lesion: Texts
    episodes: tuple[Episodes, ...]


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval over episodes (normal approximation)."""

    mean: float
    half: float

    def percent(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.half:.1f}"


def sample_episodes(
    label: Texts,
    lesion: Texts,
    classes: Sequence[str],
    ways: int,
    shots: int,
    queries: int = QUERIES,
    count: int = 600,
    seed: int = 0,
) -> Episodes:
    """Seeded episodes: `ways` classes, then `shots + queries` lesions of each, one random image of each lesion.

    Raises InputError when a class has too few lesions or there are too few classes.
    """
    random = np.random.default_rng([seed, ways, shots])
    lesions: dict[str, list[Ints]] = {}
    for name in classes:
        images = np.flatnonzero(label == name)
        lesions[name] = [images[lesion[images] == one] for one in np.unique(lesion[images])]
        if len(lesions[name]) < shots + queries:
            raise InputError(f"has {len(lesions[name])} lesions; an episode needs {shots + queries}", where=name)
    if len(classes) < ways:
        raise InputError(f"{ways} classes are needed, {len(classes)} are there", where=f"{ways}-way episodes")
    index = np.empty((count, ways, shots + queries), np.int64)
    for episode in index:
        for place, chosen in enumerate(random.choice(len(classes), ways, replace=False)):
            own = lesions[classes[chosen]]
            drawn = random.choice(len(own), shots + queries, replace=False)
            episode[place] = [random.choice(own[j]) for j in drawn]
    return Episodes(ways, shots, index)


def unit(x: Floats) -> Floats:
    """Rows of length 1."""
    out: Floats = x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)
    return out


def cosine(support: Floats, queries: Floats) -> Floats:
    """Cosine to each class's prototype, the mean of its unit vectors. Centre the features first."""
    scores: Floats = unit(queries) @ unit(unit(support).mean(1)).T
    return scores


def accuracy(features: Floats, episodes: Episodes, head: Head = cosine) -> npt.NDArray[np.float64]:
    """Share of right answers in each episode (n,). features (images, D), centred already if the head wants that."""
    out = np.empty(len(episodes.index))
    truth = np.repeat(np.arange(episodes.ways), episodes.index.shape[2] - episodes.shots)
    for place, index in enumerate(episodes.index):
        support = features[index[:, : episodes.shots]]
        queries = features[index[:, episodes.shots :]].reshape(-1, features.shape[-1])
        out[place] = (head(support, queries).argmax(1) == truth).mean()
    return out


def interval(values: Floats) -> Interval:
    """Mean of independent values and half its 95 % interval."""
    return Interval(float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values))))


def paired_difference(values: Floats, reference: Floats) -> Interval:
    """Of two methods on the same episodes, in the same order. Raises ValueError when the numbers of episodes differ."""
    if values.shape != reference.shape:
        raise ValueError("paired values need the same episodes")
    return interval(values - reference)


def auroc(score: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve; ties count half (Mann-Whitney). Raises ValueError without positives or negatives."""
    count = int(positive.sum())
    if not 0 < count < len(positive):
        raise ValueError("AUROC needs positives and negatives")
    ranks = rankdata(score)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def exemplar_score(exemplars: Floats, queries: Floats, rivals: Floats | None = None, weight: float = 0.3) -> Floats:
    """Cosine to the exemplars (K, D) minus `weight` times the cosine to the best rival (R, D); all centred. (M,)"""
    score: Floats = unit(queries) @ unit(unit(exemplars).mean(0))
    if rivals is not None:
        score = score - weight * (unit(queries) @ unit(rivals).T).max(1)
    return score


def one_exemplar_auroc(
    features: Floats,
    label: Texts,
    lesion: Texts,
    positives: Sequence[str],
    negatives: Sequence[str],
    score: Callable[[Floats, Floats], Floats] = exemplar_score,
    shots: int = 1,
    per_class: int = 60,
    draws: int = 100,
    seed: int = 0,
) -> dict[str, npt.NDArray[np.float64]]:
    """AUROC of each draw (draws,) for each positive class: exemplars against other lesions of it and of the negatives.

    score(exemplars (K, D), queries (M, D)) -> (M,). One random image per lesion; at most `per_class` lesions a class.
    """
    random = np.random.default_rng(seed)
    single: dict[str, Ints] = {}
    for name in sorted({*positives, *negatives}):
        images = np.flatnonzero(label == name)
        single[name] = np.array([random.choice(images[lesion[images] == one]) for one in np.unique(lesion[images])])
    out = {}
    for name in positives:
        values = np.empty(draws)
        for draw in range(draws):
            order = random.permutation(single[name])
            own = order[shots : shots + per_class]
            others = [random.permutation(single[other])[:per_class] for other in negatives if other != name]
            queries = np.concatenate([own, *others])
            values[draw] = auroc(score(features[order[:shots]], features[queries]), np.arange(len(queries)) < len(own))
        out[name] = values
    return out


def pack_episodes(sets: Mapping[str, EpisodeSet]) -> bytes:
    """Gzipped JSON of named episode sets; the same sets give the same bytes."""
    data = {}
    for key, one in sets.items():
        labels, lesions = sorted(set(one.label.tolist())), sorted(set(one.lesion.tolist()))
        data[key] = {
            "names": one.name.tolist(),
            "labels": labels,
            "label": np.searchsorted(labels, one.label).tolist(),
            "lesions": lesions,
            "lesion": np.searchsorted(lesions, one.lesion).tolist(),
            "episodes": [{"ways": e.ways, "shots": e.shots, "index": e.index.tolist()} for e in one.episodes],
        }
    return gzip.compress(json.dumps(data, separators=(",", ":")).encode(), 9, mtime=0)


def read_episodes(path: Path) -> dict[str, EpisodeSet]:
    """The named episode sets of a file that `pack_episodes` made. Raises InputError when it is something else."""
    try:
        with gzip.open(io.BytesIO(read_limited(path, LIMIT))) as file:
            text = file.read(LIMIT + 1)
        if len(text) > LIMIT:
            raise InputError(f"unpacks to more than {LIMIT:,} bytes", where=path)
        sets = {}
        for key, one in json.loads(text).items():
            name = np.array(one["names"], np.str_)
            label = np.array(one["labels"], np.str_)[one["label"]]
            lesion = np.array(one["lesions"], np.str_)[one["lesion"]]
            episodes = tuple(Episodes(e["ways"], e["shots"], np.array(e["index"], np.int64)) for e in one["episodes"])
            if not len(name) == len(label) == len(lesion) or any(
                e.index.ndim != 3 or e.index.shape[1] != e.ways or e.index.min() < 0 or e.index.max() >= len(name)
                for e in episodes
            ):
                raise InputError("names, labels and episodes do not fit together", where=f"{path} {key}")
            sets[key] = EpisodeSet(name, label, lesion, episodes)
        return sets
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            "is not an episode file", where=path, do="use the file that belongs to this version"
        ) from error
