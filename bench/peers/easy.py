"""easyfsl's methods that learn nothing across tasks, on cached features; the library's defaults, and for Finetune one further setting.

Inductive: ProtoNet, SimpleShot, Finetune. Transductive (they see all queries of a task at once): BD-CSPN, LaplacianShot, TIM, PT-MAP,
transductive fine-tuning.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from easyfsl.methods import (
    BDCSPN,
    PTMAP,
    TIM,
    FewShotClassifier,
    Finetune,
    LaplacianShot,
    PrototypicalNetworks,
    SimpleShot,
    TransductiveFinetuning,
)

from bench.peers.public import Array, Head

INDUCTIVE: dict[str, tuple[Callable[..., FewShotClassifier], tuple[Mapping[str, Any], ...]]] = {
    "protonet": (PrototypicalNetworks, ({},)),
    "simpleshot": (SimpleShot, ({},)),
    "finetune": (Finetune, ({}, {"fine_tuning_lr": 1e-2, "temperature": 10.0})),
}
TRANSDUCTIVE: dict[str, tuple[Callable[..., FewShotClassifier], tuple[Mapping[str, Any], ...]]] = {
    "bd-cspn": (BDCSPN, ({},)),
    "laplacian-shot": (LaplacianShot, ({},)),
    "tim": (TIM, ({},)),
    "pt-map": (PTMAP, ({},)),
    "transductive-finetuning": (TransductiveFinetuning, ({},)),
}
SHARES = ("laplacian-shot", "pt-map")  # they answer with shares between 0 and 1


def heads(name: str, centred: bool) -> tuple[Head, ...]:
    """The settings of a method, to choose from. centred: features come centred and are then brought to length 1 by the library.

    Scores that are not finite (PT-MAP's transport plan may overflow) count as equal.
    """
    make, settings = (INDUCTIVE | TRANSDUCTIVE)[name]
    norm = 2.0 if centred else None

    def of(setting: Mapping[str, Any]) -> Head:
        def head(support: Array, queries: Array) -> Array:
            ways, shots, f = support.shape
            model = make(feature_normalization=norm, **setting)
            with torch.no_grad():
                flat = torch.from_numpy(np.ascontiguousarray(support.reshape(-1, f), np.float32))
                model.process_support_set(flat, torch.arange(ways).repeat_interleave(shots))
                out = model(torch.from_numpy(np.ascontiguousarray(queries, np.float32))).numpy().astype(np.float64)
            out = np.log(out + 1e-9) if name in SHARES else out
            return np.where(np.isfinite(out).all(1, keepdims=True), out, 0.0)

        return head

    return tuple(of(s) for s in settings)
