"""A synthesized classifier: a stock timm EfficientNet-V2, its calibration, and the folder that keeps both.

    classifier.safetensors   the state dict: `timm.create_model(name, num_classes=N).load_state_dict(..., strict=True)`
    config.json              timm's model configuration, so that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads it
    calibration.json         `Record`: labels, preprocessing, thresholds, score formula, hashes, what it was made from
    MODEL_CARD.md            for a person

The folder is patient data: weights and thresholds are made from the exemplar (design D10). Mode 0700, files 0600.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from pydantic import ValidationError
from torch import Tensor, nn

from sgps.calibration import NONE
from sgps.card import card
from sgps.device import CPU, exact
from sgps.errors import InputError, SignatureError
from sgps.files import new_folder, read_limited, sha256_file, write_atomic
from sgps.images import batch, views
from sgps.record import Record
from sgps.settings import problems
from sgps.target import network

WEIGHTS, CONFIG, CALIBRATION, CARD = "classifier.safetensors", "config.json", "calibration.json", "MODEL_CARD.md"
_LIMIT = 1 << 30  # bytes of the weights
_BATCH = 32  # pictures at a time


def look(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, N] and features [n, f] of a stock timm network: what its `forward` does, in two steps."""
    features: Tensor = net.forward_head(net.forward_features(x), pre_logits=True)
    return net.get_classifier()(features), features


@dataclass(frozen=True)
class Prediction:
    """What the classifier says about one picture.

    label: an output, or "none of these". scores: logit of every output, averaged over the views. probability: of the one disease at
    even odds, or of the label among several; calibrated on public classes. accepted: the claim holds at the stated false-alarm
    level. other_kind: the picture is of another kind
    than the exemplars, as far as the bank knows kinds. p: conformal p value of the best named output. score: its score (`sgps.calibration`).
    """

    label: str
    scores: dict[str, float]
    probability: float
    accepted: bool
    none_of_these: bool
    other_kind: bool
    p: float
    score: float


@dataclass(frozen=True)
class Classifier:
    """record: all but the weights. state: state dict of the stock timm network, float32, on the processor. device: where pictures are
    looked at."""

    record: Record
    state: dict[str, Tensor]
    device: torch.device = CPU

    @property
    def labels(self) -> tuple[str, ...]:
        """Outputs in the order of the logits: the named ones first."""
        return self.record.labels

    @property
    def named(self) -> tuple[str, ...]:
        """The diseases that were asked for."""
        return self.labels[: self.record.calibration.named]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about how it was made, one line each."""
        return self.record.notes

    @cached_property
    def network(self) -> nn.Module:
        """The stock timm network with these weights, in eval mode, on the device."""
        net = network(self.record.architecture, len(self.labels))
        net.load_state_dict(self.state, strict=True)
        return net.to(self.device)

    def logits(self, images: Sequence[Image], view_count: int | None = None) -> NDArray[np.float32]:
        """[n, N] float32, averaged over views; with one view those of the plain timm network."""
        return self.looked_at(images, view_count)[0]

    @torch.inference_mode()
    def looked_at(
        self, images: Sequence[Image], view_count: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [n, N] and features [n, f], float32, averaged over views."""
        r, net = self.record, self.network
        count, logits, features = view_count or r.views, [], []
        for start in range(0, len(images), _BATCH):
            x = batch(images[start : start + _BATCH], r.size, r.mean, r.std).to(self.device)
            turned = views(x, count).flatten(0, 1).contiguous(memory_format=torch.channels_last)
            with exact(self.device):
                out, f = look(net, turned)
            logits.append(out.view(count, len(x), -1).mean(0).cpu().numpy())
            features.append(f.view(count, len(x), -1).mean(0).cpu().numpy())
        if not images:
            width = self.state["classifier.weight"].shape[1]
            return np.zeros((0, len(self.labels)), np.float32), np.zeros((0, width), np.float32)
        return np.concatenate(logits), np.concatenate(features)

    def predict(self, images: Sequence[Image]) -> list[Prediction]:
        """One prediction for each picture; it does not depend on the other pictures."""
        if not images:
            return []
        found, features = self.looked_at(images)
        logits, foreign = found.astype(np.float64), self.record.foreign
        other = foreign.found(features, logits) if foreign else np.zeros(len(logits), bool)
        d = self.record.calibration.decide(logits, other)
        return [
            Prediction(
                label=NONE if d.none[i] else self.labels[int(d.output[i])],
                scores=dict(zip(self.labels, logits[i].tolist(), strict=True)),
                probability=float(d.probability[i]),
                accepted=bool(d.accepted[i]),
                none_of_these=bool(d.none[i]),
                other_kind=bool(other[i]),
                p=float(d.p[i]),
                score=float(d.score[i]),
            )
            for i in range(len(images))
        ]

    def save(self, folder: Path) -> None:
        """Write the model folder whole or not at all. Raises InputError when it exists."""
        with new_folder(folder, mode=0o700) as work:
            weights = safetensors.torch.save(
                {n: t.contiguous() for n, t in sorted(self.state.items())}, {"format": "pt"}
            )
            for name, data in (
                (WEIGHTS, weights),
                (CONFIG, json.dumps(self._timm_config(), indent=1).encode()),
                (CARD, card(self.record).encode()),
            ):
                write_atomic(work / name, data, mode=0o600)
            files = {name: sha256_file(work / name) for name in (WEIGHTS, CONFIG, CARD)}
            record = self.record.model_copy(update={"files": files})
            write_atomic(work / CALIBRATION, record.model_dump_json(indent=1, exclude_none=False).encode(), mode=0o600)

    @classmethod
    def load(cls, folder: Path, device: torch.device = CPU) -> "Classifier":
        """Read a model folder. device: where pictures will be looked at. Raises InputError when a file is missing, SignatureError when one is not what was saved."""
        again = "synthesize it again or restore it from its copy"
        try:
            record = Record.model_validate_json(read_limited(folder / CALIBRATION, 16 << 20))
        except ValidationError as error:
            raise InputError("; ".join(problems(error)[:3]), where=folder / CALIBRATION, do=again) from error
        if set(record.files) != {WEIGHTS, CONFIG, CARD}:
            raise InputError("does not name its files", where=folder / CALIBRATION, do=again)
        for name, expected in record.files.items():
            data = read_limited(folder / name, _LIMIT)
            if hashlib.sha256(data).hexdigest() != expected:
                raise SignatureError("has changed since the classifier was saved", where=folder / name, do=again)
            if name == WEIGHTS:
                weights = data
        try:
            out = cls(record, safetensors.torch.load(weights), device)
            _ = out.network
            if record.foreign and record.foreign.width != out.state["classifier.weight"].shape[1]:
                raise ValueError("the classes of other kinds do not fit the network")
        except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
            raise InputError(
                "does not hold the tensors of its architecture", where=folder / WEIGHTS, do=again
            ) from error
        return out

    def _timm_config(self) -> dict[str, Any]:
        r, n = self.record, len(self.labels)
        return {
            "architecture": r.architecture,
            "num_classes": n,
            "num_features": self.state["classifier.weight"].shape[1],
            "label_names": list(r.labels),
            "pretrained_cfg": {
                "tag": "sgps",
                "custom_load": False,
                "input_size": [3, r.size, r.size],
                "fixed_input_size": False,
                "interpolation": "bicubic",
                "crop_pct": 1.0,
                "crop_mode": "center",
                "mean": list(r.mean),
                "std": list(r.std),
                "num_classes": n,
                "pool_size": [(r.size + 31) // 32] * 2,
                "first_conv": "conv_stem",
                "classifier": "classifier",
            },
        }
