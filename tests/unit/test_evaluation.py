"""Figures that can be known beforehand, and intervals that count patients, not pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sgps.errors import InputError
from sgps_client import evaluation_report
from sgps_client.evaluation import (
    Choice,
    Detection,
    Figure,
    area,
    as_mapping,
    calibration_error,
    choice,
    detection,
    reliability,
    roc,
)

RNG = np.random.default_rng(0)


def some(patients: int = 80, views: int = 1, shift: float = 1.5, seed: int = 0) -> Detection:
    random = np.random.default_rng(seed)
    positive = np.arange(patients) < patients // 4
    score = random.normal(size=patients) + shift * positive
    p = 1 / (1 + np.exp(-(2 * score - 2)))
    columns = (np.repeat(a, views) for a in (positive, score, p, score > 1, np.arange(patients).astype(str)))
    return Detection(*columns)


def test_point_figures_of_a_detection() -> None:
    data = some()
    figures = detection(data).figures
    assert figures["auroc"].value == pytest.approx(roc_auc_score(data.positive, data.score))
    assert figures["sensitivity"].value == data.accepted[:20].mean()
    assert figures["false_alarm_rate"].value == pytest.approx(data.accepted[20:].mean())
    assert figures["accuracy"].value == pytest.approx((data.accepted == data.positive).mean())
    assert figures["balanced_accuracy"].value == pytest.approx(
        (figures["sensitivity"].value + 1 - figures["false_alarm_rate"].value) / 2
    )
    wrong = (data.probability - data.positive) ** 2
    assert figures["brier"].value == pytest.approx((wrong[:20].mean() + wrong[20:].mean()) / 2)
    assert all(f.low <= f.value <= f.high and f.low < f.high for f in figures.values())


def test_roc_with_ties_and_weights_is_that_of_scikit_learn() -> None:
    y, score = RNG.random(200) < 0.3, RNG.integers(0, 12, 200).astype(float)
    weights = RNG.integers(0, 4, (3, 200)).astype(float)
    expected = [roc_auc_score(y, score, sample_weight=w) for w in weights]
    assert area(*roc(y, score, weights)) == pytest.approx(expected)


def test_ten_pictures_of_a_patient_are_no_more_evidence_than_one() -> None:
    """The same patients photographed ten times: the same interval. Counted as pictures it would be three times narrower."""
    one, ten = detection(some()).figures, detection(some(views=10)).figures
    width = {n: (one[n].high - one[n].low, ten[n].high - ten[n].low) for n in one}
    assert all(b == pytest.approx(a, rel=0.05, abs=0.004) for a, b in width.values())
    data = some(views=10)
    loose = Detection(data.positive, data.score, data.probability, data.accepted, np.arange(800).astype(str))
    figures = detection(loose).figures
    assert figures["auroc"].high - figures["auroc"].low < 0.5 * width["auroc"][0]


def test_intervals_hold_what_they_promise() -> None:
    """AUROC of two normals a distance 1.5 apart is Phi(1.5 / sqrt 2) = .8556; about 95 of 100 intervals hold it."""
    held = [f.low <= 0.8556 <= f.high for f in (detection(some(120, seed=s)).figures["auroc"] for s in range(60))]
    assert sum(held) >= 52


def test_what_never_happened_may_still_happen() -> None:
    data = some(40, shift=9)
    quiet = Detection(data.positive, data.score, data.probability, data.score > 4, data.unit)
    figures = detection(quiet).figures
    assert figures["false_alarm_rate"].value == 0 and figures["false_alarm_rate"].high == pytest.approx(
        0.1157, abs=1e-3
    )
    assert figures["sensitivity"].value == 1 and figures["sensitivity"].low == pytest.approx(0.6915, abs=1e-3)


def test_a_choice_without_a_mistake_may_still_make_one() -> None:
    data = three_classes()
    sure = Choice(data.labels, data.truth, np.eye(3)[data.truth], np.zeros(90, bool), data.unit)
    figures, patients = choice(sure).figures, len({*data.unit.tolist()})
    bound = 1 - 0.025 ** (1 / patients)
    assert (figures["none_of_these"].value, figures["none_of_these"].high) == (0, pytest.approx(bound))
    assert (figures["accuracy"].value, figures["accuracy"].low) == (1, pytest.approx(1 - bound))


def test_one_sided_data_are_refused_and_few_patients_are_named() -> None:
    data = some(40)
    with pytest.raises(InputError, match="the disease and others"):
        detection(Detection(data.positive | True, data.score, data.probability, data.accepted, data.unit))
    assert detection(data).notes[1:] == ("only 10 patients of the disease: the interval says little",)


def test_calibration_error_by_hand() -> None:
    """Two bins: stated .85 and seen 1/2, stated .15 and seen 0: (.35 + .15) / 2."""
    p, y = np.array([0.85, 0.85, 0.15, 0.15]), np.array([True, False, False, False])
    weights = np.array([[1.0, 1, 1, 1], [1, 0, 1, 0]])
    assert calibration_error(p, y, weights) == pytest.approx([0.25, 0.15])
    assert [(b.count, b.observed) for b in reliability(p, y, np.ones(4))] == [(2, 0), (2, 0.5)]
    assert calibration_error(np.ones(3), np.ones(3, bool), np.ones((1, 3))) == 0


def test_calibration_does_not_depend_on_how_many_negatives_there_are() -> None:
    """The probability is stated at even odds; nine more copies of every negative change neither error nor score."""
    data = some()
    copies = np.concatenate([np.arange(80), np.tile(np.arange(20, 80), 9)])
    more = Detection(*(a[copies] for a in (data.positive, data.score, data.probability, data.accepted, data.unit)))
    a, b = detection(data).figures, detection(more).figures
    assert all(a[n].value == pytest.approx(b[n].value) for n in ("ece", "brier", "auroc"))


def three_classes() -> Choice:
    truth = np.repeat([0, 1, 2], 30)
    logits = RNG.normal(size=(90, 3)) + 2 * np.eye(3)[truth]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Choice(["a", "b", "c"], truth, p, p.max(1) < 0.45, np.arange(90).astype(str))


def test_point_figures_of_a_choice() -> None:
    data = three_classes()
    result = choice(data)
    right = (data.probability.argmax(1) == data.truth) & ~data.refused
    assert result.figures["accuracy"].value == pytest.approx(right.mean())
    assert result.figures["balanced_accuracy"].value == pytest.approx(right.reshape(3, 30).mean(1).mean())
    assert result.figures["auroc"].value == pytest.approx(
        roc_auc_score(data.truth, data.probability, multi_class="ovr", average="macro")
    )
    assert sum(sum(row.values()) for row in result.table.values()) == 90
    assert result.table["a"]["none of these"] == data.refused[:30].sum()
    with pytest.raises(InputError, match="two classes"):
        choice(Choice(data.labels, data.truth * 0, data.probability, data.refused, data.unit))


def facts() -> dict[str, object]:
    return {"model": "m", "pictures": 80, "units": 80, "unit_column": "patient_id", "notes": ["a note"]}


def test_files_are_written_whole(tmp_path: Path) -> None:
    data = some()
    result = detection(data)
    groups = {"the disease": data.score[data.positive], "others": data.score[~data.positive]}
    evaluation_report.write(tmp_path / "out", result, facts(), groups, "score")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "evaluation.json", "evaluation.md", "roc.png", "reliability.png", "scores.png",
    }  # fmt: skip
    body = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert body["figures"] == as_mapping(result)["figures"]
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert f"| AUROC | {result.figures['auroc']} |" in text and "* a note" in text
    with pytest.raises(InputError, match="exists already"):
        evaluation_report.write(tmp_path / "out", result, facts(), groups, "score")


def test_nothing_is_left_when_a_plot_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="concatenate"):
        evaluation_report.write(tmp_path / "out", detection(some()), facts(), {}, "score")
    assert not list(tmp_path.iterdir())


def test_choice_report_has_its_table(tmp_path: Path) -> None:
    evaluation_report.write(tmp_path / "out", choice(three_classes()), facts(), {"a": np.arange(3.0)}, "probability")
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert "| truth \\ answer | a | b | c | none of these |\n|---|---|---|---|---|\n" in text and "roc.png" not in text


def test_figure_reads_as_percent() -> None:
    assert str(Figure(0.5, 0.25, 0.75)) == "50.0 % (25.0 to 75.0)"
