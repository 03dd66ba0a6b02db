"""The few-shot tasks of `bench.tuning`: synthesis with a changed generator, on patients by their numbers."""

from pathlib import Path

import numpy as np

from bench.shipped import Texts
from bench.tuning import HEAD, Judge, Patient
from sgps.draw import PRESETS
from sgps.shipped import shipped_release
from sgps.tuning import start


def test_its_tasks_are_solved_by_synthesis_where_patients_lie_apart(tmp_path: Path) -> None:
    release, random = shipped_release(), np.random.default_rng(0)
    place = release.memory().coordinates
    people = []
    for number, name in enumerate([n for n in PRESETS if n in release.manifest.classes][:3]):
        rows = 2 * place.radius * np.eye(64)[[number] * 3] + place.radius * random.normal(size=(3, 64)) / 30
        people += [Patient(name, x[None].astype(np.float32), ()) for x in place.lift(rows)]
    judge = Judge(people, tasks=2)
    zero = {n: np.zeros_like(a) for n, a in start(release, HEAD).items()}
    made = judge.synthesizer(release, HEAD, zero, tmp_path / "release", Texts())
    assert judge.accuracy(made).tolist() == [1, 1]
    assert len(judge.one_exemplar(made)) == 6 and min(judge.one_exemplar(made)) > 0.9
