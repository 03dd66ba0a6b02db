"""Episodes hold one image per lesion, repeat themselves, and are scored as the definitions say."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sgps.episodes import (
    SETTINGS,
    Episodes,
    EpisodeSet,
    accuracy,
    auroc,
    exemplar_score,
    interval,
    one_exemplar_auroc,
    pack_episodes,
    paired_difference,
    read_episodes,
    sample_episodes,
)
from sgps.errors import InputError

CLASSES = ("a", "b", "c")
LESION = np.repeat(np.arange(90), 2).astype(str)  # two images each
LABEL = np.repeat(CLASSES, 60)


def test_an_episode_has_distinct_classes_and_no_lesion_twice() -> None:
    episodes = sample_episodes(LABEL, LESION, CLASSES, 2, 5, count=50)
    assert episodes.index.shape == (50, 2, 20)
    for episode in episodes.index:
        assert len(set(LESION[episode.ravel()])) == episode.size
        labels = [set(LABEL[row]) for row in episode]
        assert all(len(one) == 1 for one in labels)
        assert labels[0] != labels[1]


def test_episodes_depend_on_the_seed_alone() -> None:
    first = sample_episodes(LABEL, LESION, CLASSES, 3, 1, count=20)
    assert np.array_equal(first.index, sample_episodes(LABEL, LESION, CLASSES, 3, 1, count=20).index)
    assert not np.array_equal(first.index, sample_episodes(LABEL, LESION, CLASSES, 3, 1, count=20, seed=1).index)


def test_too_few_lesions_or_classes_are_refused() -> None:
    with pytest.raises(InputError, match="a: has 30 lesions; an episode needs 31"):
        sample_episodes(LABEL, LESION, CLASSES, 2, 16)
    with pytest.raises(InputError, match="4 classes are needed"):
        sample_episodes(LABEL, LESION, CLASSES, 4, 1)


def test_accuracy_is_one_on_separated_classes_and_chance_on_noise() -> None:
    random = np.random.default_rng(0)
    apart = np.eye(3)[np.searchsorted(CLASSES, LABEL)] + 0.01 * random.normal(size=(180, 3))
    noise = random.normal(size=(180, 8))
    for ways, shots in SETTINGS:
        episodes = sample_episodes(LABEL, LESION, CLASSES, ways, shots, count=200)
        assert accuracy(apart, episodes).min() == 1.0
        found = interval(accuracy(noise, episodes))
        assert abs(found.mean - 1 / ways) < 0.06


def test_accuracy_counts_queries_only() -> None:
    features = np.array([[1.0, 0], [0, 1.0], [1, 0.1], [1, 0.2], [0.1, 1], [1, 0]])
    episodes = Episodes(2, 1, np.array([[[0, 2, 3], [1, 4, 5]]]))  # the last query of the second class is wrong
    assert accuracy(features, episodes).tolist() == [0.75]


def test_a_constant_gain_has_a_paired_interval_of_no_width() -> None:
    values = np.random.default_rng(0).random(100)
    found = paired_difference(values + 0.05, values)
    assert found.mean == pytest.approx(0.05)
    assert found.half == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="same episodes"):
        paired_difference(values, values[:50])


def test_the_interval_covers_the_mean_in_about_95_of_100_cases() -> None:
    random = np.random.default_rng(1)
    found = [interval(random.random(100)) for _ in range(1000)]
    assert 0.92 < np.mean([abs(i.mean - 0.5) < i.half for i in found]) < 0.98


def test_auroc_agrees_with_scikit_learn_ties_included() -> None:
    random = np.random.default_rng(2)
    positive = random.random(300) < 0.3
    score = np.round(random.random(300) + 0.3 * positive, 1)
    assert auroc(score, positive) == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    with pytest.raises(ValueError, match="positives and negatives"):
        auroc(score, np.ones(300, bool))


def test_one_exemplar_auroc_is_one_when_apart_and_half_when_not() -> None:
    random = np.random.default_rng(3)
    noise = random.normal(size=(180, 8))
    apart = np.eye(3)[np.searchsorted(CLASSES, LABEL)] + 0.01 * random.normal(size=(180, 3))
    assert one_exemplar_auroc(apart, LABEL, LESION, ("b",), CLASSES, draws=10)["b"].min() == 1.0
    assert one_exemplar_auroc(noise, LABEL, LESION, ("b",), CLASSES, draws=100)["b"].mean() == pytest.approx(
        0.5, abs=0.05
    )


def test_rivals_lower_the_score_of_what_looks_like_them() -> None:
    exemplar, queries, rivals = np.array([[1.0, 1]]), np.array([[1.0, 0], [0, 1.0]]), np.array([[0, 1.0]])
    plain, with_rivals = exemplar_score(exemplar, queries), exemplar_score(exemplar, queries, rivals)
    assert plain[0] == pytest.approx(plain[1])
    assert with_rivals[0] - with_rivals[1] == pytest.approx(0.3)


def test_an_episode_file_gives_back_what_was_packed(tmp_path: Path) -> None:
    names = np.array([f"{c}/{i}.jpg" for i, c in enumerate(LABEL)])
    episodes = tuple(sample_episodes(LABEL, LESION, CLASSES, *s, count=5) for s in SETTINGS)
    data = pack_episodes({"test": EpisodeSet(names, LABEL, LESION, episodes)})
    assert data == pack_episodes({"test": EpisodeSet(names, LABEL, LESION, episodes)})
    path = tmp_path / "episodes.json.gz"
    path.write_bytes(data)
    found = read_episodes(path)["test"]
    assert found.name.tolist() == names.tolist()
    assert found.label.tolist() == LABEL.tolist()
    assert found.lesion.tolist() == LESION.tolist()
    assert [e.name for e in found.episodes] == ["2w1s", "2w5s", "3w1s", "3w5s"]
    assert all(np.array_equal(a.index, b.index) for a, b in zip(found.episodes, episodes, strict=True))


def test_a_damaged_episode_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "episodes.json.gz"
    good = json.loads(gzip.decompress(pack_episodes({"t": EpisodeSet(LABEL, LABEL, LESION, ())})))
    bad_index = {"t": good["t"] | {"episodes": [{"ways": 1, "shots": 1, "index": [[[0, 999]]]}]}}
    for data in (
        b"nothing",
        gzip.compress(b"{")[:-4],
        gzip.compress(b"[1]"),
        gzip.compress(json.dumps(bad_index).encode()),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"episodes\.json\.gz"):
            read_episodes(path)
