"""Frozen encoders: pictures and clinical texts to features. The image encoder is the base network of a release."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from sgps.device import CPU, exact
from sgps.errors import ConfigError, SignatureError
from sgps.images import batch, views
from sgps.open_encoders import OpenText, Spec
from sgps.release import GENERATOR, Release
from sgps.target import Target
from sgps.text import TextEncoder

__all__ = ["ImageEncoder", "TextEncoder", "target_of", "text_encoder_of"]
BASE, FIXED = "base.", "fixed."
_BATCH = 32  # pictures at a time: eight views of 32 pictures at 96 px take some 300 MB


def target_of(release: Release, device: torch.device = CPU) -> Target:
    """The frozen side of a release's generator. Raises SignatureError when its tensors do not fit its architecture."""
    base, fixed = (_tensors(release, prefix) for prefix in (BASE, FIXED))
    try:
        return Target(release.manifest.architecture.base, base, fixed).to(device)
    except ValueError as error:
        raise SignatureError(str(error), where=release.folder / GENERATOR, do="get the release again") from error


def text_encoder_of(release: Release, encoders: Spec | None = None) -> TextEncoder | OpenText:
    """The encoder that read the texts of a release. encoders: the folder that holds it, where it is not the installed one.

    Raises ConfigError when a folder is needed and none is named, or named and not needed; SignatureError when it is not the release's
    encoder.
    """
    wanted = release.manifest.text_encoder
    if wanted.kind == "package":
        if encoders is not None:
            raise ConfigError(
                f"the release reads texts with the installed {wanted.name}", where="encoders", do="leave it out"
            )
        encoder: TextEncoder | OpenText = TextEncoder()
    elif encoders is None:
        raise ConfigError(
            f"the release reads texts with {wanted.name} (SHA-256 {wanted.sha256[:16]}...)",
            where="encoders",
            do=f"name its folder: {wanted.kind}:DIR",
        )
    else:
        encoder = OpenText(encoders)
    if (encoder.kind, encoder.sha256) != (wanted.kind, wanted.sha256):
        raise SignatureError(
            f"is not the text encoder of the release: {wanted.name}, SHA-256 {wanted.sha256[:16]}...",
            where=encoder.folder,
            do="install its version" if encoder.kind == "package" else "get that folder from the coordinating centre",
        )
    return encoder


class ImageEncoder:
    """Pictures -> pooled features of the base network, or of a body that was synthesized from it.

    device: of the network; pictures are brought to their size on the processor, and features come back to it.
    """

    def __init__(self, release: Release, device: torch.device = CPU) -> None:
        self.release, self.device = release, device

    @cached_property
    def target(self) -> Target:
        return target_of(self.release, self.device)

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
        with exact(self.device):
            parts = [
                view_means(
                    self.target,
                    batch(images[start : start + _BATCH], a.size, a.mean, a.std).to(self.device),
                    count,
                    body,
                )
                for start in range(0, len(images), _BATCH)
            ]
        return (
            np.concatenate([p.cpu().numpy() for p in parts]) if parts else np.zeros((0, self.target.width), np.float32)
        )


def view_means(target: Target, x: Tensor, count: int, body: Mapping[str, Tensor] | None = None) -> Tensor:
    """Normalised images [n, 3, s, s] -> features [n, f], the mean over `count` views."""
    turned = views(x, count)
    flat = target.features(turned.flatten(0, 1).contiguous(memory_format=torch.channels_last), body)
    return flat.view(count, len(x), -1).mean(0)


def _tensors(release: Release, prefix: str) -> dict[str, Tensor]:
    return {n: torch.from_numpy(a) for n, a in release.tensors(GENERATOR, prefix).items()}
