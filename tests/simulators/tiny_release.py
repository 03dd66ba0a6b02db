"""A release of a few kilobytes: real format, real hashes, three classes and four coordinates, no network to build."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from sgps.memory import Coordinates, Memory
from sgps.release import (
    BANK,
    CATALOGUE,
    GENERATOR,
    MEMORY,
    Architecture,
    Manifest,
    TextEncoder,
    encoder_sha256,
    memory_bytes,
    write,
)

CLASSES, WIDTH, FEATURES = ("akiec", "df", "vasc"), 4, 6


def coordinates() -> Coordinates:
    rng = np.random.default_rng(7)
    directions = np.linalg.qr(rng.normal(size=(FEATURES, WIDTH)))[0].T.astype(np.float32)
    return Coordinates(rng.normal(size=FEATURES).astype(np.float32), directions, radius=2.0, within=1.5)


def make(target: Path, floats: int = 6) -> Path:
    """Write it unsigned, as the shipped one is; the base has that many random numbers. Returns the folder."""
    memory = Memory.empty(coordinates(), CLASSES)
    base = {"base.conv_stem.weight": np.random.default_rng(1).normal(size=floats).astype(np.float32)}
    architecture = Architecture(base="tiny", size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), width=8, depth=1)
    manifest = Manifest(
        name="shipped",
        federation="none",
        architecture=architecture,
        text_encoder=TextEncoder(name="none", sha256="0" * 64),
        encoder_sha256=encoder_sha256(base, architecture, memory),
        classes=CLASSES,
        files={},
        licence="Apache-2.0",
        intended_use="tests",
        provenance=(),
        code_sha256="0" * 64,
    )
    contents: dict[str, bytes | Path] = {
        GENERATOR: save(base),
        MEMORY: memory_bytes(memory),
        BANK: save({"bank": np.zeros((1, FEATURES), np.float16)}),
        CATALOGUE: b"classes: []\n",
    }
    write(target, contents, manifest, key=None)
    return target
