"""The head that reads spread, on made-up features."""

import numpy as np
import pytest

from bench.heads import HEADS, PLAIN, measure, one_disease, report


@pytest.fixture(scope="module")
def world():
    """Three classes that differ in one direction each, and by far more in directions that say nothing."""
    random, label = np.random.default_rng(0), np.repeat(["a", "b", "c"], 40)
    features = random.normal(size=(120, 12))
    features[:, 3:6] *= 6
    features[np.arange(120), np.repeat([0, 1, 2], 40)] += 4
    return features, label, np.arange(120).astype(str)


def test_spread_tells_nuisance_from_disease(world):
    by = measure(*world, count=40, seed=1)
    assert set(by) == {"2w2s", "2w5s", "3w5s", "3w10s", "3w20s"}  # 40 lesions a class leave too few beside 40 exemplars
    best = by["3w20s"]["spread, prior 1"]["gain"]
    assert best["mean"] - best["half"] > 0.05
    assert by["3w20s"][PLAIN]["gain"] == {"mean": 0.0, "half": 0.0}


def test_the_report_has_every_row(world):
    means = {"a": world[0][:40].mean(0), "other": np.ones(12), "third": -np.ones(12)}
    alone = one_disease(world[0], world[1], means, 10, 1)
    text = report({"episodes": 10, "seed": 1, "worlds": {"w": measure(*world, 10, 1)}, "one disease": {"w": alone}})
    assert all(h in text for h in HEADS) and text.count("| w |") == 5 + 3
