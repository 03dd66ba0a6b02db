"""The generator: class tokens -> small coefficients of every layer and residuals of the head.

One token per class, the sum of an image, a text and a memory part (summed, because separate tokens lose which text belongs to
which image; generator note, 5.2), a set encoder over the classes, one code per layer, three shared heads. Heads start at zero:
then the body is the base and the head is centred cosine prototypes.

Three learned parts are switched on separately (`PARTS`); a part that is off contributes exactly zero and is not computed:
    body    coefficients of every tensor of the body
    head    residual, gate, gain and bias of each class from its token
    text    the text's share of the token, and the text's residual to the prototype
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgps.target import CHANNEL, RANK, TAPS, Coefficients

PARTS = ("body", "head", "text")
BOUNDS = (
    0.03,
    0.05,
    0.02,
)  # largest coefficient of core, chan, tap: wider destroys trained features (generator note, 5.3)
TEXT = 384  # width of a sentence embedding of the installed text encoder
HEADS, BOTTLENECK = 4, 32
MOST_SHOTS = 10.0  # a class of more exemplars says so to its token no louder than this


@dataclass(frozen=True)
class ClassInputs:
    """What is known of N classes.

    features [N, f]: prototype under the base, memory blended in. shots [N]: exemplars and own patients behind it. row [N, k]: class memory in public
    coordinates divided by the radius. worth [N]: 0 where no row is used. text [N, t], attributes [N, a]: clinical text.
    """

    features: Tensor
    shots: Tensor
    row: Tensor
    worth: Tensor
    text: Tensor
    attributes: Tensor


class Generator(nn.Module):
    """Everything that is learned. The target network and the head's centre and scale are not part of it."""

    def __init__(
        self,
        *,
        layers: int,
        features: int,
        attributes: int,
        coordinates: int = 64,
        width: int = 64,
        depth: int = 1,
        text: int = TEXT,
    ) -> None:
        """layers: of the target. features: width of the base's features. attributes: signed attributes of a text; text: width of its
        embedding."""
        super().__init__()
        self.image, self.image_kind = nn.Linear(features, width), nn.Parameter(0.1 * torch.randn(width))
        self.sentence, self.text_kind = nn.Linear(text, width), nn.Parameter(0.1 * torch.randn(width))
        self.attribute = nn.Linear(attributes, width, bias=False)
        self.memory = nn.Linear(coordinates + 1, width, bias=False)
        self.shots = nn.Parameter(0.1 * torch.randn(width))
        self.layer = nn.Parameter(torch.randn(layers, width))
        options = {
            "dim_feedforward": 2 * width,
            "dropout": 0.0,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }
        self.encoder = nn.ModuleList(nn.TransformerEncoderLayer(width, HEADS, **options) for _ in range(depth))  # type: ignore[arg-type]
        self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(width, HEADS, **options) for _ in range(depth))  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(width)
        self.core, self.chan = nn.Linear(width, RANK * RANK), nn.Linear(width, 4 * CHANNEL)
        self.tap = nn.Linear(width, TAPS * CHANNEL)
        self.text_down = nn.Linear(text + attributes, BOTTLENECK, bias=False)
        self.text_up = nn.Linear(BOTTLENECK, features, bias=False)
        self.token_down, self.token_up = nn.Linear(width, BOTTLENECK), nn.Linear(BOTTLENECK, features, bias=False)
        self.gate = nn.Linear(width, 3)
        for start_at_zero in (self.memory, self.core, self.chan, self.tap, self.text_up, self.token_up, self.gate):
            for parameter in start_at_zero.parameters():
                nn.init.zeros_(parameter)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], depth: int) -> "Generator":
        """The generator that a release stores; sizes are those of the tensors. Raises ValueError when they do not fit."""
        try:
            out = cls(
                layers=len(tensors["layer"]),
                features=tensors["image.weight"].shape[1],
                attributes=tensors["attribute.weight"].shape[1],
                coordinates=tensors["memory.weight"].shape[1] - 1,
                width=len(tensors["norm.weight"]),
                text=tensors["sentence.weight"].shape[1],
                depth=depth,
            )
            out.load_state_dict({n: t.float() for n, t in tensors.items()})
        except (KeyError, IndexError, RuntimeError, AssertionError) as error:
            raise ValueError("the generator's tensors do not fit each other") from error
        return out.eval().requires_grad_(False)

    def tokens(self, c: ClassInputs, parts: Collection[str] = PARTS) -> Tensor:
        """[N, width]. Any N; another order of classes gives the same tokens in that order."""
        known = torch.log1p(c.shots.clamp(max=MOST_SHOTS)).unsqueeze(-1) * self.shots
        x = self.image(F.layer_norm(c.features, c.features.shape[-1:])) + self.image_kind + known
        worth = c.worth.unsqueeze(-1)
        x = x + self.memory(torch.cat([c.row * worth / (1 + worth), torch.log1p(worth)], -1))
        if "text" in parts:
            x = (
                x
                + self.sentence(F.layer_norm(c.text, c.text.shape[-1:]))
                + self.attribute(c.attributes)
                + self.text_kind
            )
        x = x.unsqueeze(0)
        for layer in self.encoder:
            x = layer(x)
        return torch.squeeze(x, 0)

    def coefficients(self, tokens: Tensor) -> Coefficients:
        """Bounded coefficients of every layer from the tokens [N, width] of all classes."""
        q = self.layer.unsqueeze(0)
        for layer in self.decoder:
            q = layer(q, tokens.unsqueeze(0))
        q = self.norm(q)[0]
        core, chan, tap = (
            bound * torch.tanh(head(q)) for bound, head in zip(BOUNDS, (self.core, self.chan, self.tap), strict=True)
        )
        n = len(q)
        return Coefficients(core.view(n, RANK, RANK), chan.view(n, 4, CHANNEL), tap.view(n, TAPS, CHANNEL))

    def head(
        self,
        prototypes: Tensor,
        c: ClassInputs,
        tokens: Tensor,
        centre: Tensor,
        scale: float,
        parts: Collection[str] = PARTS,
        spread: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Prototypes [N, f] -> weight [N, f] and bias [N] of a stock linear layer (generator note, section 6). spread: of `linear_head`.

        z_c = v_c + (1 + gate_c) T_c / n_c + R_c; the scale is s exp(g), g the mean gain of the classes. n_c: patients behind the
        prototype, those that the memory stands for included: a text counts as one patient more, however many there are.
        """
        gate = (
            torch.tanh(self.gate(tokens))
            if "head" in parts
            else torch.zeros(len(prototypes), 3, device=prototypes.device)
        )
        z = prototypes
        if "text" in parts:
            said = self.text_up(self.text_down(torch.cat([c.text, c.attributes], -1)))
            z = z + (1 + gate[:, 2:]) * said / (c.shots + c.worth).clamp(min=1).unsqueeze(-1)
        if "head" in parts:
            z = z + self.token_up(self.token_down(tokens))
        weight, bias = linear_head(z, centre, scale * torch.exp(gate[:, 0].mean()), spread)
        return weight, bias + gate[:, 1]


@dataclass(frozen=True)
class Trust:
    """How far exemplars' differences are trusted (`spread_of`): of a class of at least `least` of them; the identity counts as `prior` patients."""

    least: int
    prior: float


KNOWN_KIND = Trust(10, 1.0)
"""Of a kind of picture that the bank holds: training has taken much of the spread away, and what five show of it misleads on some diseases."""
STRANGE_KIND = Trust(2, 0.3)
"""Of a kind that it does not hold. Measured in docs/results/heads.md and strange.md."""


def spread_of(groups: Sequence[Tensor], centre: Tensor, trust: Trust = KNOWN_KIND) -> Tensor:
    """How exemplars of one class differ: rows [n, f] of their unit directions from the centre, less each class's mean, over the square root
    of the prior; none of a class of too few. groups: features [k, f] of each class."""
    units = [F.normalize(x - centre, dim=-1) for x in groups if len(x) >= trust.least]
    rows = torch.cat([u - u.mean(0) for u in units]) if units else centre.new_zeros(0, len(centre))
    return rows / float(trust.prior**0.5)


def linear_head(
    prototypes: Tensor, centre: Tensor, scale: Tensor | float, spread: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Centred cosine prototypes as one linear layer: w = s A z / sqrt(z.A z), z = v - m, b = -w.m (generator note, section 6).

    prototypes [N, f], centre [f], spread [n, f] (`spread_of`) -> weight [N, f], bias [N]. A = (I + spread^T spread)^-1: directions in
    which exemplars of one class differ count less, the more of them have shown it. That is the within-class scatter of a linear
    discriminant, shrunk to the identity as if one patient had spread evenly (Friedman 1989, regularized discriminant analysis).
    Without spread A = I, and w.f + b = s |f - m| cos.
    """
    z = prototypes - centre
    if spread is None or not len(spread):
        weight = F.normalize(z, dim=-1) * scale
        return weight, -weight @ centre
    n, f = spread.shape
    if n <= f:  # by Woodbury, since exemplars are few
        inner = torch.eye(n, dtype=z.dtype, device=z.device) + spread @ spread.T
        turned = z - torch.linalg.solve(inner, spread @ z.T).T @ spread
    else:
        turned = torch.linalg.solve(torch.eye(f, dtype=z.dtype, device=z.device) + spread.T @ spread, z.T).T
    weight = turned * (scale / (turned * z).sum(-1, keepdim=True).sqrt())
    return weight, -weight @ centre
