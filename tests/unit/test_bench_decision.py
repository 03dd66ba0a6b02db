"""Temperature and refusal are judged on public classes, each with the unknown class taken out of the bank."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import decision, judge
from bench.networks import Judge, judges
from sgps.bank import Bank
from sgps.errors import InputError
from sgps.generator import KNOWN_KIND
from sgps.shipped import shipped_release
from sgps.synthesis import SCALE


def test_a_class_that_is_taken_out_leaves_the_others_as_they_were():
    whole = Bank.of(shipped_release())
    less = decision.without(whole, 1)
    assert [c.id for c in less.classes] == [c.id for c in whole.classes if c.id != "mel"]
    assert len(less.features) == (whole.label != 1).sum() and less.label.max() == len(less.classes) - 1
    for place, c in enumerate(less.classes):
        before = [x.id for x in whole.classes].index(c.id)
        assert np.array_equal(less.features[less.label == place], whole.features[whole.label == before])
        assert np.array_equal(less.means[place], whole.means[before])


def test_tasks_with_drawn_classes_among_them_make_skin_too_sure():
    release = shipped_release()
    bank, centre = Bank.of(release), release.memory().coordinates.mean.astype(np.float32)
    scale = float(release.tensors("generator.safetensors", SCALE)[""].item())
    for ways, shots in decision.SETTINGS:
        found = decision.temperatures(bank, "dermoscopy", centre, scale, ways, shots, KNOWN_KIND)
        assert found[decision.OWN] > 1.5 * found[decision.MIXED]


@pytest.mark.slow
def test_the_judge_measures_refusal_of_unknown_classes_and_other_kinds(shared_data, tmp_path, monkeypatch):
    """With features that are means of colours, so that nothing is encoded: the figures mean nothing, their sums do."""
    release = shipped_release()
    mix = np.random.default_rng(0).normal(size=(3, 1280)) / 100

    def features(_, pictures, rows, out):
        return np.stack(
            [np.asarray(pictures.image(int(r)).resize((4, 4)), np.float32).mean((0, 1)) @ mix for r in rows]
        ).astype(np.float32)

    def few(data, out, seed):
        found = judges(data, out, seed)
        return [
            Judge(
                j.name,
                j.pictures,
                np.concatenate([j.rows[j.pictures.label[j.rows] == c][:25] for c in classes]),
                j.centre,
            )
            for j in found
            if len(classes := sorted(set(j.pictures.label[j.rows].tolist()))[:4])
        ]

    monkeypatch.setattr("bench.networks.DRAWN", range(7000, 7004))
    monkeypatch.setattr(decision, "judges", few)
    monkeypatch.setattr(decision, "base_features", features)
    monkeypatch.setattr(decision, "MOST", 5)
    monkeypatch.setattr(decision, "MODES", ((1, 1), (2, 1)))
    r = judge.run(tmp_path, tasks=2, pairs=2, release=release, data=shared_data, classifiers=3)
    for by in r["refusal"].values():
        for shown in by.values():
            for who, found in shown.items():
                either = found["none of these"]
                assert max(found["largest logit below"], found["another kind"]) <= either <= 1
                assert ("largest logit" in found) == (who != "known")
    for by in r["temperature"].values():
        for arms in by.values():
            assert len({a["accuracy"] for a in arms.values()}) == 1, "a temperature never changes an answer"
            assert arms["best here"]["log loss"] <= min(a["log loss"] for a in arms.values())
    assert "Classifiers of skin." in (tmp_path / "results.md").read_text()
    with pytest.raises(InputError, match="is not there"):
        judge.run(tmp_path, tasks=2, pairs=2, data=tmp_path, classifiers=3)
