"""A release's own synthesis, run on features that are known already: the same code, without encoding a picture twice."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from bench.pictures import Pictures
from sgps.encoders import ImageEncoder
from sgps.memory import Memory
from sgps.rehearsal import rehearse
from sgps.release import Release
from sgps.synthesis import Composition, Synthesizer
from sgps.text import TextEncoder

Array = NDArray[Any]
RANDOM = 0.03


class Row(Image):
    """A picture by its row number. It holds no pixels."""

    def __init__(self, row: int) -> None:
        super().__init__()
        self.row = row


class Rows(ImageEncoder):
    """An image encoder that knows the features [f] of rows under the base. picture: of a row, for a body that is not the base.

    views: none is the release's. Other pictures are encoded as ever.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        picture: Callable[[int], Image],
        features: Mapping[int, Array],
        views: int | None = None,
    ) -> None:
        super().__init__(encoder.release, encoder.device)
        self.target = encoder.target  # loaded once
        self.picture, self.known, self.views = picture, features, views

    def features(
        self, images: Sequence[Image], views: int | None = None, body: Mapping[str, torch.Tensor] | None = None
    ) -> Array:
        rows = [image.row for image in images if isinstance(image, Row)]
        if body is None and len(rows) == len(images):
            return np.stack([self.known[r] for r in rows])
        pictures = [self.picture(image.row) if isinstance(image, Row) else image for image in images]
        return super().features(pictures, views or self.views, body)

    def of(self, rows: Sequence[int] | Array, body: Mapping[str, torch.Tensor] | None = None) -> Array:
        """[rows, f]"""
        return self.features(shown(rows), body=body)


def shown(rows: Sequence[int] | Array) -> list[Row]:
    return [Row(int(r)) for r in rows]


class Texts(TextEncoder):
    """The installed text encoder; it embeds every text once."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Array] = {}

    def embed(self, texts: Sequence[str]) -> Array:
        for text in texts:
            if text not in self.known:
                self.known[text] = super().embed([text])[0]
        return np.stack([self.known[t] for t in texts])


def without(release: Release, *parts: str) -> Release:
    """The release with these learned parts switched off."""
    a = release.manifest.architecture
    a = a.model_copy(update={"learned": tuple(p for p in a.learned if p not in parts)})
    return replace(release, manifest=release.manifest.model_copy(update={"architecture": a}))


def with_body(release: Release) -> Release:
    """The release with its body switched on, whatever it ships with."""
    a = release.manifest.architecture
    a = a.model_copy(update={"learned": tuple(dict.fromkeys((*a.learned, "body")))})
    return replace(release, manifest=release.manifest.model_copy(update={"architecture": a}))


def with_random_body(ours: "Ours", seed: int = 0) -> "Ours":
    """Heads of the body at random, of a size that leaves features at a cosine near 0.85 (generator note, section 5.3)."""
    generator = ours.synthesizer.generator
    if generator is None:
        raise ValueError("the release has no generator")
    random = torch.Generator().manual_seed(seed)
    for head in (generator.core, generator.chan, generator.tap):
        for parameter in head.parameters():
            parameter.data.normal_(0, RANDOM, generator=random)
    return ours


class _Borrowing(Synthesizer):
    """Uses the body of another task where there is one to borrow."""

    borrowed: Mapping[str, torch.Tensor] | None = None

    def _body(self, inputs: Any) -> Any:
        body, tokens = super()._body(inputs)
        return (self.borrowed if self.borrowed is not None else body), tokens


class Ours:
    """`Synthesizer` of a release on rows of `pictures`, whose base features are known."""

    def __init__(
        self, release: Release, pictures: Pictures, features: Mapping[int, Array], views: int | None = None
    ) -> None:
        self.synthesizer = s = _Borrowing(release)
        s.encoder = self.encoder = Rows(s.encoder, pictures.image, features, views)
        s.text = Texts()  # a release that is read with another is refused above
        self._keys = _keys(s, sorted(set(pictures.label.tolist())))
        self._temperatures: dict[tuple[Any, ...], float] = {}

    def text(self, label: str) -> str:
        """The catalogue's clinical text, or the label itself for a class that the catalogue does not know."""
        entry = self.synthesizer.catalogue.find(label)
        return entry.text if entry else label.replace("_", " ")

    def compose(
        self,
        exemplars: Mapping[str, Sequence[int]],
        texts: Mapping[str, str] | None = None,
        memory: Memory | None = None,
        body: Mapping[str, torch.Tensor] | None = None,
    ) -> Composition:
        """Exemplars are row numbers; texts are the catalogue's unless given. body: of another task, in place of the task's own."""
        said = {label: self.text(label) for label in exemplars} | dict(texts or {})
        self.synthesizer.borrowed = body
        images = {self._keys.get(n, n): shown(rows) for n, rows in exemplars.items()}
        return self.synthesizer.compose(images, {self._keys.get(n, n): t for n, t in said.items()}, memory=memory)

    def logits(
        self, made: Composition, rows: Sequence[int], order: Sequence[str], encoder: Rows | None = None
    ) -> Array:
        """[rows, N] float64; the columns of the named diseases in this order, then the rivals. encoder: of other pictures."""
        features = (encoder or self.encoder).of(rows, made.body)
        out = np.asarray(features @ made.weight.numpy().T + made.bias.numpy(), np.float64)
        named = [next(i for i, d in enumerate(made.asked) if d.key == self._keys.get(n, n)) for n in order]
        return out[:, [*named, *range(len(made.asked), out.shape[1])]]

    def temperature(self, made: Composition) -> float:
        """Of the softmax between several diseases, from the release's own rehearsal on public classes."""
        judged = self.synthesizer.judged(made)
        key = (judged.named, round(judged.shots), judged.domain)  # all that a rehearsal depends on
        if key not in self._temperatures:
            self._temperatures[key] = rehearse(judged).temperature
        return self._temperatures[key]


def _keys(s: Synthesizer, labels: Sequence[str]) -> dict[str, str]:
    """Names under which classes are asked for: of labels that the catalogue takes for one disease only the first keeps its own."""
    seen, out = set[str](), dict[str, str]()
    for label in labels:
        entry = s.catalogue.find(label)
        out[label] = f"{label} (another)" if entry and entry.id in seen else label
        seen |= {entry.id} if entry else set()
    return out
