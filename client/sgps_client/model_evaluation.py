"""A classifier on labelled patients: which label of the data is which class of the model, and the figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sgps.catalogue import Catalogue, normal
from sgps.errors import InputError
from sgps.images import left_out
from sgps_client.data import Labelled, Picture, Source, read_picture
from sgps_client.data.labelled import FILE_NAME
from sgps_client.data.table import composed, counted
from sgps_client.evaluation import Choice, Detection, Figure, Result, choice, detection, outside_accepted
from sgps_client.prediction import Item, Progress, answer

if TYPE_CHECKING:
    from sgps.classifier import Classifier, Prediction

EXEMPLAR = "the exemplar and its patient must not be among the pictures: leave them out, the program cannot know them"


@dataclass(frozen=True)
class Evaluation:
    """result: the figures. scores: group -> scores for the histogram. bad: one line for each picture that could not be read."""

    result: Result
    facts: dict[str, Any]
    scores: dict[str, NDArray[np.float64]]
    bad: tuple[str, ...]


def matched(classifier: "Classifier", labels: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Label of the data -> named class of the model, by `given`, by name or id, or by a synonym of the catalogue.

    Raises InputError when `given` names a label or class that is not there, or no label fits.
    """
    catalogue = Catalogue.load()
    ids = dict(zip(classifier.labels, classifier.record.ids, strict=True))
    for label, name in given.items():
        if label not in labels or name not in classifier.named:
            known = f"labels {', '.join(sorted(labels)[:8])}; classes {', '.join(classifier.named)}"
            raise InputError("names no label of the data or no class of the model", where=f"{label}={name}", do=known)
    found = dict(given)
    for label in labels:
        entry = catalogue.find(label)
        for name in classifier.named:
            same = normal(label) in {normal(name), normal(ids[name] or name)} or (entry and ids[name] == entry.id)
            if label not in found and same:
                found[label] = name
    if not found:
        raise InputError(
            f"no label fits {', '.join(classifier.named)}",
            where="labels",
            do=f"say which with --class LABEL=NAME; the data have {', '.join(sorted(labels)[:8])}",
        )
    return found


def evaluate(
    classifier: "Classifier",
    model: Path,
    source: Source,
    labelled: Labelled,
    given: Mapping[str, str],
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """given: label of the data -> class of the model, where they have different names.

    Of one disease every other label is a negative. Of several diseases the pictures of other labels measure how often something
    foreign is accepted. Raises InputError when labels do not fit or a group is empty.
    """
    if not labelled.pictures:
        raise InputError(
            "no picture is left",
            where=source.path,
            do="; ".join([*labelled.problems, *left_out(source.names)]) or "check the path",
        )
    counts = Counter(p.label for p in labelled.pictures)
    names = matched(classifier, sorted(counts), {composed(label): name for label, name in given.items()})
    items = [Item(p.name, partial(read_picture, source, p.name)) for p in labelled.pictures]
    answers = answer(classifier, items, progress=progress)
    places = sorted(answers.predictions)
    pictures, predictions = [labelled.pictures[i] for i in places], [answers.predictions[i] for i in places]
    if not pictures:
        raise InputError("no picture could be read", where=source.path, do=next(iter(answers.bad), "check the path"))
    several = len(classifier.named) > 1
    result, scores = (_chosen if several else _detected)(classifier, pictures, predictions, names)
    notes = [EXEMPLAR, *labelled.notes, *(f"left out: {line}" for line in labelled.problems)]
    if answers.bad:
        notes.append(f"{counted(len(answers.bad), 'picture')} could not be read: left out")
    if labelled.unit_column == FILE_NAME:
        notes.append("intervals count pictures; with several pictures of a patient they are too narrow")
    facts = {
        "model": model.name,
        "classes": list(classifier.named),
        "labels": {label: {"pictures": n, "class": names.get(label)} for label, n in sorted(counts.items())},
        "pictures": len(pictures),
        "units": len({p.unit for p in pictures}),
        "unit_column": labelled.unit_column,
        "release_sha256": classifier.record.origin.release_sha256,
        "notes": notes,
    }
    return Evaluation(result, facts, scores, answers.bad)


Parts = tuple[Result, dict[str, NDArray[np.float64]]]


def _detected(
    classifier: "Classifier", pictures: Sequence[Picture], predictions: "Sequence[Prediction]", names: Mapping[str, str]
) -> Parts:
    positive = np.array([p.label in names for p in pictures])
    score = np.array([p.score for p in predictions])
    data = Detection(
        positive,
        score,
        np.array([p.probability for p in predictions]),
        np.array([p.accepted for p in predictions]),
        np.array([p.unit for p in pictures]),
    )
    return detection(data), {classifier.named[0]: score[positive], "others": score[~positive]}


def _chosen(
    classifier: "Classifier", pictures: Sequence[Picture], predictions: "Sequence[Prediction]", names: Mapping[str, str]
) -> Parts:
    inside = np.array([p.label in names for p in pictures])
    unit = np.array([p.unit for p in pictures])
    scaled = np.array([[p.scores[n] for n in classifier.named] for p in predictions])
    scaled /= classifier.record.calibration.temperature
    exp = np.exp(scaled - scaled.max(1, keepdims=True))
    probability = exp / exp.sum(1, keepdims=True)
    truth = np.array([classifier.named.index(names[p.label]) for p in pictures if p.label in names])
    refused = np.array([p.none_of_these for p in predictions])
    result = choice(Choice(classifier.named, truth, probability[inside], refused[inside], unit[inside]))
    if not inside.all():
        accepted = np.array([p.accepted for p in predictions])
        figure: Figure = outside_accepted(accepted[~inside], unit[~inside])
        result = Result(
            {**result.figures, "outside_accepted": figure}, result.reliability, None, result.notes, result.table
        )
    best = probability.max(1)
    right = np.zeros(len(pictures), bool)
    right[inside] = probability[inside].argmax(1) == truth
    groups = {"right": best[right], "wrong": best[inside & ~right], "of other classes": best[~inside]}
    return result, {name: values for name, values in groups.items() if len(values)}
