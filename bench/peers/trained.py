"""easyfsl's methods that learn across tasks: MatchingNet, RelationNet and FEAT, on 256 principal directions of public features.

Each is trained for every number of ways and shots on tasks of one half of the public samples; the other half chooses the learning rate
and the temperature. The budget is the same for all. Pooled features have no height and width, so the relation module is made of 1x1
kernels instead of the library's 3x3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from easyfsl.methods import FEAT, FewShotClassifier, MatchingNetworks, RelationNetworks
from easyfsl.modules import MultiHeadAttention
from torch import Tensor, nn

from bench.peers.public import Array, Head, Public, best
from sgps.episodes import unit

DIRECTIONS, TRAINING_TASKS, RATES = 256, 200, (1e-4, 1e-3)
NAMES = ("matchingnet", "relationnet", "feat")


@dataclass(frozen=True)
class Space:
    """Features -> coordinates of about unit variance, which is what the modules start from."""

    directions: Array
    length: float | None

    @classmethod
    def of(cls, features: Array, centred: bool) -> "Space":
        """Principal directions of public features. centred: afterwards every sample has the same length."""
        directions = np.linalg.svd(features - features.mean(0), full_matrices=False)[2][:DIRECTIONS]
        lengths = np.linalg.norm(features @ directions.T, axis=1)
        return cls(directions, None if centred else float(lengths.mean()))

    def __call__(self, features: Array) -> Tensor:
        x = features @ self.directions.T
        x = (unit(x) if self.length is None else x / self.length) * np.sqrt(len(self.directions))
        return torch.from_numpy(np.ascontiguousarray(x, np.float32))


def _relation(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2 * width, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width, 8),
        nn.ReLU(),
        nn.Linear(8, 1),
        nn.Sigmoid(),
    )


def _squared(scores: Tensor, truth: Tensor) -> Tensor:
    return nn.functional.mse_loss(scores, nn.functional.one_hot(truth, scores.shape[1]).float())


def _made(name: str, width: int) -> tuple[FewShotClassifier, Callable[[Tensor, Tensor], Tensor]]:
    """The model and its loss, as the library's notes say."""
    if name == "matchingnet":
        return MatchingNetworks(feature_dimension=width), nn.functional.nll_loss
    if name == "relationnet":
        return RelationNetworks(feature_dimension=width, relation_module=_relation(width)), _squared
    return FEAT(attention_module=MultiHeadAttention(1, width, width, width)), nn.functional.cross_entropy


def _scores(model: FewShotClassifier, name: str, space: Space, support: Array, queries: Array) -> Tensor:
    ways, shots, f = support.shape
    x, q = space(support.reshape(-1, f)), space(queries)
    if name == "relationnet":
        x, q = x[..., None, None], q[..., None, None]
    model.process_support_set(x, torch.arange(ways).repeat_interleave(shots))
    scores: Tensor = model(q)
    return scores


def learned(name: str, public: Public, ways: int, shots: int, centred: bool) -> tuple[Head, float] | None:
    """Train; the head of the better learning rate and its temperature. None when the public samples give no tasks."""
    training, choosing = public.halves()
    tasks, check = training.tasks(ways, shots, TRAINING_TASKS, seed=1), choosing.tasks(ways, shots)
    if not tasks or not check:
        return None
    space = Space.of(training.features, centred)

    def train(rate: float) -> Head:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, loss = _made(name, len(space.directions))
            optimizer = torch.optim.Adam(model.parameters(), rate)
            model.train()
            for t in tasks:
                optimizer.zero_grad()
                scores = _scores(model, name, space, t.support, t.queries)
                torch.autograd.backward(loss(scores, torch.from_numpy(t.truth)))
                optimizer.step()
        model.eval()

        def head(support: Array, queries: Array) -> Array:
            with torch.no_grad():
                out = _scores(model, name, space, support, queries).numpy().astype(np.float64)
            return np.log(out + 1e-9) - np.log(1 - out + 1e-9) if name == "relationnet" else out

        return head

    heads = [train(rate) for rate in RATES]
    place, temperature = best([[head(t.support, t.queries) for t in check] for head in heads], [t.truth for t in check])
    return heads[place], temperature
