"""An accelerator that holds no numbers, for machines without one: shapes and devices are followed through every operation, in both
directions, and an operation on tensors of two devices raises as CUDA would. torch's fake tensors do it; the device's name is
`lazy`, for autograd refuses a CUDA device where there is no driver.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

DEVICE = torch.device("lazy:0")


def _moved(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`Module._apply`, which swaps a fake tensor in place and so cannot do it twice."""
    for child in module.children() if recurse else ():
        child._apply(change)
    for name, value in module._parameters.items():
        if value is not None:
            with torch.no_grad():
                new = change(value)
            module._parameters[name] = nn.Parameter(new, value.requires_grad)
    for name, held in module._buffers.items():
        if held is not None:
            module._buffers[name] = change(held)
    return module


def _number(tensor: Tensor) -> float:
    """There is none. Reading one is right from any device."""
    return 0.5


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(tensor) not in memo:
        new = tensor.detach().clone()
        memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    kept: Tensor = memo[id(tensor)]
    return kept


def _array(tensor: Tensor) -> Any:
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy")
    return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


@contextlib.contextmanager
def accelerator() -> Iterator[torch.device]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "_apply", _moved)
        for name in ("item", "__float__"):
            patch.setattr(FakeTensor, name, _number, raising=False)
        patch.setattr(FakeTensor, "numpy", _array, raising=False)
        patch.setattr(FakeTensor, "__deepcopy__", _copied, raising=False)
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield DEVICE
