"""Distil frozen Lite0 into the transplanted base: pooled features, stage outputs, and a little cross-entropy."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgps.pretrain.augment import mix
from sgps.pretrain.clutter import clutter, clutter_random
from sgps.pretrain.loop import Stage, run_stage
from sgps.pretrain.networks import FEATURES, Arithmetic, base_network, staged
from sgps.pretrain.pool import Pool, step_random
from sgps.pretrain.progress import Report, Stop
from sgps.pretrain.recipe import Distil, Recipe
from sgps.pretrain.transplant import transplant

SCALE, DISTIL = 0, 1  # stages of the random sources
AREA = (0.3, 1.0)
WARM_UP = 100


class Scale:
    """Mean and variance of the teacher's features, and deviations of its stage outputs, on augmented public images."""

    def __init__(self, teacher: Any, pool: Pool, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> None:
        maps: list[list[Tensor]] = []
        features: list[Tensor] = []
        with torch.no_grad():
            for number in range(6):
                random, generator = step_random(seed, SCALE, number)
                picks = pool.draw(recipe.distil.batch, random, recipe.distil.skin)
                x = pool.batch(picks, recipe.size, generator, recipe.distil.colour, AREA).x
                found, pooled = staged(teacher, arithmetic.images(x))
                maps.append(found)
                features.append(pooled)
        self.maps = [
            torch.cat([m[k] for m in maps]).transpose(0, 1).flatten(1).std(1).clamp(min=1e-2)[None, :, None, None]
            for k in range(6)
        ]
        every = torch.cat(features)
        self.mean, self.variance = every.mean(0), every.var(0).mean()


def follow(average: Any, net: Any, step: int) -> None:
    """Exponential moving average of all weights and statistics, with a short memory at first."""
    decay = min(0.998, (step + 1) / (step + 10))
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def rate_of(settings: Distil, number: int) -> float:
    """Learning rate of a step: a warm-up, then constant, then linear to zero at the horizon."""
    left = 1 - number / settings.horizon
    return settings.rate * min(1, (number + 1) / WARM_UP) * min(1.0, left / settings.decay_share + 1e-4)


def distil(
    stage: Stage,
    pool: Pool,
    recipe: Recipe,
    teacher: Any,
    seed: int,
    arithmetic: Arithmetic,
    report: Report,
    stop: Stop,
) -> None:
    """Run or continue the distillation; the averaged weights are kept at the end. Raises KeyboardInterrupt when stopped."""
    settings = recipe.distil
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = arithmetic.network(transplant(base_network(), teacher))
        first_stage, head = nn.Conv2d(16, 16, 1), nn.Linear(FEATURES, len(pool.classes))
    teacher = arithmetic.network(teacher)
    for module in (first_stage, head):
        module.to(arithmetic.device)
    nn.init.zeros_(head.weight)
    # after a transplant the first channels of a stage are the teacher's; only the first stage needs a learned map
    hints: list[nn.Module] = [first_stage, *(nn.Identity() for _ in range(5))]
    average = copy.deepcopy(net)
    kernels = [p for p in net.parameters() if p.ndim > 1]
    small = [p for p in net.parameters() if p.ndim <= 1] + [*first_stage.parameters(), *head.parameters()]
    groups = [{"params": kernels, "weight_decay": 0.02}, {"params": small, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.rate)
    scale = Scale(teacher, pool, recipe, seed, arithmetic)

    def step(number: int) -> Mapping[str, float]:
        done = number / settings.horizon
        for group in optimizer.param_groups:
            group["lr"] = rate_of(settings, number)
        random, generator = step_random(seed, DISTIL, number)
        picks = pool.draw(settings.batch, random, settings.skin)
        batch = pool.batch(picks, recipe.size, generator, settings.colour, AREA)
        mixed = random.random() < settings.mixed
        x = mix(batch.x, random) if mixed else batch.x
        shown = clutter(x, settings.clutter, clutter_random(seed, DISTIL, number))
        net.train()
        with arithmetic.context():
            with torch.no_grad():
                wanted_maps, wanted = staged(teacher, arithmetic.images(x))
            maps, features = staged(net, arithmetic.images(shown))
            distances = [
                (((hint(own)[:, : want.shape[1]].float() - want.float()) / deviation) ** 2).mean()
                for hint, own, want, deviation in zip(hints, maps, wanted_maps, scale.maps, strict=True)
            ]
        wanted, features = wanted.float(), features.float()
        parts = {
            "cosine": 1 - F.cosine_similarity(features - scale.mean, wanted - scale.mean).mean(),
            "mse": (features - wanted).pow(2).mean() / scale.variance,
            "hint": torch.stack(distances).mean(),
        }
        loss = parts["cosine"] + settings.mse * parts["mse"] + settings.hint * (1 - 0.9 * done) * parts["hint"]
        if not mixed:
            parts["cross-entropy"] = F.cross_entropy(head(features), batch.label, label_smoothing=0.1)
            loss = loss + settings.cross_entropy * parts["cross-entropy"]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        follow(average, net, number)
        return {k: v.item() for k, v in parts.items()}

    modules = {"net": net, "average": average, "first_stage": first_stage, "head": head}
    run_stage(stage, modules, average, optimizer, step, report, stop, str(arithmetic))
