"""Kinds of pictures that a bank does not hold, on made-up features."""

import numpy as np
import pytest

from bench.heads import PLAIN, measure
from bench.strange import HEADS, RULE, Kind, noticed, report, without
from sgps.rivals import Familiarity


@pytest.fixture(scope="module")
def samples():
    """Kinds that lie in corners of their own; three classes each that differ in one direction, and more in directions that say nothing."""
    random, found = np.random.default_rng(0), {}
    for corner, kind in enumerate(("skin", "chest", "brain")):
        label = np.repeat(["a", "b", "c"], 40)
        features = random.normal(size=(120, 12)) + 15 * np.eye(12)[corner]
        features[:, 6:9] += random.normal(size=(120, 3)) * 6
        features[np.arange(120), 3 + np.repeat([0, 1, 2], 40)] += 4
        found[kind] = (features, label, np.arange(120).astype(str))
    return found


def kind(samples, hidden, name="brain"):
    bank = without(hidden, samples)
    centre = bank.features.mean(0)
    features, label, lesion = samples[name]
    return bank, Kind(features - centre, label, lesion, Familiarity(bank, centre)(features), name == hidden)


def heads_of(kind, count):
    return measure(kind.features, kind.label, kind.lesion, count, 1, HEADS)


def test_a_hidden_kind_is_noticed_and_a_known_one_is_not(samples):
    bank, brain = kind(samples, "brain")
    assert {c.domain for c in bank.classes} == {"skin", "chest"} and len(bank.classes) == 4
    assert noticed(brain, 1)["3 x 5"] == 1
    bank, brain = kind(samples, "skin")
    assert {c.domain for c in bank.classes} == {"chest", "brain"} and noticed(brain, 1)["3 x 5"] == 0


def test_spread_serves_where_nothing_is_known(samples):
    by = heads_of(kind(samples, "brain")[1], 40)
    assert set(by) == {"2w2s", "2w5s", "3w5s", "3w10s", "3w20s"}
    gain = by["3w10s"][RULE]["gain"]
    assert gain["mean"] - gain["half"] > 0.03 and by["3w5s"]["as synthesis, kind is known"]["gain"]["mean"] == 0


def test_the_report_has_every_row(samples):
    brain = kind(samples, "brain")[1]
    results = {
        "episodes": 10,
        "seed": 1,
        "noticed": {"n": {"brain": (True, noticed(brain, 1)), "one class": (False, {"1 x 1": 0.5})}},
        "heads": {"n": {"brain": heads_of(brain, 10)}},
    }
    text = report(results)
    assert all(h in text for h in HEADS) and text.count("| n | brain |") == 1 + 5 and "| 50.0 | - | - |" in text
    assert PLAIN in text
