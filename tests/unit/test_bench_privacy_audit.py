"""The audit of the step that ships: its short form, what it prints and writes, and that it fails when a claim is exceeded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer

from sgps.release import Release
from sgps_privacy.engine import Parameters, PrivateRound, Record, SecureDPOptimizer

ROOT = Path(__file__).resolve().parents[2]


class NothingClipped(SecureDPOptimizer):
    def clip_and_accumulate(self) -> None:
        with self._only(self.params, 1e12):
            DPOptimizer.clip_and_accumulate(self)


class CountsWithoutNoise(SecureDPOptimizer):
    def add_noise(self) -> None:
        super().add_noise()
        self.params[-1].grad = self.params[-1].summed_grad.clone()


class CountInTheReply(PrivateRound):
    def run(self, start: Parameters, records: Sequence[Record | None], slots: int) -> dict[str, NDArray[np.float32]]:
        patients = np.array([sum(r is not None for r in records)], dtype=np.float32)
        return {**super().run(start, records, slots), "patients": patients}


class LossInTheReply(PrivateRound):
    def run(self, start: Parameters, records: Sequence[Record | None], slots: int) -> dict[str, NDArray[np.float32]]:
        losses = [float(self.loss(start, r)) for r in records if r is not None]
        return {**super().run(start, records, slots), "loss": np.array([np.mean(losses or [0.0])], dtype=np.float32)}


class NeighbourInTheRecord(PrivateRound):
    def gradients(self, theta: Parameters, records: list[Record | None]) -> Parameters:
        mixed = [
            r if r is None or before is None else {n: r[n] + before[n] for n in r}
            for r, before in zip(records, [records[-1], *records[:-1]], strict=True)
        ]
        return super().gradients(theta, mixed)


class BrokenRecordKept(PrivateRound):
    """What is not finite becomes zero, and the rest of the record stays."""

    def gradients(self, theta: Parameters, records: list[Record | None]) -> Parameters:
        mended = [None if r is None else {n: torch.nan_to_num(t, 0.0, 0.0, 0.0) for n, t in r.items()} for r in records]
        return super().gradients(theta, mended)


PLANTED_IN_THE_STEP: dict[type, str] = {
    NothingClipped: "replay",
    NeighbourInTheRecord: "replay",
    CountsWithoutNoise: "noise size",
    BrokenRecordKept: "bad record",
    CountInTheReply: "reply",
    LossInTheReply: "reply",
}
"""Faults for the real records, beside those of test_privacy_audit.py -> the check of the step that names each."""


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch, release: Release) -> None:
    """bench lies beside the packages; the audit needs the shipped release."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.slow
def test_the_short_form_holds_and_lists_every_planted_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], release: Release
) -> None:
    from bench.privacy_audit import faults, main

    assert main(["--quick", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for epsilon in (1, 3, 8):
        assert f"epsilon {epsilon}, game: mu lower bound" in printed
        assert f"epsilon {epsilon}, one run" in printed
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["holds"] and found["numbers"] == len(release.manifest.classes) * (64 + 1)
    assert all(b["lower"] <= b["claimed"] for b in found["bounds"])
    assert {f["fault"] for f in found["faults"]} == {fault.__name__ for fault in faults()}
    assert all(f["problem"] or f["step"] for f in found["faults"])
    named = {f["fault"]: f["step"][0]["check"] for f in found["faults"] if f["step"]}
    assert named == {fault.__name__: check for fault, check in PLANTED_IN_THE_STEP.items()}
    report = (tmp_path / "out" / "results.md").read_text()
    assert all(fault.__name__ in report for fault in faults())


@pytest.mark.parametrize("bound", ["mu", "epsilon"])
def test_a_lower_bound_above_the_claim_is_said_and_fails(bound: str) -> None:
    from bench._step_games import Bound

    found = Bound("epsilon 3", "game", bound, 0.8, 0.719, 0.999, 200, "mu-GDP")
    assert not found.holds and "lower bound 0.800, claimed 0.719" in found.line() and "EXCEEDS" in found.line()


def test_the_game_refutes_a_step_that_counts_a_patient_twice(tmp_path: Path, release: Release) -> None:
    from bench._step import SiteFolder
    from bench._step_games import game

    class Twice(PrivateRound):
        def records_of_step(self, records: list[Record | None]) -> list[Record | None]:
            return [*records, *records[:1]]

    folder = SiteFolder(tmp_path, release, 3, [8.0])
    step, others = folder.step(8.0), [r for r in folder.records if r is not None]
    honest = game(step.planted(PrivateRound), others, 150, "epsilon 8")
    doubled = game(step.planted(Twice), others, 250, "epsilon 8")  # with 150 the fault escapes once in 80 runs
    assert all(b.holds for b in honest) and honest[0].lower > 0.2 * honest[0].claimed
    assert not doubled[0].holds


@pytest.mark.slow
def test_the_command_fails_on_a_planted_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import privacy_audit

    monkeypatch.setattr(privacy_audit, "faults", dict)
    planted = type("Planted", (PrivateRound,), {"optimizer_class": CountsWithoutNoise})
    assert privacy_audit.main(["--quick", "--out", str(tmp_path)], planted) == 1
    assert not json.loads((tmp_path / "results.json").read_text())["holds"]
