"""Attacks on a classifier: its exemplar found again among other pictures, and drawn anew from the head's weights.

`classifier.weight` holds, for the disease, the direction of the exemplar's centred feature; the network that made the feature lies in
the same file and the centre is public."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import nnls
from scipy.stats import rankdata
from torch import Tensor

from bench.pictures import Pictures
from bench.shipped import Ours
from sgps.encoders import ImageEncoder
from sgps.errors import InputError
from sgps.images import views
from sgps.memory import Contribution, pool, record
from sgps.rivals import unit
from sgps.target import Target

Array = NDArray[Any]
# Of the reconstruction; set once on drawn lesions.
STEPS, RATE, SMOOTH, TAME, JITTER = 200, 0.05, 100.0, 0.01, 4


@dataclass(frozen=True)
class Found:
    """ranks: place of the true picture (or of the best other photo of its lesion) among the candidates, 1 is the best, [n].
    candidates: how many there are for each, [n]."""

    setting: str
    ranks: Array
    candidates: Array


def heads(ours: Ours, disease: str, shown: Sequence[Sequence[int]], memory: Any = None) -> Array:
    """The disease's row of the head, of one classifier for each list of exemplars, [n, f]."""
    return np.stack([ours.compose({disease: rows}, memory=memory).weight[0].numpy() for rows in shown])


def matched(head: Array, gallery: Array, right: Callable[[int], Array], setting: str) -> Found:
    """head [n, f], gallery [m, f] or one for each head [n, m, f]: what the head would be for each candidate. right: which candidates
    are true ones (+1), not to be offered (-1) or others (0), [m]."""
    ranks, counts = [], []
    for i, w in enumerate(head):
        kind = right(i)
        offered = kind >= 0
        score = unit(gallery[i] if gallery.ndim == 3 else gallery) @ w
        order = rankdata(-score[offered], method="max")  # a tie is a miss
        ranks.append(order[kind[offered] == 1].min())
        counts.append(int(offered.sum()))
    return Found(setting, np.array(ranks), np.array(counts))


def taken_apart(head: Array, gallery: Array, groups: Array) -> Found:
    """Heads [n, f] of several exemplars each, groups [n, k] of gallery [m, f]: their mean is solved for its parts by non-negative
    least squares. A rank of 1 says that the k largest parts are the k exemplars; else that many more must be taken to hold them all."""
    ranks = []
    for w, group in zip(head, groups, strict=True):
        order = rankdata(-nnls(gallery.T.astype(np.float64), w.astype(np.float64))[0], method="max")
        ranks.append(order[group].max() - len(group) + 1)
    setting = f"all of {groups.shape[1]} exemplars, eight views, least squares"
    return Found(setting, np.array(ranks), np.full(len(ranks), len(gallery)))


def reidentified(
    ours: Ours, pictures: Pictures, features: Mapping[int, Array], disease: str, most: int, seed: int
) -> list[Found]:
    """All settings for one disease: candidates are all its pictures."""
    random = np.random.default_rng([seed, 11])
    rows = np.flatnonzero(pictures.label == disease)
    lesion, centre = pictures.lesion[rows], ours.synthesizer.centre
    first = random.permutation(pictures.one_each(rows, random))
    exemplars = first[:most]
    place = np.searchsorted(rows, exemplars)
    eight = np.stack([features[int(r)] for r in rows])
    images = [pictures.image(int(r)) for r in rows]
    encoder = ImageEncoder(ours.synthesizer.release)
    one, worse = encoder.features(images, views=1), encoder.features([degraded(i) for i in images], views=1)
    head = heads(ours, disease, [[int(r)] for r in exemplars])

    def itself(i: int) -> Array:
        return np.asarray(np.arange(len(rows)) == place[i], int)

    out = [
        matched(head, eight - centre, itself, "the same picture, eight views"),
        matched(head, one - centre, itself, "the same picture, one view"),
        matched(head, worse - centre, itself, "half its size, JPEG 50, turned, one view"),
    ]
    twice = [i for i, r in enumerate(place) if (lesion == lesion[r]).sum() > 1]

    def other(i: int) -> Array:
        mine = place[twice[i]]
        return np.where(np.arange(len(rows)) == mine, -1, (lesion == lesion[mine]).astype(int))

    if twice:
        out.append(matched(head[twice], eight - centre, other, "another photo of the lesion, eight views"))
    for shots in (5, 20):
        if len(rows) < 2 * shots:
            continue
        groups = np.stack([random.choice(len(rows), shots, replace=False) for _ in range(min(most, 50))])
        together = heads(ours, disease, [rows[g].tolist() for g in groups])
        out.append(taken_apart(together, eight - centre, groups))
    return out


def behind(
    ours: Ours, pictures: Pictures, features: Mapping[int, Array], disease: str, most: int, sigma: float, seed: int
) -> Found:
    """The exemplar with a row of the class memory behind it, made of half of the disease's lesions at noise `sigma`; the attacker knows
    the release and says what the head would be for each candidate of the other half. Raises InputError for a disease without a row."""
    s, random = ours.synthesizer, np.random.default_rng([seed, 12])
    if (entry := s.catalogue.find(disease)) is None:
        raise InputError("is not in the catalogue: it has no row", where=disease)
    c, rows = s.memory.ids.index(entry.id), np.flatnonzero(pictures.label == disease)
    names = random.permutation(np.unique(pictures.lesion[rows]))
    away = np.isin(pictures.lesion[rows], names[::2])
    classes, coordinates = len(s.memory.ids), s.memory.coordinates
    sums, counts = np.zeros((classes, len(coordinates.directions))), np.zeros(classes)
    for one in pictures.one_each(rows[away], random):
        row, count = record(coordinates, {c: features[int(one)]}, classes)
        sums, counts = sums + row, counts + count
    sums[:, : coordinates.used] += sigma * random.normal(size=(classes, coordinates.used))
    memory = pool(coordinates, s.memory.ids, [Contribution(sums, counts + sigma * random.normal(size=classes), sigma)])
    here = rows[~away]
    shown = random.permutation(pictures.one_each(here, random))[:most]
    head = heads(ours, disease, [[int(r)] for r in shown], memory)
    eight = np.stack([features[int(r)] for r in here])
    would = memory.blend(eight, 1, c, s.inside(entry.domain)) - s.centre
    place = np.searchsorted(here, shown)
    name = f"a memory row of worth {memory.worth(c):.0f} behind it, eight views"
    return matched(head, would, lambda i: (np.arange(len(here)) == place[i]).astype(int), name)


def degraded(image: Image.Image) -> Image.Image:
    """What a copy in another system may look like."""
    small, packed = image.resize((image.width // 2, image.height // 2)), io.BytesIO()
    small.transpose(Image.Transpose.ROTATE_90).save(packed, "JPEG", quality=50)
    return Image.open(packed).convert("RGB")


def invert(
    target: Target, head: Array, centre: Array, size: int, steps: int = STEPS, seed: int = 0
) -> tuple[Tensor, Array]:
    """Pictures whose centred features point where the heads do: Mahendran and Vedaldi (2015, "Understanding deep image representations
    by inverting them", section 3) with a bounded range (alpha 6) and total variation (beta 2) as priors, jitter, and Adam.

    head [n, f] -> pictures [n, 3, size, size] in -1..1, as networks of mean = std = 0.5 take them, and cosines reached [n]. The length
    of a feature is not in a head, so the loss is one minus the cosine instead of a squared distance. Every step sees one of the eight
    views, because the exemplar's feature is their mean.
    """
    random, wanted = torch.Generator().manual_seed(seed), torch.from_numpy(unit(head)).float()
    x = (0.1 * torch.randn(len(head), 3, size, size, generator=random)).requires_grad_()
    middle, adam = torch.from_numpy(centre).float(), torch.optim.Adam([x], lr=RATE)
    for _ in range(steps):
        view, *shift = (
            torch.randint(0, 8, (1,), generator=random).tolist()
            + torch.randint(-JITTER, JITTER + 1, (2,), generator=random).tolist()
        )
        seen = views(torch.roll(x, shift, (2, 3)), 8)[view]
        cosine = torch.cosine_similarity(target.features(seen) - middle, wanted)
        across, down = x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
        variation = (across**2).mean((1, 2, 3)) + (down**2).mean((1, 2, 3))
        loss = (1 - cosine + SMOOTH * variation + TAME * (x**6).mean((1, 2, 3))).sum()
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
    with torch.inference_mode():
        made = x.detach().clamp(-1, 1)
        reached = torch.stack([target.features(v) for v in views(made, 8)]).mean(0)
        return made, torch.cosine_similarity(reached - middle, wanted).numpy()


def pictured(made: Tensor) -> list[Image.Image]:
    """[n, 3, s, s] in -1..1 -> pictures."""
    pixels = ((made.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(p) for p in pixels]
