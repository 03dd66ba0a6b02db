"""Where numbers are computed: on the processor, or on an accelerator where there is one.

Training of the base network, features and synthesis may use an accelerator. What goes into a privately noised sum never does: its
features are read on the processor, and clipped and noised there in float64 (`sgps_privacy`). That is where the audit's claims were
checked, and an accelerator adds in an order of its own.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Final

import torch

from sgps.errors import ConfigError, StateError

AUTO, NAMES = "auto", ("auto", "cpu", "cuda")
CPU: Final = torch.device("cpu")


def choose(name: str = AUTO) -> torch.device:
    """`auto` is CUDA where it is present, else the processor. Raises ConfigError, one line, for `cuda` where there is none."""
    if name not in NAMES:
        raise ConfigError(f"{name!r} is unknown", where="device", do=f"choose {', '.join(NAMES)}")
    if name == "cpu" or (name == AUTO and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        why = "no accelerator or no driver" if torch.version.cuda else "this torch was built without it"
        raise ConfigError(f"no CUDA here: {why}", where="device cuda", do="choose auto or cpu, or look at nvidia-smi")
    # read by cuBLAS when it starts: sums in the same order each time
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device("cuda")


def described(device: torch.device) -> str:
    """For a person and for records: `cpu`, or `cuda (NVIDIA H100 80GB HBM3)`."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether an accelerator multiplies bfloat16 in hardware, not by way of float32."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextlib.contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """On CUDA: whole float32 (no TF32) and the same sums in the same order each time, as far as torch has such kernels. On the
    processor nothing is set: it computes so anyway. Raises StateError where an accelerator's memory does not suffice."""
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        _set(cudnn, matmul, (False, False, False, True))
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    except torch.OutOfMemoryError as error:
        raise StateError(
            "has not enough free memory", where="device cuda", do="choose --device cpu, or free it"
        ) from error
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        _set(cudnn, matmul, before)


def _set(cudnn: Any, matmul: Any, values: tuple[bool, bool, bool, bool]) -> None:
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic = values
