"""Fine-tune the distilled base on public classes: cross-entropy, contrast between lesions, body site. BatchNorm statistics stay."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgps.pretrain.clutter import clutter, clutter_random
from sgps.pretrain.loop import Stage, run_stage
from sgps.pretrain.networks import Arithmetic, Input, base_network, pooled
from sgps.pretrain.pool import Pool, step_random
from sgps.pretrain.progress import Report, Stop
from sgps.pretrain.recipe import Finetune, Recipe

AREA = (0.45, 1.0)
WARM_UP = 20
FIRST = 2  # stage of the random sources of the first fine-tune


def lesion_contrast(projected: Tensor, lesion: Tensor, temperature: float = 0.15) -> Tensor:
    """Supervised contrastive loss with the lesion as class (Khosla et al. 2020, eq. 2, L_out). projected (n, d), lesion (n,).

    Every lesion must appear at least twice.
    """
    unit = F.normalize(projected, dim=1)
    own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    score = (unit @ unit.T / temperature).masked_fill(own, -1e4)
    same = (lesion[:, None] == lesion[None]) & ~own
    return -((score - score.logsumexp(1, keepdim=True)) * same).sum(1).div(same.sum(1)).mean()


def finetune(
    stage: Stage,
    settings: Finetune,
    number: int,
    start: Mapping[str, Tensor],
    given: Input,
    pool: Pool,
    recipe: Recipe,
    seed: int,
    arithmetic: Arithmetic,
    report: Report,
    stop: Stop,
) -> None:
    """Run or continue fine-tune `number` from the weights `start`; weights are kept at `settings.keep`. given: architecture and
    input of the base."""
    net = arithmetic.network(base_network(start, given.architecture)).train()
    width = int(net.num_features)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head, site = nn.Linear(width, len(pool.classes)), nn.Linear(width, len(pool.sites))
        projection = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 128))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(site.weight)
    for module in (head, site, projection):
        module.to(arithmetic.device)
    body = list(net.parameters())
    extra = [p for m in (head, site, projection) for p in m.parameters()]
    rates = (settings.rate, 5 * settings.rate)
    groups = [{"params": p, "lr": r} for p, r in zip((body, extra), rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)

    def step(done: int) -> Mapping[str, float]:
        factor = min(1, (done + 1) / WARM_UP) * (0.5 + 0.5 * float(np.cos(np.pi * done / settings.steps)))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor + 1e-7
        random, generator = step_random(seed, FIRST + number, done)
        picks = pool.draw(settings.batch, random, settings.skin)
        batch = pool.batch(picks, recipe.size, generator, settings.colour, AREA)
        x, label, place, lesion = batch.x, batch.label, batch.site, batch.lesion
        if settings.contrast:
            x = torch.cat([x, pool.batch(picks, recipe.size, generator, settings.colour, AREA).x])
            label, place, lesion = label.repeat(2), place.repeat(2), lesion.repeat(2)
        x = clutter(x, settings.clutter, clutter_random(seed, FIRST + number, done))
        with arithmetic.context():
            features = pooled(net, arithmetic.images(given.normalised(x)))
        features, known = features.float(), place >= 0
        parts = {"cross-entropy": F.cross_entropy(head(features), label, label_smoothing=0.1)}
        loss = parts["cross-entropy"]
        if settings.site and known.any():
            parts["site"] = F.cross_entropy(site(features[known]), place[known], label_smoothing=0.1)
            loss = loss + settings.site * parts["site"]
        if settings.contrast:
            parts["contrast"] = lesion_contrast(projection(features), lesion)
            loss = loss + settings.contrast * parts["contrast"]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(body, 2.0)
        optimizer.step()
        return {k: v.item() for k, v in parts.items()}

    modules = {"net": net, "head": head, "site": site, "projection": projection}
    run_stage(stage, modules, net, optimizer, step, report, stop, str(arithmetic))
