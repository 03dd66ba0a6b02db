"""The method of arXiv 2511.14082 taken at its word: a transformer reads image and text tokens and writes every weight of the network.

No base network is moved, nothing is transplanted or centred, no prototype is in the head: 359 tensors come out of chunks of 8,192 values,
one token each (generator note, variant B), and the classifier's rows out of the class tokens. What the paper leaves open (its code and
sizes are not public) is filled kindly: the frozen image encoder is the release's own, weights start at the spread of a fresh network
(GHN-2), BatchNorm statistics start at those that a first generated network has on public pictures. It learns from tasks of drawn lesions
and of lesions of the data's other classes, no less long than the generator of the shipped release did
(two processor-minutes).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from bench.peers.public import Array
from sgps.calibration import fit_temperature
from sgps.images import batch, views
from sgps.target import Target

CHUNK, WIDTH, DEPTH, HEADS, MOST_WAYS = 8192, 256, 4, 4, 5
STEPS, RATE, ROW_RATE, QUERIES, SHOTS, CHECKED, STATISTICS = 120, 1e-5, 3e-4, 4, (1, 1, 5), 40, 64
_SMALL = 0.1  # spread of what is no kernel, around the values of a fresh layer
_VIEWS, _AT_A_TIME = 8, 8


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the chunks, and around which values."""

    name: str
    shape: tuple[int, ...]
    chunks: slice


@dataclass(frozen=True)
class Tasks:
    """What may be learned from, one set of classes. pixels [n, 3, s, s] float16, tokens [n, f], label [n]; texts: class -> [t]."""

    pixels: Tensor
    tokens: Tensor
    label: Array
    texts: dict[str, Tensor]


class Writer(nn.Module):
    """Tokens of a task -> all tensors of the target."""

    def __init__(self, target: Target, text: int) -> None:
        super().__init__()
        self.places, start = list[Place](), 0
        for name, value in target.base.items():
            if value.is_floating_point():
                count = math.ceil(value.numel() / CHUNK)
                self.places.append(Place(name, tuple(value.shape), slice(start, start + count)))
                start += count
        self.norms = {layer.norm for layer in target.layers}
        self.image, self.text = nn.Linear(target.width, WIDTH), nn.Linear(text, WIDTH)
        self.kind, self.slot = nn.Parameter(torch.randn(2, WIDTH)), nn.Parameter(torch.randn(MOST_WAYS, WIDTH))
        self.code = nn.Parameter(torch.randn(start, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.norm, self.chunk = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHUNK)
        self.row = nn.Linear(WIDTH, target.width + 1)
        nn.init.normal_(self.chunk.weight, std=WIDTH**-0.5)
        self.start = {p.name: torch.full(p.shape, float(p.name.endswith("running_var"))) for p in self.places}

    def forward(self, images: Tensor, texts: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """images [N, K, f], texts [N, t] -> body, weight [N, f], bias [N] of the last layer."""
        ways, shots, _ = images.shape
        slot = self.slot[:ways]
        seen = self.image(F.layer_norm(images, images.shape[-1:])) + self.kind[0] + slot[:, None]
        said = self.text(F.layer_norm(texts, texts.shape[-1:])) + self.kind[1] + slot
        tokens = torch.cat([seen.flatten(0, 1), said, self.code])[None]
        out = self.norm(self.layers(tokens))[0]
        read = ways * shots
        row = self.row(out[:read].view(ways, shots, -1).mean(1) + out[read : read + ways])
        chunks = self.chunk(out[read + ways :])
        body = {p.name: self._tensor(p, chunks[p.chunks].flatten()[: math.prod(p.shape)]) for p in self.places}
        return body, row[:, :-1] / math.sqrt(row.shape[1] - 1), row[:, -1]

    def _tensor(self, place: Place, values: Tensor) -> Tensor:
        x, (owner, _, end) = values.view(place.shape), place.name.rpartition(".")
        if end == "running_mean":
            return self.start[place.name] + _SMALL * self.start[f"{owner}.running_var"].sqrt() * x
        if end == "running_var":
            return self.start[place.name] * torch.exp(_SMALL * x)
        if end == "weight" and owner not in self.norms:
            return x * math.sqrt(2 / math.prod(place.shape[1:]))
        return _SMALL * x + (1.0 if end == "weight" else 0.0)


class Literal:
    """A writer, trained on public tasks. said: the accuracy on drawn classes that it did not learn from, for the log."""

    def __init__(
        self, target: Target, given: tuple[int, Sequence[float], Sequence[float]], sets: Sequence[Tasks], unseen: Tasks
    ) -> None:
        """given: size, mean and deviation of pictures. sets: to learn from; unseen: chooses the temperature."""
        self.target, self.given = target, given
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.writer = Writer(target, len(next(iter(unseen.texts.values()))))
            self._measure_statistics(sets)
            self._train(sets)
        self.writer.eval().requires_grad_(False)
        random, found = np.random.default_rng(2), []
        for _ in range(CHECKED):
            logits, truth = self._episode(unseen, 2, 1, random)
            found.append((logits.numpy().astype(np.float64), truth.numpy()))
        self.temperature = fit_temperature([z for z, _ in found], [t for _, t in found])
        self.said = float(np.mean([(z.argmax(1) == t).mean() for z, t in found]))

    def _measure_statistics(self, sets: Sequence[Tasks]) -> None:
        """Statistics of every BatchNorm, layer by layer in one pass, of the network that the fresh writer makes of one task."""
        first, random = sets[0], np.random.default_rng(0)
        support, _, names = self._draw(first, 2, 1, random)
        with torch.no_grad():
            body, _, _ = self.writer(first.tokens[support], torch.stack([first.texts[c] for c in names]))
            x = first.pixels[random.permutation(len(first.pixels))[:STATISTICS]].float()
            handles = []
            for norm in sorted(n for n in self.writer.norms if n):
                handles.append(self.target.net.get_submodule(norm).register_forward_pre_hook(self._hook(norm)))
            try:
                torch.func.functional_call(self.target.net, body, (x,))
            finally:
                for handle in handles:
                    handle.remove()

    def _hook(self, norm: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3)) + 1e-5
            self.writer.start[f"{norm}.running_mean"], self.writer.start[f"{norm}.running_var"] = (
                mean.clone(),
                var.clone(),
            )
            module.running_mean, module.running_var = mean, var  # functional_call puts the module's own back

        return hook

    def _draw(self, tasks: Tasks, ways: int, shots: int, random: np.random.Generator) -> tuple[Array, Array, list[str]]:
        names = [str(c) for c in random.choice(sorted(tasks.texts), ways, replace=False)]
        rows = np.stack(
            [random.choice(np.flatnonzero(tasks.label == c), shots + QUERIES, replace=False) for c in names]
        )
        return rows[:, :shots], rows[:, shots:], names

    def _episode(self, tasks: Tasks, ways: int, shots: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        support, queries, names = self._draw(tasks, ways, shots, random)
        body, weight, bias = self.writer(tasks.tokens[support], torch.stack([tasks.texts[c] for c in names]))
        x = tasks.pixels[queries.ravel()].float().contiguous(memory_format=torch.channels_last)
        return self.target.features(x, body) @ weight.T + bias, torch.arange(ways).repeat_interleave(QUERIES)

    def _train(self, sets: Sequence[Tasks]) -> None:
        """At 1e-4 kernels run away from their statistics within ten tasks (losses above 100), so that only the rows learn faster."""
        fast = [*self.writer.row.parameters(), *self.writer.image.parameters(), *self.writer.text.parameters()]
        slow = [p for p in self.writer.parameters() if not any(p is f for f in fast)]
        groups = [{"params": slow, "peak": RATE}, {"params": fast, "peak": ROW_RATE}]
        optimizer = torch.optim.AdamW(groups, RATE, weight_decay=0.01)
        random, right = np.random.default_rng(1), list[float]()
        for step in range(STEPS):
            for group in optimizer.param_groups:
                share = min(1.0, (step + 1) / (0.05 * STEPS)) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
                group["lr"] = group["peak"] * share
            tasks = sets[step % len(sets)]
            ways = int(random.integers(2, 1 + min(3, len(tasks.texts))))
            logits, truth = self._episode(tasks, ways, int(random.choice(SHOTS)), random)
            loss = F.cross_entropy(logits, truth, label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.writer.parameters(), 1.0)
            optimizer.step()
            right.append((float((logits.argmax(1) == truth).float().mean()) * ways - 1) / (ways - 1))
            if (step + 1) % 40 == 0:
                print(
                    f"literal {step + 1}/{STEPS}: loss {loss.item():.3f}, above chance {np.mean(right[-40:]):.3f}",
                    flush=True,
                )

    @torch.inference_mode()
    def scores(self, tokens: Array, texts: Array, queries: Sequence[Image]) -> Array:
        """tokens [N, K, f], texts [N, t], pictures -> scores [M, N]: features are the mean over eight views."""
        body, weight, bias = self.writer(torch.from_numpy(tokens).float(), torch.from_numpy(texts).float())
        parts = []
        for start in range(0, len(queries), _AT_A_TIME):
            x = views(batch(queries[start : start + _AT_A_TIME], *self.given), _VIEWS)
            flat = self.target.features(x.flatten(0, 1).contiguous(memory_format=torch.channels_last), body)
            parts.append(flat.view(_VIEWS, -1, flat.shape[-1]).mean(0))
        return np.asarray((torch.cat(parts) @ weight.T + bias).numpy(), np.float64)
