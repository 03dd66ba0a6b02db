"""Features of pictures, kept in a file under --out by the hash of each picture's bytes."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from bench.pictures import Pictures
from sgps.device import CPU
from sgps.encoders import ImageEncoder
from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.images import batch, views
from sgps.pretrain.networks import HALF, TEACHER_SHA256, pooled, read_teacher
from sgps.release import Release

Array = NDArray[Any]
LITE0_SIZE = 128  # pixels, the best of 96, 128 and 224 for frozen Lite0
_SAVE, _BATCH = 256, 8  # pictures; larger batches of views only move memory


def base_features(
    release: Release,
    pictures: Pictures,
    rows: Array,
    out: Path,
    broken: bool = False,
    views: int | None = None,
    device: torch.device = CPU,
) -> Array:
    """float32 [rows, f] under the release's base network. views: none is the release's own number.

    broken: a picture that cannot be read becomes a row of NaN instead of an InputError. device: where those that are not kept
    yet are computed.
    """
    encoder, name = ImageEncoder(release, device), release.manifest.encoder_sha256[:16]
    if views is None:
        return kept(name, encoder.features, pictures, rows, out, broken)
    return kept(f"{name}-{views}", lambda images: encoder.features(images, views), pictures, rows, out, broken)


class Lite0:
    """Frozen Lite0, eight views at 128 px. Raises InputError when it is not installed."""

    def __init__(self) -> None:
        self.net = read_teacher().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def features(self, images: Sequence[Image]) -> Array:
        """float32 [n, 1280]."""
        parts = []
        for start in range(0, len(images), _BATCH):
            turned = views(batch(images[start : start + _BATCH], LITE0_SIZE, HALF, HALF), 8)
            flat = pooled(self.net, turned.flatten(0, 1).contiguous(memory_format=torch.channels_last))
            parts.append(flat.view(*turned.shape[:2], -1).mean(0).numpy())
        return np.concatenate(parts)


def lite0_features(pictures: Pictures, rows: Array, out: Path) -> Array:
    """float32 [rows, 1280] under frozen Lite0."""
    return kept(TEACHER_SHA256[:16], Lite0().features, pictures, rows, out)


def kept(
    encoder: str,
    extract: Callable[[Sequence[Image]], Array],
    pictures: Pictures,
    rows: Array,
    out: Path,
    broken: bool = False,
) -> Array:
    path = out / f"features-{encoder}.safetensors"
    known: dict[bytes, Array] = {}
    if path.is_file():
        stored = safetensors.numpy.load(path.read_bytes())
        known = dict(zip((h.tobytes() for h in stored["sha256"]), stored["features"], strict=True))
    hashes = [pictures.sha256(int(r)) for r in rows]
    left = [(h, int(r)) for h, r in dict(zip(hashes, rows, strict=True)).items() if h not in known]
    start = time.perf_counter()
    for place in range(0, len(left), _SAVE):
        part = left[place : place + _SAVE]
        images = [(h, i) for h, r in part if (i := _image(pictures, r, broken)) is not None]
        if images:
            known |= dict(zip((h for h, _ in images), extract([i for _, i in images]), strict=True))
            table = {
                "sha256": np.stack([np.frombuffer(h, np.uint8) for h in known]),
                "features": np.stack(list(known.values())),
            }
            write_atomic(path, safetensors.numpy.save(table))
        print(f"features {place + len(part)}/{len(left)}, {time.perf_counter() - start:.0f} s", flush=True)
    if not known:
        raise InputError("no picture can be read", where=pictures.source.where)
    nothing = np.full(len(next(iter(known.values()))), np.nan, np.float32)
    return np.stack([known.get(h, nothing) for h in hashes])


def _image(pictures: Pictures, row: int, broken: bool) -> Image | None:
    try:
        return pictures.image(row)
    except InputError:
        if not broken:
            raise
        return None
