"""What we rely on in Opacus 1.6: its clipping, its guards, and its accountants as a second opinion."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.optimizers import DPOptimizer

from sgps_privacy.accountant import epsilon
from sgps_privacy.engine import SecureDPOptimizer
from sgps_privacy.errors import PrivacyError
from sgps_privacy.events import Event
from sgps_privacy.noise import Grid, Ints
from sgps_privacy.statement import rdp_epsilon

DELTA = 1e-5


class Quiet(SecureDPOptimizer):
    def draw(self, count: int) -> Ints:
        return np.zeros(count, dtype=np.int64)


def made(
    kind: type[SecureDPOptimizer] = SecureDPOptimizer,
    clips: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[SecureDPOptimizer, list[torch.nn.Parameter]]:
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((3, 2), (4,))]
    inner = torch.optim.SGD([{"params": [p]} for p in parameters], lr=1.0)
    total = 1.5 if clips is None else math.hypot(*clips)
    return kind(inner, group_clips=clips, noise_multiplier=1.0, max_grad_norm=total, expected_batch_size=5), parameters


def rows(seed: int = 0, count: int = 7) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(seed)
    size = torch.logspace(-2, 2, count, dtype=torch.float64)
    return [
        torch.randn((count, *s), generator=make, dtype=torch.float64) * size.view(-1, *[1] * len(s))
        for s in ((3, 2), (4,))
    ]


@pytest.mark.parametrize("clips", [None, (0.9, 1.2)], ids=["flat", "by group"])
def test_clipping_and_scaling_equal_the_loop(clips: Sequence[float] | None) -> None:
    optimizer, parameters = made(Quiet, clips)
    samples = rows()
    for p, g in zip(parameters, samples, strict=True):
        p.grad_sample = g
    optimizer.step()
    total = [np.zeros((3, 2)), np.zeros(4)]
    for i in range(7):
        own = [g[i].numpy() for g in samples]
        norms = [np.linalg.norm(g) for g in own]
        factors = (
            [min(1.0, 1.5 / (math.hypot(*norms) + 1e-6))] * 2
            if clips is None
            else [min(1.0, c / (n + 1e-6)) for c, n in zip(clips, norms, strict=True)]
        )
        total = [t + f * g for t, f, g in zip(total, factors, own, strict=True)]
    for p, want in zip(parameters, total, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), -want / 5, atol=1e-6)


def test_noise_of_the_optimizer_lies_on_the_grid_and_has_its_size() -> None:
    draws = []
    for _ in range(200):
        optimizer, parameters = made()
        for p, g in zip(parameters, rows(), strict=True):
            p.grad_sample = g * 0
        optimizer.step()
        draws.append(torch.cat([p.detach().reshape(-1) for p in parameters]).numpy() * 5)
    grid = Grid(1.5, 1.0, 10)
    steps = np.stack(draws) / grid.gamma
    assert (np.abs(steps - np.rint(steps)) < 1e-3).all()
    assert abs(steps.std() / 2**24 - 1) < 5 / math.sqrt(2 * steps.size)


def test_a_list_of_gradients_is_refused_because_opacus_divides_by_its_length() -> None:
    theirs = DPOptimizer(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0), noise_multiplier=0.0,
                         max_grad_norm=1.0, expected_batch_size=1)  # fmt: skip
    theirs.params[0].grad_sample = [torch.ones(1, 2), torch.ones(1, 2)]
    assert theirs.accumulated_iterations == 2
    optimizer, parameters = made()
    for p, g in zip(parameters, rows(), strict=True):
        p.grad_sample = [g, g]
    with pytest.raises(PrivacyError, match="one float64 tensor"):
        optimizer.step()


def test_float32_gradients_and_parameters_are_refused() -> None:
    optimizer, parameters = made()
    for p, g in zip(parameters, rows(), strict=True):
        p.grad_sample = g.float()
    with pytest.raises(PrivacyError, match="float64"):
        optimizer.step()
    with pytest.raises(PrivacyError, match="float64"):
        made(dtype=torch.float32)
    mixed = torch.optim.SGD(
        [torch.zeros(2, dtype=t, requires_grad=True) for t in (torch.float64, torch.float32)], lr=1.0
    )
    with pytest.raises(PrivacyError, match="float64"):
        SecureDPOptimizer(mixed, group_clips=None, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=1)


@pytest.mark.parametrize("clips", [None, (0.9, 1.2)], ids=["flat", "by group"])
def test_a_gradient_used_twice_is_refused(clips: Sequence[float] | None) -> None:
    optimizer, parameters = made(clips=clips)
    for p, g in zip(parameters, rows(), strict=True):
        p.grad_sample = g
    optimizer.step()
    with pytest.raises(ValueError, match="haven't been cleared"):
        optimizer.step()


def test_a_sum_is_noised_only_once() -> None:
    optimizer, parameters = made()
    for p, g in zip(parameters, rows(), strict=True):
        p.grad_sample = g
    optimizer.clip_and_accumulate()
    optimizer.add_noise()
    with pytest.raises(PrivacyError, match="once"):
        optimizer.add_noise()


@pytest.mark.parametrize("part", [0, 1])
def test_a_sum_of_which_one_part_was_noised_is_not_noised_again(part: int) -> None:
    optimizer, parameters = made()
    for p, g in zip(parameters, rows(), strict=True):
        p.grad_sample = g
    optimizer.clip_and_accumulate()
    parameters[part].summed_grad._processed = True
    with pytest.raises(PrivacyError, match="once"):
        optimizer.add_noise()
    assert all(p.grad is None for p in parameters)


def test_an_empty_batch_is_noised_like_any_other() -> None:
    optimizer, parameters = made()
    for p in parameters:
        p.grad_sample = torch.zeros((0, *p.shape), dtype=torch.float64)
    optimizer.step()
    assert all(p.detach().abs().min() > 0 for p in parameters)


@pytest.mark.parametrize(("q", "sigma", "steps"), [(1.0, 1.391, 1), (1.0, 2.685, 20), (1.0, 16.69, 20), (0.5, 2.5, 40),
                                                   (0.1, 1.0, 200)])  # fmt: skip
def test_the_accountants_agree(q: float, sigma: float, steps: int) -> None:
    ours, prv, rdp = epsilon([Event(sigma, q, steps)], DELTA), PRVAccountant(), RDPAccountant()
    prv.history = rdp.history = [(sigma, q, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, renyi = prv.get_epsilon(DELTA), rdp.get_epsilon(DELTA)
    assert ours == pytest.approx(theirs, abs=0.03)
    assert ours < renyi < 1.17 * ours
    assert rdp_epsilon([Event(sigma, q, steps)], DELTA) == pytest.approx(renyi, rel=0.03)


def test_opacus_own_noise_tells_sums_apart_by_their_low_bits_and_ours_does_not() -> None:
    numbers = 4000

    def fine(kind: type[DPOptimizer], value: float) -> int:
        ours = issubclass(kind, SecureDPOptimizer)
        p = torch.nn.Parameter(torch.zeros(numbers, dtype=torch.float64 if ours else torch.float32))
        options = {"group_clips": None} if ours else {}
        work = kind(torch.optim.SGD([p], lr=1.0), noise_multiplier=1 / math.sqrt(numbers), expected_batch_size=1,
                    max_grad_norm=math.sqrt(numbers) * 1.01, **options)  # fmt: skip
        p.grad_sample = torch.full((1, numbers), value, dtype=p.dtype)
        work.step()
        seen = p.detach().double()
        seen = seen[seen.abs() < 0.25] * 2.0 ** (53 if ours else 25)  # the finest bits of a float64 or float32 near 1
        return int((seen != seen.round()).sum())

    assert fine(DPOptimizer, 0.0) > 100 and fine(DPOptimizer, 1.0) == 0
    assert fine(SecureDPOptimizer, 0.0) > 100 and fine(SecureDPOptimizer, 1.0) > 100
