"""The noised local steps of one round: Opacus's DPOptimizer clips, sums and scales; records, noise and denominator
are ours.

Used of Opacus 1.6: `DPOptimizer.clip_and_accumulate`, `scale_grad`, `step`, `zero_grad` and its marks against
gradients used twice, and `PRVAccountant` for a second opinion. Replaced: `add_noise`, because floats and torch's generator are no noise for a promise. Not
used: PrivacyEngine (takes the denominator from the private length) and GradSampleModule (takes the first axis of a
layer for the records)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant
from opacus.optimizers import DPOptimizer
from torch import Tensor

from sgps_privacy.errors import PrivacyError
from sgps_privacy.events import Event
from sgps_privacy.gradients import Loss, Parameters, Record, per_record_gradients
from sgps_privacy.noise import Grid, Ints, SecureBits, discrete_gaussian
from sgps_privacy.terms import Terms
from sgps_privacy.unit import fill_slots

__all__ = ["PRV_ERROR", "Loss", "Parameters", "PrivateRound", "Record", "SecureDPOptimizer", "prv_epsilon"]

PRV_ERROR = 0.01
"""How far, beside rounding, Opacus's accountant aims to stay above the true epsilon."""


class SecureDPOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus carries no types
    """Opacus's optimizer with whole-number noise.

    optimizer: over float64 leaves. group_clips: None for flat clipping, or one bound for each parameter group.
    noise_multiplier: sigma. max_grad_norm: the total L2 sensitivity. expected_batch_size: the PUBLIC denominator.
    Before `step`, each parameter's `grad_sample` is one float64 tensor (records, *shape). Raises PrivacyError for a
    list, because Opacus would divide once more by its length, and for float32, because Opacus takes norms before it
    casts."""

    max_grad_norm: float
    noise_multiplier: float

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, group_clips: Sequence[float] | None, **options: Any
    ) -> None:
        self._active: list[Any] | None = None
        super().__init__(optimizer, loss_reduction="mean", **options)
        self.group_clips = group_clips
        if any(p.dtype != torch.float64 for p in self.params):
            raise PrivacyError("private parameters must be float64")
        self.grid = Grid(self.max_grad_norm, self.noise_multiplier, sum(p.numel() for p in self.params))

    @property
    def params(self) -> list[Any]:
        """All parameters (tensors to which Opacus adds attributes), or those of the group that is being clipped."""
        return list(super().params) if self._active is None else self._active

    @contextmanager
    def _only(self, parameters: list[Any], clip: float) -> Iterator[None]:
        total, self._active, self.max_grad_norm = self.max_grad_norm, parameters, clip
        try:
            yield
        finally:
            self._active, self.max_grad_norm = None, total

    def clip_and_accumulate(self) -> None:
        """Clips each record, flat or by group, and sums. Opacus's own arithmetic."""
        if not all(isinstance(p.grad_sample, Tensor) and p.grad_sample.dtype == torch.float64 for p in self.params):
            raise PrivacyError("grad_sample must be one float64 tensor for each parameter")
        if self.group_clips is None:
            super().clip_and_accumulate()
            return
        for group, clip in zip(self.param_groups, self.group_clips, strict=True):
            with self._only(group["params"], clip):
                super().clip_and_accumulate()

    def draw(self, count: int) -> Ints:
        """Noise for one vector: a new key for every call."""
        return discrete_gaussian(count)

    def add_noise(self) -> None:
        """One vector for all parameters together: rounded, noised in whole numbers, then made floats again."""
        if any(getattr(p.summed_grad, "_processed", False) for p in self.params):
            raise PrivacyError("a sum may be noised only once")
        flat = torch.cat([p.summed_grad.reshape(-1) for p in self.params]).numpy()
        noised = (self.grid.quantise(flat) + self.draw(flat.size)) * self.grid.gamma
        ends = np.cumsum([p.numel() for p in self.params])
        for p, part in zip(self.params, np.split(noised, ends[:-1]), strict=True):
            p.grad = torch.from_numpy(part).view_as(p)
            p.summed_grad._processed = True


def prv_epsilon(events: Sequence[Event], delta: float) -> float:
    """Epsilon of all events together by Opacus's accountant: privacy random variables, composed numerically (Gopi, Lee,
    Wutschitz 2021). It shares no code with dp-accounting, the accountant of record. An upper bound, by `PRV_ERROR`."""
    steps: dict[tuple[float, float], int] = {}
    for e in events:
        steps[(e.sigma, e.q)] = steps.get((e.sigma, e.q), 0) + e.steps
    opinion = PRVAccountant()
    opinion.history = [(sigma, q, count) for (sigma, q), count in steps.items()]
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        # logarithms of zero outside the support of q < 1; a rough bound that only sets the width of its grid
        warnings.filterwarnings("ignore", "Optimal order is the")
        return float(opinion.get_epsilon(delta, eps_error=PRV_ERROR))


@dataclass
class PrivateRound:
    """The noised local steps of one round, to be run after the ledger's CHARGE.

    terms: already checked against the site's limits. loss: (theta, record) -> scalar; pure, no batch statistics.
    compute: type of forward and backward; clipping and sums are float64 always.
    noised: after `run`, the noised mean gradient of each step, flat, float64 in gradient units: what the terms release.
    Kept for `audit`.
    """

    terms: Terms
    loss: Loss
    compute: torch.dtype = torch.float32
    noised: list[NDArray[np.float64]] = field(default_factory=list, init=False)
    optimizer_class: ClassVar[type[SecureDPOptimizer]] = SecureDPOptimizer

    def records_of_step(self, records: list[Record | None]) -> list[Record | None]:
        """All slots for q = 1; else Poisson sampling, a cryptographic coin for each slot."""
        if self.terms.q == 1:
            return records
        coins = SecureBits().below(2**53, len(records)) < math.floor(self.terms.q * 2**53)
        return [record for record, heads in zip(records, coins, strict=True) if heads]

    def gradients(self, theta: Parameters, records: list[Record | None]) -> Parameters:
        """Per-record gradients of one step, float64."""
        return per_record_gradients(self.loss, theta, records)

    def denominator(self, records: list[Record | None]) -> int:
        """The public number of the plan, whatever the records."""
        return self.terms.denominator

    def run(self, start: Parameters, records: Sequence[Record | None], slots: int) -> dict[str, NDArray[np.float32]]:
        """theta_after - theta_start of every trained parameter, float32: post-processing of `terms.steps` noised sums.

        start: name -> tensor, exactly the names of the terms; its device is where the loss runs. records: at most
        `slots`, one for each patient; None is the zero record. Raises PrivacyError before any record is looked at.
        """
        terms = self.terms
        Event(terms.sigma, terms.q, terms.steps)
        if (
            sorted(terms.names) != sorted(start)
            or len(terms.clips) not in (1, len(terms.groups))
            or terms.denominator < 1
        ):
            raise PrivacyError("the terms do not fit the parameters: check the plan against the site's limits first")
        filled = fill_slots(records, slots)
        theta = {name: start[name].detach().cpu().double().clone().requires_grad_() for name in terms.names}
        inner = torch.optim.SGD([{"params": [theta[n] for n in group]} for group in terms.groups], lr=terms.rate)
        optimizer = self.optimizer_class(
            inner,
            group_clips=terms.clips if len(terms.clips) > 1 else None,
            noise_multiplier=terms.sigma,
            max_grad_norm=terms.clip,
            expected_batch_size=self.denominator(filled),
        )
        self.noised = []
        for _ in range(terms.steps):
            public = {n: p.detach().to(start[n].device, self.compute) for n, p in theta.items()}
            rows = self.gradients(public, self.records_of_step(filled))
            for name, p in theta.items():
                p.grad_sample = rows[name]  # type: ignore[attr-defined]  # where Opacus looks for it
            optimizer.step()
            self.noised.append(
                torch.cat([p.grad.reshape(-1) for p in theta.values() if p.grad is not None]).numpy().copy()
            )
            optimizer.zero_grad()
        change = {n: (p.detach() - start[n].detach().cpu().double()).float() for n, p in theta.items()}
        return {n: np.asarray(c.numpy(), dtype=np.float32) for n, c in change.items()}
