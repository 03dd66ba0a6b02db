"""Eight-view features of public images, computed once for one base network, one set at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.pretrain.images import Images, Tick
from sgps.pretrain.networks import extract, load_state

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """one (n, 1280): of the plain view; eight (n, 1280): mean of the eight views; text columns (n,)."""

    set: str
    one: Array
    eight: Array
    name: npt.NDArray[np.str_]
    label: npt.NDArray[np.str_]
    lesion: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.name)

    def by_lesion(self, label: str) -> Array:
        """Mean of the eight-view features of each lesion of a class (lesions, 1280), by ascending lesion id."""
        rows = np.flatnonzero(self.label == label)
        if not len(rows):
            raise InputError(f"holds no image of {label}", where=self.set)
        _, lesion, count = np.unique(self.lesion[rows], return_inverse=True, return_counts=True)
        total = np.zeros((len(count), self.eight.shape[1]))
        np.add.at(total, lesion, self.eight[rows])
        mean: Array = (total / count[:, None]).astype(np.float32)
        return mean


def read_features(
    kind: str,
    images: Images,
    rows: npt.NDArray[np.int64],
    net: Any,
    size: int,
    base_sha256: str,
    cache: Path,
    tick: Tick | None = None,
) -> Features:
    """Features of these rows of a set, from the cache when it is of this base and this number of images."""
    path = cache / f"features-{kind}.safetensors"
    mark = {"base_sha256": base_sha256, "rows": str(len(rows)), "images_sha256": images.sha256}
    stored = None
    if path.exists():
        with safetensors.safe_open(path, "pt") as file:
            stored = load_state(path) if file.metadata() == mark else None
    if stored is None:
        one, eight = extract(net, lambda part: images.pixels[rows[part]], len(rows), size, tick=tick)
        stored = {"one": torch.from_numpy(one), "eight": torch.from_numpy(eight)}
        write_atomic(path, safetensors.torch.save(stored, mark))
    columns = (images.name[rows], images.label[rows], images.lesion[rows])
    return Features(kind, stored["one"].numpy(), stored["eight"].numpy(), *columns)


def pack_features(parts: Sequence[Features]) -> tuple[bytes, list[dict[str, str]]]:
    """Eight-view features of all parts as one float16 tensor `eight` (n, 1280) in safetensors, and a row of names for each."""
    eight = torch.from_numpy(np.concatenate([p.eight for p in parts])).half()
    names = [
        {"set": p.set, "image": str(n), "class": str(c), "lesion": str(lesion)}
        for p in parts
        for n, c, lesion in zip(p.name, p.label, p.lesion, strict=True)
    ]
    return safetensors.torch.save({"eight": eight}), names
