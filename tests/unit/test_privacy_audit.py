"""The real engine passes every check; each plausible mistake, planted in a subclass, is caught by the check that names it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer

from sgps_privacy.audit import CHECKS, run
from sgps_privacy.engine import Parameters, PrivateRound, Record, SecureDPOptimizer
from sgps_privacy.noise import Grid, Ints, discrete_gaussian


class NoiseWithoutClip(SecureDPOptimizer):
    def add_noise(self) -> None:
        self.grid = Grid(1.0, self.noise_multiplier, self.grid.size)
        super().add_noise()


class NoiseSharedAmongSites(SecureDPOptimizer):
    def add_noise(self) -> None:
        self.grid = Grid(self.max_grad_norm, self.noise_multiplier / math.sqrt(3), self.grid.size)
        super().add_noise()


class OtherSigmaThanCharged(SecureDPOptimizer):
    def add_noise(self) -> None:
        self.grid = Grid(self.max_grad_norm, self.noise_multiplier * 0.8, self.grid.size)
        super().add_noise()


class GroupUnclipped(SecureDPOptimizer):
    def clip_and_accumulate(self) -> None:
        for group, clip in zip(self.param_groups, (self.max_grad_norm, 1e12), strict=True):
            with self._only(group["params"], clip):
                DPOptimizer.clip_and_accumulate(self)


class EveryGroupClippedToTheWhole(SecureDPOptimizer):
    def clip_and_accumulate(self) -> None:
        self.group_clips = [self.max_grad_norm] * len(self.param_groups)
        super().clip_and_accumulate()


class NoiseReused(SecureDPOptimizer):
    kept: Ints | None = None

    def draw(self, count: int) -> Ints:
        if self.kept is None:
            self.kept = discrete_gaussian(count)
        return self.kept


class OneNumberForAll(SecureDPOptimizer):
    def draw(self, count: int) -> Ints:
        return np.repeat(discrete_gaussian(1 + count // 4), 4)[:count]


class NoiseInFirstStepOnly(SecureDPOptimizer):
    done = False

    def draw(self, count: int) -> Ints:
        self.done, before = True, self.done
        return np.zeros(count, dtype=np.int64) if before else discrete_gaussian(count)


class OneGroupWithoutNoise(SecureDPOptimizer):
    def add_noise(self) -> None:
        super().add_noise()
        for p in self.param_groups[1]["params"]:
            p.grad = p.summed_grad.clone()


class FloatNoiseFromTorch(SecureDPOptimizer):
    add_noise = DPOptimizer.add_noise


class SeededNoise(SecureDPOptimizer):
    def draw(self, count: int) -> Ints:
        return np.rint(np.random.standard_normal(count) * 2**24).astype(np.int64)


class BadRecordsDropped(SecureDPOptimizer):
    """Divides by the records that have a gradient."""

    def scale_grad(self) -> None:
        rows = torch.stack([p.grad_sample.flatten(1).abs().sum(1) > 0 for p in self.params]).any(0)
        self.expected_batch_size = max(1, int(rows.sum()))
        super().scale_grad()


class ClipAfterSumming(PrivateRound):
    def gradients(self, theta: Parameters, records: list[Record | None]) -> Parameters:
        return {n: g.sum(0, keepdim=True) for n, g in super().gradients(theta, records).items()}


class RecordTwice(PrivateRound):
    def records_of_step(self, records: list[Record | None]) -> list[Record | None]:
        chosen = super().records_of_step(records)
        return [*chosen, *chosen[:1]]


class NeighbourAsSupport(PrivateRound):
    """A patient's image takes part in the next patient's record."""

    def gradients(self, theta: Parameters, records: list[Record | None]) -> Parameters:
        mixed = [
            r if r is None or before is None else {**r, "x": r["x"] + before["x"]}
            for r, before in zip(records, [records[-1], *records[:-1]], strict=True)
        ]
        return super().gradients(theta, mixed)


class BatchStatistics(PrivateRound):
    """Gradients centred by their mean over the batch."""

    def gradients(self, theta: Parameters, records: list[Record | None]) -> Parameters:
        return {n: g - g.mean(0) for n, g in super().gradients(theta, records).items()}


class PrivateDenominator(PrivateRound):
    def denominator(self, records: list[Record | None]) -> int:
        return max(1, sum(record is not None for record in records))


class EmptyStepSkipped(PrivateRound):
    def run(self, start: Parameters, records: Sequence[Record | None], slots: int) -> dict[str, NDArray[np.float32]]:
        if not any(records):
            self.noised = [np.zeros(sum(p.numel() for p in start.values()))] * self.terms.steps
            return {n: p.numpy() * 0 for n, p in start.items()}
        return super().run(start, records, slots)


class OneStepMoreThanCharged(PrivateRound):
    def run(self, start: Parameters, records: Sequence[Record | None], slots: int) -> dict[str, NDArray[np.float32]]:
        arrays = super().run(start, records, slots)
        first = self.noised
        super().run(start, records, slots)
        self.noised = [*first, self.noised[0]]
        return arrays


class BadRecordKept(PrivateRound):
    """Non-finite gradients go into the sum, where they are set to zero too late."""

    def gradients(self, theta: Parameters, records: list[Record | None]) -> Parameters:
        rows = super().gradients(theta, records)
        for i, record in enumerate(records):
            if record is not None and not record["x"].isfinite().all():
                rows = {
                    n: torch.where(torch.arange(len(g)).view(-1, *[1] * (g.dim() - 1)) == i, 1.0, g)
                    for n, g in rows.items()
                }
        return rows


class BadRecordRaises(PrivateRound):
    def gradients(self, theta: Parameters, records: list[Record | None]) -> Parameters:
        for record in records:
            if record is not None:
                self.loss(theta, record)
        return super().gradients(theta, records)


class TwiceTheRate(PrivateRound):
    def records_of_step(self, records: list[Record | None]) -> list[Record | None]:
        coins = np.random.default_rng().random(len(records)) < 2 * self.terms.q
        return [r for r, heads in zip(records, coins, strict=True) if heads]


class ShuffledAndCalledPoisson(PrivateRound):
    def records_of_step(self, records: list[Record | None]) -> list[Record | None]:
        chosen = np.random.default_rng().choice(len(records), round(self.terms.q * len(records)), replace=False)
        return [records[i] for i in sorted(chosen)]


PLANTED: dict[type, str] = {
    NoiseWithoutClip: "noise size",
    NoiseSharedAmongSites: "noise size",
    OtherSigmaThanCharged: "noise size",
    NoiseInFirstStepOnly: "noise size",
    OneGroupWithoutNoise: "noise size",
    NoiseReused: "noise independence",
    OneNumberForAll: "noise independence",
    FloatNoiseFromTorch: "noise source",
    SeededNoise: "noise source",
    GroupUnclipped: "replay",
    EveryGroupClippedToTheWhole: "replay",
    ClipAfterSumming: "replay",
    RecordTwice: "replay",
    NeighbourAsSupport: "replay",
    BatchStatistics: "replay",
    BadRecordsDropped: "denominator",
    PrivateDenominator: "denominator",
    EmptyStepSkipped: "empty step",
    OneStepMoreThanCharged: "empty step",
    BadRecordKept: "bad record",
    BadRecordRaises: "bad record",
    TwiceTheRate: "sampling",
    ShuffledAndCalledPoisson: "sampling",
}


def test_the_engine_passes_every_check() -> None:
    failed = {name: verdict.figures for name, verdict in run().items() if not verdict.holds}
    assert not failed


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught_by_the_check_that_names_it(fault: type) -> None:
    planted = {"optimizer_class": fault}
    rounds = fault if issubclass(fault, PrivateRound) else type("Planted", (PrivateRound,), planted)
    verdict = CHECKS[PLANTED[fault]](rounds)
    assert not verdict.holds, verdict.figures
