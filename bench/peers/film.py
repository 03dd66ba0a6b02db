"""A fine-tuned body: gains and shifts of BatchNorm (FiLM) are trained on the support of each task, as in FiT (Shysheya et al. 2023).

The head stays centred cosine prototypes. Rate as in the paper; few steps, since a task has 2 to 15 pictures. Nothing is tuned: no public
pictures come with a release.
"""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from bench.peers.closed import SCALE, prototype
from bench.peers.public import Array
from sgps.encoders import target_of
from sgps.images import batch, views
from sgps.release import Release

STEPS, RATE = 10, 3.5e-3
_VIEWS, _AT_A_TIME = 8, 8  # larger batches of views only move memory


class Film:
    """A release's base network whose BatchNorm moves with the task. pictures: row -> picture."""

    def __init__(self, release: Release, centre: Array, pictures: Callable[[int], Image]) -> None:
        self.a, self.pictures, self.centre = release.manifest.architecture, pictures, torch.from_numpy(centre)
        self.net = copy.deepcopy(target_of(release).net)
        self.film = [p for m in self.net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
        self.start = [p.detach().clone() for p in self.film]
        self.known: dict[int, Tensor] = {}

    def scores(self, support: Array, queries: Array) -> Array:
        """Rows [N, K] and rows [M] of pictures -> scores [M, N]."""
        self._fit(self._images(support.ravel()), *support.shape)
        with torch.inference_mode():
            found, asked = (self._features(self._images(rows.ravel())) for rows in (support, queries))
        return prototype(found.reshape(*support.shape, -1), asked)

    def _images(self, rows: Sequence[int] | Array) -> Tensor:
        for row in map(int, rows):
            if row not in self.known:
                made = batch([self.pictures(row)], self.a.size, self.a.mean, self.a.std)[0]
                self.known[row] = made.to(torch.float16)
        return torch.stack([self.known[int(r)] for r in rows]).float()

    def _fit(self, x: Tensor, ways: int, shots: int) -> None:
        """Two random views of every support picture: one makes the prototypes, the other is to be recognised."""
        for p, value in zip(self.film, self.start, strict=True):
            p.requires_grad_(True).data.copy_(value)
        optimizer = torch.optim.Adam(self.film, RATE)
        random = torch.Generator().manual_seed(0)
        turned, truth = views(x, _VIEWS), torch.arange(ways).repeat_interleave(shots)
        for _ in range(STEPS):
            pick = torch.rand(len(x), _VIEWS, generator=random).argsort(1)[:, :2]
            both = torch.cat([turned[pick[:, i], torch.arange(len(x))] for i in (0, 1)])
            f = nn.functional.normalize(self.net(both.contiguous(memory_format=torch.channels_last)) - self.centre)
            prototypes = nn.functional.normalize(f[: len(x)].view(ways, shots, -1).mean(1))
            loss = nn.functional.cross_entropy(SCALE * f[len(x) :] @ prototypes.T, truth)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()

    def _features(self, x: Tensor) -> Array:
        parts = []
        for start in range(0, len(x), _AT_A_TIME):
            turned = views(x[start : start + _AT_A_TIME], _VIEWS)
            flat = self.net(turned.flatten(0, 1).contiguous(memory_format=torch.channels_last))
            parts.append(flat.view(_VIEWS, -1, flat.shape[-1]).mean(0) - self.centre)
        return np.asarray(torch.cat(parts).numpy())
