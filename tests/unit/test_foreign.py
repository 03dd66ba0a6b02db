"""Pictures of another kind are refused; an earlier model folder loads as before; temperature and refusal never change the largest output."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from sgps import foreign
from sgps.bank import Bank
from sgps.calibration import Calibration
from sgps.classifier import CALIBRATION, Classifier
from sgps.foreign import Foreign
from sgps.record import Record
from sgps.shipped import shipped_release
from sgps.synthesis import SCALE, synthesize


def known(**more):
    given = {"ids": ("a", "b"), "weight": ((1.0, 0.0), (0.0, 2.0)), "bias": (0.0, -1.0), "limit": 0.5, "measured": ()}
    return Foreign(**{**given, **more})


def test_another_kind_is_one_whose_best_class_is_ahead_of_the_best_output():
    features, logits = np.array([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]]), np.array([[2.0, 1.0], [4.6, 1.0], [2.6, 9.0]])
    assert known().found(features, logits).tolist() == [True, False, False]
    assert known(limit=1.5).found(features, logits).tolist() == [False, False, False]


@pytest.mark.parametrize(
    "wrong", [{"bias": (0.0,)}, {"weight": ((1.0,), (1.0, 2.0))}, {"ids": (), "weight": (), "bias": ()}]
)
def test_parts_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValidationError):
        known(**wrong)


def test_drawn_classes_and_the_kind_itself_are_no_other_kind():
    bank = Bank.of(shipped_release())
    kinds = {bank.classes[i].domain for i in foreign.classes(bank, ["dermoscopy"])}
    assert kinds == {"chest x-ray", "breast ultrasound", "lung histology"}


@pytest.mark.parametrize("named", [1, 3])
def test_another_kind_is_none_of_these_and_no_claim_and_nothing_else_changes(named):
    c = Calibration(
        named=named, false_alarms=0.1, negatives=tuple(np.linspace(-9, -8, 40)), least=-1e9, slope=1.0, offset=0.0,
        temperature=3.0, measured=(),
    )  # fmt: skip
    logits = np.random.default_rng(0).normal(size=(20, 3)) + np.array([3, 0, 0])
    other = np.arange(20) < 7
    plain, told = c.decide(logits), c.decide(logits, other)
    assert told.none[:7].all() and not told.accepted[:7].any()
    assert np.array_equal(told.none[7:], plain.none[7:]) and np.array_equal(told.accepted[7:], plain.accepted[7:])
    assert np.array_equal(told.probability, plain.probability)
    if named > 1:
        hot = c.model_copy(update={"temperature": 0.2}).decide(logits)
        assert np.array_equal(told.output, logits.argmax(1)) and np.array_equal(hot.output, told.output)


@pytest.mark.parametrize("several", [False, True])
def test_a_classifier_of_skin_refuses_x_rays_ultrasound_and_histology(several, drawn):
    """With the shipped release, on the bank's samples that are kept apart; and what it measured stands in its record."""
    names = ["df", "vasc"] if several else ["df"]
    bank, release = Bank.of(shipped_release()), shipped_release()
    made = synthesize({n: drawn(600 + k, 0, 1) for k, n in enumerate(names)}, {}, release)
    own, *others = made.record.foreign.measured
    assert [s.name for s in others] == ["chest x-ray", "breast ultrasound", "lung histology"]
    assert own.name == "dermoscopy" and own.rate < 0.1 and all(s.rate > 0.9 for s in others)
    weight, bias = (made.state[f"classifier.{n}"].numpy() for n in ("weight", "bias"))
    for s in others:
        features = bank.features[bank.samples(bank.of_domain(s.name), apart=True)]
        logits = (features @ weight.T + bias).astype(np.float64)
        d = made.record.calibration.decide(logits, made.record.foreign.found(features, logits))
        assert d.none.sum() >= s.hits and d.accepted.sum() <= s.n - s.hits


def test_the_head_of_other_kinds_is_made_like_the_outputs():
    release = shipped_release()
    bank, centre = Bank.of(release), release.memory().coordinates.mean.astype(np.float32)
    scale = float(release.tensors("generator.safetensors", SCALE)[""].item())
    weight, bias = foreign.head(bank, [4], centre, scale)
    v = bank.means[4] - centre
    assert np.allclose(weight[0], scale * v / np.linalg.norm(v)) and np.allclose(bank.means[4] @ weight[0] + bias[0], scale * np.linalg.norm(v), rtol=1e-4)  # fmt: skip


def test_a_folder_of_format_1_loads_and_answers_as_before(one_saved, drawn):
    folder, made = one_saved
    text = json.loads((folder / CALIBRATION).read_text())
    assert text["format"] == 2 and text["foreign"]
    del text["foreign"]
    text["format"] = 1
    (folder / CALIBRATION).write_text(json.dumps(text))
    old, images = Classifier.load(folder), drawn(611, 0, 3)
    assert old.record.foreign is None
    for a, b in zip(old.predict(images), made.predict(images), strict=True):
        assert a.scores == b.scores and not a.other_kind and (a.accepted == b.accepted or b.other_kind)
    with pytest.raises(ValidationError):
        Record.model_validate({**text, "format": 3})


@pytest.fixture
def one_saved(drawn, tmp_path):
    made = synthesize({"df": drawn(610, 0, 1)}, {}, shipped_release())
    made.save(tmp_path / "model")
    return tmp_path / "model", made
