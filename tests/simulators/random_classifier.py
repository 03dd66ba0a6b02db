"""A classifier with random weights: a real network and a real folder, predictions that mean nothing."""

import numpy as np
import timm
import torch

from sgps.calibration import Calibration, Share
from sgps.classifier import Classifier
from sgps.record import Disease, Origin, Record

ARCHITECTURE, SIZE = "tf_efficientnetv2_b0", 64


def make(*named: str, rivals: tuple[str, ...] = (), ids: tuple[str, ...] = ()) -> Classifier:
    """ids: catalogue id of each output, or none."""
    labels = (*named, *rivals)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model(ARCHITECTURE, num_classes=len(labels))
    calibration = Calibration(
        named=len(named),
        false_alarms=0.1,
        negatives=tuple(np.linspace(-1, 1, 60).tolist()),
        least=-9.0,
        slope=1.0,
        offset=0.0,
        temperature=1.0,
        measured=(Share.of("all", 5, 60),),
    )
    origin = Origin(
        release="test",
        release_sha256="0" * 64,
        bank_sha256="0" * 64,
        encoder_sha256="0" * 64,
        licence="none",
        domain="dermoscopy",
        diseases=tuple(Disease(label=n, id=None, text=n, exemplars=1, own=0, worth=0) for n in named),
        rivals=(),
        negatives=(),
        rehearsed=(),
        learned=(),
        cosine=1.0,
        provenance=(),
        seconds={"weights": 0.1, "all": 0.2},
    )
    record = Record(
        architecture=ARCHITECTURE,
        size=SIZE,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        views=1,
        labels=labels,
        ids=ids or tuple(None for _ in labels),
        calibration=calibration,
        origin=origin,
    )
    return Classifier(record, net.state_dict())
