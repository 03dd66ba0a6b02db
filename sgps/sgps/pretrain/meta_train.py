"""Meta-training: the parts head and text on cached features, then the part body from images."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgps.attributes import NAMES
from sgps.generator import TEXT, Generator
from sgps.pretrain.loop import Stage, run_stage
from sgps.pretrain.meta_episode import Episode, Space, head, inputs, sample
from sgps.pretrain.meta_pool import DRAWN, MetaPool
from sgps.pretrain.meta_recipe import MetaRecipe
from sgps.pretrain.networks import Arithmetic, load_state
from sgps.pretrain.pool import step_random
from sgps.pretrain.progress import Report, Stop
from sgps.target import Target

WIDTH, DEPTH = 64, 1
SHOTS = (1, 1, 2, 5)
MOST_WAYS = 5
SMOOTHING, WARM_UP, DECAY, CLIP, AVERAGE = 0.1, 0.05, 0.01, 1.0, 0.99
_DRAWN_SHARE, _SKIN_SHARE = 0.5, 0.25  # of episodes; the rest is shared by the other sets
_BODY = ("decoder.", "norm.", "layer", "core.", "chan.", "tap.")
_FAST = ("core.", "chan.", "tap.", "text_", "token_", "gate.", "memory.", "attribute.")


def new_generator(layers: int, features: int, coordinates: int, seed: int, text: int = TEXT) -> Generator:
    """A generator whose every part contributes exactly zero.

    What reads a text starts at zero and what writes its residual at random, not the other way round: an attribute that training
    never states then stays without any effect.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Generator(
            layers=layers,
            features=features,
            attributes=len(NAMES),
            coordinates=coordinates,
            width=WIDTH,
            depth=DEPTH,
            text=text,
        )
        with torch.no_grad():
            for weight in (
                made.text_down.weight,
                made.attribute.weight,
                made.sentence.weight,
                made.sentence.bias,
                made.text_kind,
            ):
                weight.zero_()
            nn.init.normal_(made.text_up.weight, std=made.text_up.in_features**-0.5)
    return made


def readable(pool: MetaPool, least: int) -> Tensor:
    """[a] 1 for attributes that at least `least` training classes state: fewer cannot teach what one looks like."""
    stated = torch.stack([(c.attributes != 0).any(0) for c in pool.classes]).sum(0)
    return (stated >= least).float()


@torch.no_grad()
def fit_text(generator: Generator, pool: MetaPool, space: Space, recipe: MetaRecipe) -> Generator:
    """A copy whose text residual is a ridge map from signed attributes to centred class means, of the drawn classes alone.

    Prototypes move as (K v + mu(t)) / (K + 1) but for their length, which the head does not see: the text counts as one patient.
    Drawn attributes have coordinates of their own, so texts of real diseases move nothing. With shared coordinates the map gained on
    skin classes that the base had trained on (+3.2 points at one shot) and, measured afterwards, lost on the meta-test classes
    (-2.1): the former are no judges of what is new. Sentences are not read: such a map moved prototypes of other domains at random (-4 to -18 points).
    """
    made = copy.deepcopy(generator)
    classes = pool.train[DRAWN]
    x = torch.cat([c.attributes.cpu() for c in classes]).double() * readable(pool, recipe.stated).cpu()
    y = torch.cat([(c.eight.mean(0) - space.centre).cpu().expand(len(c.attributes), -1) for c in classes]).double()
    slope = torch.linalg.solve(x.T @ x + recipe.ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    u, s, vh = torch.linalg.svd(slope, full_matrices=False)
    k = min(len(made.text_down.weight), len(s))
    root = s[:k].sqrt()
    made.text_down.weight.zero_()
    made.text_up.weight.zero_()
    made.text_down.weight[:k, made.sentence.in_features :] = (u[:, :k] * root).T.float()
    made.text_up.weight[:, :k] = (vh[:k].T * root).float()
    return made


def _draw(pool: MetaPool, queries: int, most_shots: int, random: np.random.Generator) -> Episode:
    others = [n for n in sorted(pool.train) if n not in (pool.skin, DRAWN)]
    pick = random.random()
    if pick < _DRAWN_SHARE or (not others and pick >= _DRAWN_SHARE + _SKIN_SHARE):
        name = DRAWN
    elif pick < _DRAWN_SHARE + _SKIN_SHARE:
        name = pool.skin
    else:
        name = others[int(random.integers(len(others)))]
    classes = pool.train[name]
    ways = int(random.integers(2, min(MOST_WAYS, len(classes)) + 1))
    shots = min(int(random.choice(SHOTS)), most_shots)
    return sample(classes, ways, shots, queries, random)


class _Average:
    """Exponential moving average of a generator's weights, begun after the warm-up's first steps at their own value."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.module = copy.deepcopy(generator).requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        keep = min(AVERAGE, (1 + step) / (10 + step))
        for mean, now in zip(self.module.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - keep)


def _optimizer(named: Iterable[tuple[str, nn.Parameter]], rate: float, trunk_rate: float) -> torch.optim.AdamW:
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        groups[name.startswith(_FAST)].append(parameter)
    rates = {True: rate, False: trunk_rate}
    listed = [{"params": g, "lr": rates[fast], "peak": rates[fast]} for fast, g in groups.items() if g]
    return torch.optim.AdamW(listed, weight_decay=DECAY)


def _set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    warm = max(1, round(WARM_UP * steps))
    share = min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def _arithmetic(space: Space) -> str:
    """Never bfloat16: a body moves by a few percent of its weights, and a prototype by less."""
    return str(Arithmetic(False, space.centre.device))


def _finish(generator: Generator, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    for group in (
        optimizer.param_groups
    ):  # a zero and no gradient are different things to AdamW, and a resumed run starts with none
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_([p for p in generator.parameters() if p.requires_grad], CLIP)
    optimizer.step()


def train_head(
    pool: MetaPool,
    recipe: MetaRecipe,
    space: Space,
    start: Generator,
    name: str,
    work: Path,
    seed: int,
    report: Report,
    stop: Stop,
) -> Generator:
    """Parts head and text on features under the base. Each episode uses both parts or one of them, so that each works alone.

    Loss: cross-entropy + `direction` x (1 - cosine of a class's row to the direction of all its images) (generator note, section 10).
    """
    settings, stage = recipe.head, Stage(name, recipe.head.steps, (recipe.head.steps,), work)
    generator = copy.deepcopy(start)
    mask = readable(pool, recipe.stated)
    if not stage.done():
        average = _Average(generator)
        for n, p in generator.named_parameters():
            p.requires_grad_(not n.startswith(_BODY))
        optimizer = _optimizer(
            [(n, p) for n, p in generator.named_parameters() if p.requires_grad], settings.rate, settings.trunk_rate
        )

        def step(number: int) -> Mapping[str, float]:
            random, _ = step_random(seed, 100, number)
            _set_rate(optimizer, number, settings.steps)
            total, right, losses = torch.zeros((), device=space.centre.device), 0.0, []
            for _ in range(settings.episodes):
                episode = _draw(pool, settings.queries, max(SHOTS), random)
                if random.random() < settings.rivals:
                    episode = replace(episode, settled=frozenset(range(1, len(episode.classes))))
                remembered = random if random.random() < settings.memory else None
                parts: tuple[str, ...] = ("head",)
                if episode.classes[0].set == DRAWN:  # no real class teaches the text: each one can judge it
                    parts = (("text",), ("head", "text"), ("head",))[int(random.choice(3, p=(0.5, 0.25, 0.25)))]
                given = inputs(episode, space, remembered, sentence=recipe.sentence)
                weight, bias = head(generator, given.features, given, generator.tokens(given, parts), space, parts)
                logits = episode.queries() @ weight.T + bias
                loss = F.cross_entropy(logits, episode.truth, label_smoothing=SMOOTHING)
                means = torch.stack([c.eight.mean(0) for c in episode.classes]) - space.centre
                aim = 1 - F.cosine_similarity(weight, means, dim=-1).mean()
                total = total + (loss + settings.direction * aim) / settings.episodes
                right += float((logits.argmax(1) == episode.truth).float().mean()) / settings.episodes
                losses.append(float(loss.detach()))
            _finish(generator, optimizer, total)
            _keep_unread(generator, mask, recipe.sentence)
            average.update(number)
            return {"cross-entropy": float(np.mean(losses)), "accuracy": right}

        modules = {"generator": generator, "average": average.module}
        run_stage(stage, modules, average.module, optimizer, step, report, stop, _arithmetic(space))
    generator.load_state_dict(load_state(stage.kept(settings.steps)))
    return generator.eval().requires_grad_(False)


@torch.no_grad()
def _keep_unread(generator: Generator, mask: Tensor, sentence: bool) -> None:
    """What may not be read stays zero, whatever the optimizer's moments say."""
    generator.text_down.weight[:, generator.sentence.in_features :] *= mask
    generator.attribute.weight *= mask
    if not sentence:
        for weight in (
            generator.text_down.weight[:, : generator.sentence.in_features],
            generator.sentence.weight,
            generator.sentence.bias,
            generator.text_kind,
        ):
            weight.zero_()


def train_body(
    pool: MetaPool,
    recipe: MetaRecipe,
    space: Space,
    target: Target,
    start: Generator,
    parts: tuple[str, ...],
    name: str,
    work: Path,
    seed: int,
    report: Report,
    stop: Stop,
) -> Generator:
    """The part body from images, one random view of each; the tokens and the head's parts stay as they are.

    parts: the other parts that are on. Loss: cross-entropy + `drift` x (1 - cosine of centred features under body and base).
    """
    settings, stage = recipe.body, Stage(name, recipe.body.steps, (recipe.body.steps,), work)
    generator = copy.deepcopy(start)
    if not stage.done():
        average = _Average(generator)
        for n, p in generator.named_parameters():
            p.requires_grad_(n.startswith(_BODY))
        optimizer = _optimizer(
            [(n, p) for n, p in generator.named_parameters() if p.requires_grad], settings.rate, settings.rate
        )

        def step(number: int) -> Mapping[str, float]:
            random, _ = step_random(seed, 200, number)
            _set_rate(optimizer, number, settings.steps)
            total, values = torch.zeros((), device=space.centre.device), []
            for _ in range(settings.episodes):
                episode = _draw(pool, settings.queries, 2, random)
                used = parts if random.random() < 0.5 else ()
                loss, drift, right = body_loss(generator, target, episode, space, used, recipe.sentence, random)
                total = total + (loss + settings.drift * drift) / settings.episodes
                values.append((float(loss.detach()), float(drift.detach()), right))
            _finish(generator, optimizer, total)
            average.update(number)
            loss_mean, drift_mean, right_mean = np.mean(values, 0)
            return {"cross-entropy": float(loss_mean), "drift": float(drift_mean), "accuracy": float(right_mean)}

        modules = {"generator": generator, "average": average.module}
        run_stage(stage, modules, average.module, optimizer, step, report, stop, _arithmetic(space))
    generator.load_state_dict(load_state(stage.kept(settings.steps)))
    return generator.eval().requires_grad_(False)


def pictures(episode: Episode, random: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Support [N * K, 3, s, s] and queries [N * Q, 3, s, s]. random: a random flip, and a quarter turn where there is no upright."""

    def look(rows: np.ndarray) -> Tensor:
        x = torch.cat([c.picture(r) for c, r in zip(episode.classes, rows, strict=True)])
        if random is not None:
            turns = random.integers(0, 4 if episode.classes[0].turn else 1, len(x))
            flips = random.random(len(x)) < 0.5
            x = torch.stack(
                [torch.rot90(p.flip(2) if f else p, int(t), (1, 2)) for p, t, f in zip(x, turns, flips, strict=True)]
            )
        return x.contiguous(memory_format=torch.channels_last)

    return look(episode.support), look(episode.query)


def body_loss(
    generator: Generator,
    target: Target,
    episode: Episode,
    space: Space,
    parts: tuple[str, ...],
    sentence: bool,
    random: np.random.Generator,
) -> tuple[Tensor, Tensor, float]:
    """Cross-entropy, drift and accuracy of one episode under the body that the generator makes for it."""
    given = inputs(episode, space, sentence=sentence)
    with torch.no_grad():
        tokens = generator.tokens(given, parts)
    body = target.materialise(generator.coefficients(tokens))
    support, queries = pictures(episode, random)
    x = torch.cat([support, queries])
    features = target.features(x, body)
    with torch.no_grad():
        before = target.features(x)
    ways, shots = episode.support.shape
    prototypes = features[: len(support)].view(ways, shots, -1).mean(1)
    weight, bias = head(generator, prototypes, given, tokens, space, parts)
    logits = features[len(support) :] @ weight.T + bias
    loss = F.cross_entropy(logits, episode.truth, label_smoothing=SMOOTHING)
    drift = 1 - F.cosine_similarity(features - space.centre, before - space.centre, dim=-1).mean()
    return loss, drift, float((logits.argmax(1) == episode.truth).float().mean())
