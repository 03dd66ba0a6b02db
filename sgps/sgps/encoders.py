"""Frozen encoders: pictures and clinical texts to features. The image encoder is the base network of a release."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from sgps.errors import SignatureError
from sgps.images import batch, views
from sgps.release import GENERATOR, Release
from sgps.target import Target
from sgps.text import TextEncoder

__all__ = ["ImageEncoder", "TextEncoder", "target_of"]
BASE, FIXED = "base.", "fixed."
_BATCH = 32  # pictures at a time: eight views of 32 pictures at 96 px take some 300 MB


def target_of(release: Release) -> Target:
    """The frozen side of a release's generator. Raises SignatureError when its tensors do not fit its architecture."""
    base, fixed = (_tensors(release, prefix) for prefix in (BASE, FIXED))
    try:
        return Target(release.manifest.architecture.base, base, fixed)
    except ValueError as error:
        raise SignatureError(str(error), where=release.folder / GENERATOR, do="get the release again") from error


class ImageEncoder:
    """Pictures -> pooled features of the base network, or of a body that was synthesized from it."""

    def __init__(self, release: Release) -> None:
        self.release = release

    @cached_property
    def target(self) -> Target:
        return target_of(self.release)

    @torch.inference_mode()
    def features(
        self, images: Sequence[Image], views: int | None = None, body: Mapping[str, Tensor] | None = None
    ) -> NDArray[np.float32]:
        """[n, f] float32: for each picture the mean over its views.

        views: 1 to 8 flips and quarter turns; none is the release's number. body: tensors of `Target.materialise`; none is the
        base. A picture's features do not depend on the pictures beside it (but for rounding).
        """
        a = self.release.manifest.architecture
        count = a.views if views is None else views
        parts = [
            view_means(self.target, batch(images[start : start + _BATCH], a.size, a.mean, a.std), count, body)
            for start in range(0, len(images), _BATCH)
        ]
        return np.concatenate([p.numpy() for p in parts]) if parts else np.zeros((0, self.target.width), np.float32)


def view_means(target: Target, x: Tensor, count: int, body: Mapping[str, Tensor] | None = None) -> Tensor:
    """Normalised images [n, 3, s, s] -> features [n, f], the mean over `count` views."""
    turned = views(x, count)
    flat = target.features(turned.flatten(0, 1).contiguous(memory_format=torch.channels_last), body)
    return flat.view(count, len(x), -1).mean(0)


def _tensors(release: Release, prefix: str) -> dict[str, Tensor]:
    return {n: torch.from_numpy(a) for n, a in release.tensors(GENERATOR, prefix).items()}
