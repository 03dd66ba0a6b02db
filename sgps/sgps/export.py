"""A classifier as one ONNX file that says itself how to use it.

The graph is the stock network: `images` float32 [n, 3, size, size], normalised, to `logits` float32 [n, N], any n; and, where the
classifier knows other kinds of pictures, to their logits, `others` [n, C]. What comes before
(middle square, size, mean, std), around (views) and after (score, thresholds) stands in the file's metadata, every value JSON text.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sgps.calibration import NONE, RIVAL_WEIGHT
from sgps.classifier import WEIGHTS, Classifier, look
from sgps.errors import InputError, StateError
from sgps.files import write_atomic
from sgps.foreign import RULE, Foreign

PARITY = 1e-4  # of the largest logit, where that is above 1: the most by which onnxruntime may differ from torch
OPSET = 18
_CHECKED = (1, 3)  # pictures in the batches that are compared
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def onnx_bytes(classifier: Classifier) -> bytes:
    """The whole file. It was run by onnxruntime on random pictures, one and several, and gave the logits of torch.

    Raises StateError when a package is missing, or when the two differ by more than `PARITY`.
    """
    onnx, _, runtime = (_package(name) for name in _PACKAGES)
    r = classifier.record
    random = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 3, r.size, r.size, generator=random) for n in _CHECKED]
    network, outputs = classifier.network, ["logits"]
    if r.foreign:
        network, outputs = _WithOthers(network, r.foreign).eval(), ["logits", "others"]
    program = torch.onnx.export(
        network,
        (batches[-1],),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=outputs,
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
        verbose=False,
    )
    if program is None:
        raise StateError("torch made no ONNX program", where="torch.onnx", do="install the locked version")
    model = program.model_proto
    for node in model.graph.node:  # the exporter notes source files of this computer beside every operation
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.helper.set_model_props(model, {n: json.dumps(v, ensure_ascii=False) for n, v in metadata(classifier).items()})
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for x in batches:
        with torch.inference_mode():
            made = network(x)
            wanted = [t.numpy() for t in (made if r.foreign else (made,))]
        found = session.run(outputs, {"images": x.numpy()})
        pairs = [(f, w, max(1.0, float(np.abs(w).max()))) for f, w in zip(found, wanted, strict=True)]
        difference = max(float(np.abs(f - w).max()) / most for f, w, most in pairs)
        if not difference <= PARITY:
            raise StateError(
                f"onnxruntime differs from torch by {difference:.1e}",
                where="ONNX export",
                do="install the locked versions",
            )
    return data


class _WithOthers(nn.Module):
    """A network and, on the same features, the head of other kinds of pictures: their logits beside its own."""

    def __init__(self, network: nn.Module, foreign: Foreign) -> None:
        super().__init__()
        self.network, self.others = network, nn.Linear(foreign.width, len(foreign.ids))
        self.others.load_state_dict({"weight": torch.tensor(foreign.weight), "bias": torch.tensor(foreign.bias)})

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = look(self.network, x)
        return logits, self.others(features)


def metadata(classifier: Classifier) -> dict[str, Any]:
    """What a program needs besides the graph, and what a person must know. Everything that the classifier's folder says in numbers."""
    r = classifier.record
    c, o, f = r.calibration, r.origin, r.foreign
    return {
        "patient_data": "made from a patient's picture: keep it at the site, as you keep the picture",
        "intended_use": "research; not a medical device",
        "labels": list(r.labels),
        "ids": list(r.ids),
        "named": c.named,
        "size": r.size,
        "mean": list(r.mean),
        "std": list(r.std),
        "crop": "middle square",
        "resize": "bicubic, antialiased, clipped to 0..1",
        "input": "RGB, (x - mean) / std, x in 0..1, NCHW",
        "views": r.views,
        "views_rule": "logits are averaged over this many of: four quarter turns, then their mirror images",
        "score": c.formula,
        "rival_weight": RIVAL_WEIGHT,
        "threshold": c.threshold if np.isfinite(c.threshold) else None,
        "least": c.least,
        "other_kind": {"limit": f.limit, "ids": list(f.ids), "rule": RULE} if f else None,
        "accepted_rule": "score above threshold, largest logit at least `least`, not another kind of picture",
        "none_rule": f'"{NONE}" when every logit is below `least`, at another kind of picture, or when the one disease leads and is not accepted',
        "false_alarms": c.false_alarms,
        "probability": {"slope": c.slope, "offset": c.offset, "temperature": c.temperature},
        "licence": o.licence,
        "architecture": r.architecture,
        "weights_sha256": r.files.get(WEIGHTS),
        "release": o.release,
        "release_sha256": o.release_sha256,
        "encoder_sha256": o.encoder_sha256,
        "bank_sha256": o.bank_sha256,
    }


def save_onnx(classifier: Classifier, path: Path) -> None:
    """Write the file whole or not at all, mode 0600: it is patient data like the classifier. Raises InputError when it exists."""
    if path.exists():
        raise InputError("exists already", where=path, do="choose another name or remove it")
    if not path.parent.is_dir():
        raise InputError("does not exist", where=path.parent, do="make the folder first")
    write_atomic(path, onnx_bytes(classifier), mode=0o600)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise StateError("is not installed", where=name, do="install sgps[export]") from error
