"""Distil an encoder that a centre brings into the base network: its pictures' features, and which pictures it holds for alike.

Its width and stages are others than those of the base, so there are no hints. Two things are taught: its centred features through a
linear map that is thrown away (FitNets: Romero et al. 2015), and the centred cosines between the pictures of a batch, in the base's
own features without any map (similarity-preserving distillation: Tung and Mori 2019): a classifier's head is a centred cosine there.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgps.errors import ConfigError
from sgps.open_encoders import ImageTower, Spec
from sgps.pretrain.augment import mix
from sgps.pretrain.clutter import clutter, clutter_random
from sgps.pretrain.distil import AREA, DISTIL, SCALE, follow, rate_of
from sgps.pretrain.loop import Stage, run_stage
from sgps.pretrain.networks import Arithmetic, Input, base_network, pooled
from sgps.pretrain.pool import Pool, step_random
from sgps.pretrain.progress import Report, Stop
from sgps.pretrain.recipe import Recipe

_SCALE_BATCHES = 6


@dataclass(frozen=True)
class Teacher:
    """What a user says about an encoder that teaches the base. source, licence: they go into every release made from it."""

    encoders: Spec
    source: str
    licence: str

    def __post_init__(self) -> None:
        """Raises ConfigError when source or licence is missing."""
        for option, said in (("--encoders-source", self.source), ("--encoders-licence", self.licence)):
            if not said.strip():
                raise ConfigError("is needed with --encoders", where=option, do="say it: every release will name it")

    def record(self) -> dict[str, str]:
        """What base.yaml says."""
        e = self.encoders
        return {"name": e.name, "source": self.source.strip(), "licence": self.licence.strip(), "sha256": e.sha256}


def alike(features: Tensor) -> Tensor:
    """[n, f] -> [n, n]: cosines of the features about their mean."""
    unit = F.normalize(features - features.mean(0), dim=1)
    return unit @ unit.T


@torch.no_grad()
def _scale(teacher: ImageTower, pool: Pool, recipe: Recipe, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and mean variance of the teacher's features on augmented public images."""
    found = []
    for number in range(_SCALE_BATCHES):
        random, generator = step_random(seed, SCALE, number)
        picks = pool.draw(recipe.distil.batch, random, recipe.distil.skin)
        found.append(teacher(pool.batch(picks, recipe.size, generator, recipe.distil.colour, AREA).x))
    every = torch.cat(found)
    return every.mean(0), every.var(0).mean().clamp(min=1e-12)


def teach(
    stage: Stage,
    pool: Pool,
    recipe: Recipe,
    teacher: ImageTower,
    start: Mapping[str, Tensor],
    given: Input,
    seed: int,
    arithmetic: Arithmetic,
    report: Report,
    stop: Stop,
) -> None:
    """Run or continue the distillation from the weights `start`; the averaged weights are kept at the end.

    given: architecture and input of the base. Raises KeyboardInterrupt when stopped.
    """
    settings = recipe.distil
    net = arithmetic.network(base_network(start, given.architecture))
    width = int(net.num_features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        into, head = nn.Linear(width, teacher.num_features), nn.Linear(width, len(pool.classes))
    nn.init.zeros_(head.weight)
    for module in (teacher, into, head):
        module.to(arithmetic.device)
    average = copy.deepcopy(net)
    kernels = [p for p in net.parameters() if p.ndim > 1]
    small = [p for p in net.parameters() if p.ndim <= 1] + [*into.parameters(), *head.parameters()]
    groups = [{"params": kernels, "weight_decay": 0.02}, {"params": small, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.rate)
    mean, variance = _scale(teacher, pool, recipe, seed)

    def step(number: int) -> Mapping[str, float]:
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
            wanted = teacher(x)
            features = pooled(net, arithmetic.images(given.normalised(shown)))
        wanted, features = wanted.float() - mean, features.float()
        mapped = into(features)
        parts = {
            "cosine": 1 - F.cosine_similarity(mapped, wanted).mean(),
            "mse": (mapped - wanted).pow(2).mean() / variance,
            "alike": (alike(features) - alike(wanted)).pow(2).mean(),
        }
        loss = parts["cosine"] + settings.mse * parts["mse"] + parts["alike"]
        if not mixed:
            parts["cross-entropy"] = F.cross_entropy(head(features), batch.label, label_smoothing=0.1)
            loss = loss + settings.cross_entropy * parts["cross-entropy"]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        follow(average, net, number)
        return {k: v.item() for k, v in parts.items()}

    modules: dict[str, Any] = {"net": net, "average": average, "into": into, "head": head}
    run_stage(stage, modules, average, optimizer, step, report, stop, str(arithmetic))
