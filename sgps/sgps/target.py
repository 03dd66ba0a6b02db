"""The network that is synthesized: a frozen base, fixed factors, and small coefficients that move every tensor of it.

A dense kernel moves as `W0 + U C V` in its leading singular directions, a depthwise kernel by one gain per channel and tap, a
BatchNorm layer and a squeeze-excite bias along a few channel directions (generator note, section 5.2, variant E). Coefficients of
zero give the base bit for bit. Nothing here is trained, so it is not a Module.

The rows of V are orthogonal to the public mean input of their layer (section 5.3): a small coefficient then changes what a layer
does with the differences between images and not the constant that all images share, which trained features do not survive.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call

RANK, CHANNEL, TAPS = 8, 16, 9  # singular pairs of a kernel, channel directions of a layer, taps of a depthwise kernel
FACTORS = (".U", ".V")


@dataclass(frozen=True)
class Coefficients:
    """One set per layer. core [L, 8, 8], chan [L, 4, 16] (gamma, beta or bias, mean, variance), tap [L, 9, 16]."""

    core: Tensor
    chan: Tensor
    tap: Tensor

    @classmethod
    def zero(cls, layers: int) -> "Coefficients":
        return cls(torch.zeros(layers, RANK, RANK), torch.zeros(layers, 4, CHANNEL), torch.zeros(layers, TAPS, CHANNEL))


@dataclass(frozen=True)
class Layer:
    """A convolution and the BatchNorm that follows it, by their names in timm."""

    conv: str
    outputs: int
    depthwise: bool
    bias: bool
    norm: str | None
    eps: float


def network(architecture: str, outputs: int = 0) -> nn.Module:
    """A stock timm network in eval mode, with random weights. Raises ValueError when timm does not know an EfficientNet-V2 of the name."""
    if not architecture.startswith("tf_efficientnetv2_") or architecture not in timm.list_models("tf_efficientnetv2_*"):
        raise ValueError(f"{architecture} is not one of timm's tf_efficientnetv2_* networks")
    with torch.random.fork_rng(devices=[]):  # the weights are overwritten: do not move the caller's random state
        net: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=outputs)
    return net.eval().requires_grad_(False)


def layers_of(net: nn.Module) -> tuple[Layer, ...]:
    """Convolutions in timm's order. Raises ValueError when a BatchNorm does not follow its convolution."""
    found: list[Layer] = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups > 1
            if depthwise and (module.groups != module.out_channels or math.prod(module.kernel_size) != TAPS):
                raise ValueError(f"{name} is a grouped convolution of an unknown kind")
            found.append(Layer(name, module.out_channels, depthwise, module.bias is not None, None, 0.0))
        elif isinstance(module, nn.BatchNorm2d):
            last = found[-1]
            if last.norm is not None or last.outputs != module.num_features:
                raise ValueError(f"{name} does not follow a convolution of its width")
            found[-1] = Layer(last.conv, last.outputs, last.depthwise, last.bias, name, module.eps)
    return tuple(found)


def channel_basis(channels: int, random: np.random.RandomState) -> Tensor:
    """[channels, 16]: orthogonal columns, rows of norm about 1; columns past `channels` stay zero.

    Recomputed from the seed instead of being stored. NumPy's RandomState because its stream is frozen for good; float64 and a
    positive diagonal of R because a QR factorisation is unique only then: another LAPACK gives the same float32 numbers.
    """
    k = min(CHANNEL, channels)
    q, r = np.linalg.qr(random.standard_normal((channels, k)))
    out = np.zeros((channels, CHANNEL))
    out[:, :k] = q * np.sign(np.diag(r)) * math.sqrt(channels / k)
    return torch.from_numpy(out.astype(np.float32))


def input_means(net: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Mean input [in] of every dense convolution over images and places. batches: normalised images [n, 3, size, size]."""
    total: dict[str, Tensor] = {}
    count: dict[str, int] = {}

    def watch(name: str) -> "torch.utils.hooks.RemovableHandle":
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            total[name] = total.get(name, torch.zeros(())) + inputs[0].double().mean((2, 3)).sum(0)
            count[name] = count.get(name, 0) + len(inputs[0])

        return net.get_submodule(name).register_forward_pre_hook(hook)

    handles = [watch(layer.conv) for layer in layers_of(net) if not layer.depthwise]
    try:
        with torch.inference_mode():
            for images in batches:
                net(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (t / count[name]).float().clone() for name, t in total.items()}


def factors(net: nn.Module, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fixed factors of every dense kernel, float16: `<layer>.U` [out, 8] and `<layer>.V` [8, in * taps].

    The leading singular pairs, each side times sqrt(s); then V <- V - (V m) m^T / (m^T m) with the mean input m, repeated over
    the taps (generator note, section 5.3).
    """
    out: dict[str, Tensor] = {}
    for layer in layers_of(net):
        if layer.depthwise:
            continue
        flat = net.get_parameter(layer.conv + ".weight").detach().flatten(1).double()
        u, s, vh = torch.linalg.svd(flat, full_matrices=False)
        k = min(RANK, len(s))
        root = s[:k].sqrt()
        left, right = torch.zeros(len(flat), RANK), torch.zeros(RANK, flat.shape[1])
        v = root[:, None] * vh[:k]
        m = means[layer.conv].double().repeat_interleave(flat.shape[1] // len(means[layer.conv]))
        v = v - torch.outer(v @ m, m) / (m @ m).clamp(min=1e-12)
        left[:, :k], right[:k] = (u[:, :k] * root).float(), v.float()
        out[layer.conv + ".U"], out[layer.conv + ".V"] = left.half(), right.half()
    return out


class Target:
    """The frozen side of the generator: base tensors, fixed factors, coefficients -> all tensors of a network."""

    def __init__(
        self, architecture: str, base: Mapping[str, Tensor], fixed: Mapping[str, Tensor], seed: int = 0
    ) -> None:
        """base: state dict of the timm network without classifier; fixed: from `factors`.

        Raises ValueError when names or shapes do not fit the architecture.
        """
        self.architecture = architecture
        self.net = network(architecture)
        self.width = int(self.net.num_features)  # type: ignore[arg-type]
        try:
            self.net.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in base.items()})
        except RuntimeError as error:
            raise ValueError(f"the base is not a {architecture} without classifier") from error
        self.base = {n: t.detach().clone() for n, t in self.net.state_dict().items()}
        self.layers = layers_of(self.net)
        random = np.random.RandomState(seed)
        self._bias_basis: list[Tensor] = []
        self._kernel_basis: dict[str, Tensor] = {}
        self._fixed: dict[str, tuple[Tensor, Tensor]] = {}
        for layer in self.layers:
            self._bias_basis.append(channel_basis(layer.outputs, random))
            if layer.depthwise:
                self._kernel_basis[layer.conv] = channel_basis(layer.outputs, random)
                continue
            width = self.base[layer.conv + ".weight"][0].numel()
            pair = [fixed.get(layer.conv + end) for end in FACTORS]
            if (
                pair[0] is None
                or pair[1] is None
                or pair[0].shape != (layer.outputs, RANK)
                or pair[1].shape != (RANK, width)
            ):
                raise ValueError(f"the fixed factors of {layer.conv} do not fit")
            self._fixed[layer.conv] = (pair[0].float(), pair[1].float())

    def to(self, device: torch.device) -> "Target":
        """Itself, with every tensor on that device."""
        self.net.to(device)
        self.base = {n: t.to(device) for n, t in self.base.items()}
        self._bias_basis = [t.to(device) for t in self._bias_basis]
        self._kernel_basis = {n: t.to(device) for n, t in self._kernel_basis.items()}
        self._fixed = {n: (u.to(device), v.to(device)) for n, (u, v) in self._fixed.items()}
        return self

    def materialise(self, c: Coefficients) -> dict[str, Tensor]:
        """Parameters and running statistics of the body by timm name, without the step counters. Zero gives the base."""
        out, base = {}, self.base
        for place, layer in enumerate(self.layers):
            weight, bias = layer.conv + ".weight", layer.conv + ".bias"
            if layer.depthwise:
                gain = self._kernel_basis[layer.conv] @ c.tap[place].T
                out[weight] = base[weight] * (1 + gain.view_as(base[weight]))
            else:
                u, v = self._fixed[layer.conv]
                out[weight] = base[weight] + (u @ c.core[place] @ v).view_as(base[weight])
            gamma, beta, mean, variance = c.chan[place] @ self._bias_basis[place].T
            if layer.bias:
                out[bias] = base[bias] + beta
            if layer.norm is not None:
                w, b, m, s = (f"{layer.norm}.{end}" for end in ("weight", "bias", "running_mean", "running_var"))
                out[w], out[b] = base[w] * (1 + gamma), base[b] + beta
                out[m], out[s] = base[m] + base[s].sqrt() * mean, base[s] * torch.exp(variance)
        return out

    def features(self, images: Tensor, body: Mapping[str, Tensor] | None = None) -> Tensor:
        """Pooled features [n, f] of normalised images [n, 3, size, size]; body: none is the base. Differentiable in the body.

        torch's batch norm has no gradient for its statistics, so they are folded into the affine part first.
        """
        if body is None:
            return self.net(images)  # type: ignore[no-any-return]
        folded = dict(body)
        for layer in self.layers:
            if (name := layer.norm) is None:
                continue
            scale = body[name + ".weight"] / torch.sqrt(body[name + ".running_var"] + layer.eps)
            folded[name + ".weight"] = scale
            folded[name + ".bias"] = body[name + ".bias"] - body[name + ".running_mean"] * scale
            folded[name + ".running_mean"] = torch.zeros_like(scale).detach()
            folded[name + ".running_var"] = torch.full_like(scale, 1 - layer.eps).detach()
        return functional_call(self.net, folded, (images,))  # type: ignore[no-any-return]

    def export(self, body: Mapping[str, Tensor] | None, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """State dict of the stock timm network with N outputs, on the processor. weight [N, f], bias [N]; only the step counters are the
        base's."""
        state = {n: (body or {}).get(n, t) for n, t in self.base.items()}
        return {
            n: t.detach().cpu().clone()
            for n, t in {**state, "classifier.weight": weight, "classifier.bias": bias}.items()
        }
