"""Start a V2-B0 from Lite0. Both halve the size at the same places, and Lite0's stage widths fit inside V2-B0's.

Stage outputs keep Lite0's channel order in the first channels, so that hints on stage outputs need no adapter. Extra residual
blocks start as identity, squeeze-and-excite near 1. The copy alone classifies nothing; distillation makes it useful.
"""

from typing import Any

import torch
from torch import Tensor


def _norm(target: Any, source: Any, count: int, chosen: Tensor | None = None) -> None:
    for key in ("weight", "bias", "running_mean", "running_var"):
        values = getattr(source, key)
        getattr(target, key)[:count] = values if chosen is None else values[chosen]


def _most_used(block: Any, count: int) -> Tensor:
    """The hidden channels that the projection uses most, in their old order."""
    strength: Tensor = block.conv_pwl.weight.flatten(1).norm(dim=0) * block.bn2.weight.abs()
    return strength.topk(min(count, len(strength))).indices.sort().values


def _middle(kernel: Tensor) -> Tensor:
    """The middle 3x3 of a 3x3 or 5x5 depthwise kernel."""
    edge = (kernel.shape[-1] - 3) // 2
    return kernel[:, :, edge : edge + 3, edge : edge + 3]


def _project(target: Any, source: Any, hidden: Tensor, norm: Any) -> None:
    """Projection and its BatchNorm; hidden channels that have no origin start a tenth as strong."""
    outputs = source.conv_pwl.weight.shape[0]
    target.conv_pwl.weight[:, len(hidden) :] *= 0.1
    target.conv_pwl.weight[:outputs, : len(hidden)] = source.conv_pwl.weight[:, hidden]
    _norm(norm, source.bn3, outputs)


def _fused(target: Any, source: Any) -> None:
    """3x3 convolution = depthwise after pointwise; the activation between them is left out."""
    inputs = source.conv_pw.weight.shape[1]
    hidden = _most_used(source, target.conv_exp.weight.shape[0])
    gain = source.bn1.weight / (source.bn1.running_var + source.bn1.eps).sqrt()
    pointwise = source.conv_pw.weight[hidden] * gain[hidden, None, None, None]
    target.conv_exp.weight[:, inputs:] *= 0.1
    depthwise = _middle(source.conv_dw.weight[hidden])
    target.conv_exp.weight[: len(hidden), :inputs] = depthwise * pointwise
    _norm(target.bn1, source.bn2, len(hidden), hidden)
    _project(target, source, hidden, target.bn2)


def _inverted(target: Any, source: Any) -> None:
    """Inverted residual: pointwise kernels and BatchNorm copied, depthwise kernels cropped."""
    inputs = source.conv_pw.weight.shape[1]
    hidden = _most_used(source, target.conv_pw.weight.shape[0])
    target.conv_pw.weight[:, inputs:] *= 0.1
    target.conv_pw.weight[: len(hidden), :inputs] = source.conv_pw.weight[hidden]
    _norm(target.bn1, source.bn1, len(hidden), hidden)
    target.conv_dw.weight[: len(hidden)] = _middle(source.conv_dw.weight[hidden])
    _norm(target.bn2, source.bn2, len(hidden), hidden)
    _project(target, source, hidden, target.bn3)


@torch.no_grad()
def transplant(base: Any, teacher: Any) -> Any:
    """Copy Lite0's filters into `base` (changed in place and returned). Both as made by `sgps.pretrain.networks`."""
    base.conv_stem.weight.copy_(teacher.conv_stem.weight)
    _norm(base.bn1, teacher.bn1, 32)
    for stage in range(1, 6):
        sources, targets = teacher.blocks[stage], base.blocks[stage]
        for place, target in enumerate(targets):
            if place >= len(sources):
                (target.bn3 if hasattr(target, "bn3") else target.bn2).weight.zero_()
            elif hasattr(target, "conv_exp"):
                _fused(target, sources[place])
            else:
                _inverted(target, sources[place])
    for module in base.modules():
        if hasattr(module, "conv_reduce"):
            module.conv_expand.weight *= 0.1
            module.conv_expand.bias.fill_(2.0)
    return base
