"""Answers of a method on episodes: probabilities, kept in a file under --out, and what they are worth."""

import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sgps
from bench.figures import BINS, brier, ece, macro_auroc, softmax
from sgps.episodes import Episodes, interval
from sgps.files import write_atomic

Array = NDArray[Any]
Method = Callable[[Episodes, int], tuple[Array, float]]
"""Episodes and the place of one -> scores [queries, N] and the temperature that makes them probabilities."""
_SAY_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Answers:
    """probability [n, queries, N] of n episodes; label [n, queries]: true class of each query, by name."""

    probability: Array
    label: Array

    @property
    def truth(self) -> Array:
        """[queries]: place of the right class; queries come class by class."""
        _, queries, ways = self.probability.shape
        return np.repeat(np.arange(ways), queries // ways)

    def right(self) -> Array:
        return np.asarray(self.probability.argmax(2) == self.truth)

    def accuracy(self) -> Array:
        """[n]; queries are balanced, so it is the balanced accuracy too."""
        return np.asarray(self.right().mean(1))

    def recall(self) -> dict[str, float]:
        """Of each class over all its queries."""
        right = self.right()
        return {str(c): float(right[self.label == c].mean()) for c in np.unique(self.label)}

    def reliability(self) -> list[dict[str, float]]:
        """Bins of the highest probability: share of the answers, their mean confidence and how many are right."""
        confidence, right = self.probability.max(2).ravel(), self.right().ravel()
        place = np.minimum((confidence * BINS).astype(int), BINS - 1)
        return [
            {
                "share": float((place == b).mean()),
                "confidence": float(confidence[place == b].mean()),
                "right": float(right[place == b].mean()),
            }
            for b in np.unique(place)
        ]

    def to_mapping(self) -> dict[str, Any]:
        truth, p = self.truth, self.probability.astype(np.float64)
        values = {
            "accuracy": self.accuracy(),
            "auroc": np.array([macro_auroc(one, truth) for one in p]),
            "brier": np.array([brier(one, truth) for one in p]),
        }
        means = {k: {"mean": i.mean, "half": i.half} for k, i in ((k, interval(v)) for k, v in values.items())}
        recall = self.recall()
        return {
            **means,
            "balanced accuracy": means["accuracy"],
            "ece": ece(p.max(2).ravel(), self.right().ravel()),
            "recall": recall,
            "worst class": min(recall, key=lambda c: recall[c]),
            "episodes": [round(float(v), 4) for v in values["accuracy"]],
            "reliability": self.reliability(),
        }


def answer(method: Method, episodes: Episodes, label: Array, most: int, say: str) -> Answers:
    """The first `most` episodes. label: class of each image that the episodes number. say: named in lines of progress."""
    out, count, said = [], min(most, len(episodes.index)), time.monotonic()
    for place in range(count):
        out.append(softmax(*method(episodes, place)).astype(np.float32))
        if time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            print(f"{say} {episodes.name}: {place + 1}/{count} episodes", flush=True)
    return Answers(np.stack(out), asked(episodes, label, most))


def asked(episodes: Episodes, label: Array, most: int) -> Array:
    """Class of every query [n, queries]."""
    index = episodes.index[:most, :, episodes.shots :]
    return np.asarray(label[index.reshape(len(index), -1)])


class Shelf:
    """Probabilities of methods that were computed before, by everything they depend on: pictures, release, episodes, program."""

    def __init__(self, folder: Path, *parts: str) -> None:
        self.folder, self.parts = folder, (*parts, program())

    def path(self, name: str, episodes: Episodes, most: int) -> Path:
        index = hashlib.sha256(episodes.index[:most].tobytes()).hexdigest()
        key = "\0".join([*self.parts, name, episodes.name, str(episodes.shots), index])
        return self.folder / f"{name}-{episodes.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"

    def get(self, name: str, episodes: Episodes, label: Array, most: int) -> Answers | None:
        path = self.path(name, episodes, most)
        if not path.is_file():
            return None
        return Answers(np.load(path, allow_pickle=False), asked(episodes, label, most))

    def put(self, name: str, episodes: Episodes, most: int, answers: Answers) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        np.save(data, answers.probability, allow_pickle=False)
        write_atomic(self.path(name, episodes, most), data.getvalue())


@lru_cache(maxsize=1)
def program() -> str:
    """Hash of the source that makes answers: this bench's methods and the science package."""
    here, science = Path(__file__).parent, Path(str(sgps.__file__)).parent
    files = sorted([*(here / "peers").glob("*.py"), *science.glob("*.py")])
    files += [here / f"{n}.py" for n in ("arms", "features", "pictures", "shipped", "shifts")]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
