"""Classes for meta-training: features, images and clinical texts of public and drawn classes, without the meta-test ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgps.attributes import parse, vector
from sgps.catalogue import Catalogue
from sgps.device import CPU
from sgps.draw import clinical_text, draw_profile
from sgps.errors import ConfigError
from sgps.open_encoders import OpenText
from sgps.pretrain.augment import centre_view
from sgps.pretrain.features import read_features
from sgps.pretrain.images import Images, Tick, read_images
from sgps.pretrain.meta_recipe import MetaRecipe
from sgps.pretrain.networks import Input
from sgps.pretrain.pool import held_out
from sgps.pretrain.recipe import Draw, ImageSet, Recipe, refuse_meta_test
from sgps.text import TextEncoder

Ints = npt.NDArray[np.int64]
DRAWN, JUDGED = "meta_drawn", "meta_judged"
_OMIT = 0.3  # chance that a wording leaves a statement out
_TEST_ROWS = 400  # lesions of a meta-test class, at most


@dataclass(frozen=True)
class MetaClass:
    """One class. eight [n, f]: eight-view features of one image of each lesion; one [n, f]: of the plain view.

    sentences [t, w], attributes [t, a]: wordings of its text. picture(rows) -> float [n, 3, s, s], as the base takes it.
    """

    id: str
    set: str
    eight: Tensor
    one: Tensor
    sentences: Tensor
    attributes: Tensor
    picture: Callable[[Ints], Tensor] = field(repr=False)
    turn: bool = True

    def __len__(self) -> int:
        return len(self.eight)


@dataclass(frozen=True)
class MetaPool:
    """train: what may be learned from, by set. held: other lesions of the skin classes. judged: drawn classes never trained.

    test: the meta-test classes, to be measured at the end and never trained or chosen on.
    """

    skin: str
    train: Mapping[str, tuple[MetaClass, ...]]
    held: tuple[MetaClass, ...]
    judged: tuple[MetaClass, ...]
    test: tuple[MetaClass, ...]

    def without(self, sets: Sequence[str], classes: Sequence[str]) -> "MetaPool":
        """The pool of a copy that does not see these sets and these classes of the skin set.

        Raises ConfigError for a set or class that the pool lacks.
        """
        known = {c.id for c in self.train[self.skin]}
        if unknown := sorted((set(sets) - set(self.train)) | (set(classes) - known)):
            raise ConfigError(
                f"{unknown[0]} is not in the pool", where="left_out", do="name sets and skin classes of the base"
            )
        kept = {
            n: tuple(c for c in cs if n != self.skin or c.id not in classes)
            for n, cs in self.train.items()
            if n not in sets
        }
        return MetaPool(self.skin, kept, self.held, self.judged, self.test)

    @property
    def classes(self) -> tuple[MetaClass, ...]:
        """All training classes."""
        return tuple(c for cs in self.train.values() for c in cs)


def one_each(
    label: npt.NDArray[np.str_], lesion: npt.NDArray[np.str_], rows: Ints, name: str, most: int, seed: int
) -> Ints:
    """At most `most` random lesions of a class, one random image each."""
    random = np.random.default_rng([seed, len(rows)])
    own = random.permutation(rows[label[rows] == name])
    _, first = np.unique(lesion[own], return_index=True)
    return np.sort(random.permutation(own[first])[:most])


class PoolBuilder:
    """Reads images and features of the sets of a recipe under one base network. Features are cached under `work`.

    device: where features are computed, and of every tensor of the pool.
    """

    def __init__(
        self,
        data: Path,
        recipe: Recipe,
        meta: MetaRecipe,
        given: Input,
        weights: Mapping[str, Tensor],
        base_sha256: str,
        texts: TextEncoder | OpenText,
        images: Path,
        work: Path,
        tick: Tick,
        device: torch.device = CPU,
    ) -> None:
        self.data, self.recipe, self.meta = data, recipe, meta
        self.given, self.device, self.net = given, device, given.network(weights).to(device)
        self.base_sha256, self.images, self.work, self.tick = base_sha256, images, work, tick
        self.encoder, self.catalogue = texts, Catalogue.load()

    def build(self) -> MetaPool:
        """Raises InputError for missing images, ConfigError when a meta-test class would be trained on."""
        recipe, meta = self.recipe, self.meta
        train: dict[str, tuple[MetaClass, ...]] = {}
        held: tuple[MetaClass, ...] = ()
        for kind in recipe.sets:
            if kind.draw is not None:
                continue
            images = read_images(self.data, kind, self.images, self.tick)
            rows = np.arange(len(images))
            if kind.role == "skin":
                apart = held_out(images.lesion, images.label, recipe)
                held = self._real(kind, f"{kind.name}_held", images, rows[apart])
                rows = rows[~apart]
            train[kind.name] = self._real(kind, kind.name, images, rows)
            refuse_meta_test([c.id for c in train[kind.name]], recipe, kind.name)
        train[DRAWN] = self._drawn(DRAWN, meta.drawn)
        judged = self._drawn(JUDGED, meta.judged)
        skin = recipe.skin
        other = skin.model_copy(update={"name": "meta_test", "leave_out": recipe.base_classes})
        images = read_images(self.data, other, self.work / "images", self.tick)
        rows = np.flatnonzero(np.isin(images.label, recipe.meta_test))
        test = self._real(other, other.name, images, rows, _TEST_ROWS) if len(rows) else ()
        return MetaPool(skin.name, train, held, judged, test)

    def _real(self, kind: ImageSet, name: str, images: Images, rows: Ints, most: int = 0) -> tuple[MetaClass, ...]:
        labels = np.unique(images.label[rows]).tolist()
        chosen = {c: one_each(images.label, images.lesion, rows, c, most or self.meta.lesions, 0) for c in labels}
        texts = {}
        for label in labels:
            entry = next(
                (e for n in (label, f"{kind.name} {label}") if (e := self.catalogue.find(n)) is not None), None
            )
            if entry is None:
                raise ConfigError(
                    f"the catalogue does not know {label}", where=kind.name, do="add the class or a synonym"
                )
            texts[label] = ([entry.text], [vector(entry.attributes, entry.domain)])
        return self._classes(name, images, chosen, texts, kind.turn)

    def _drawn(self, name: str, draw: Draw) -> tuple[MetaClass, ...]:
        kind = ImageSet(
            name=name,
            draw=draw,
            role="other",
            frame=(160, 160),
            turn=True,
            leave_out=(),
            licence="Apache-2.0",
            source="sgps.draw",
        )
        images = read_images(self.data, kind, self.work / "images", self.tick)
        texts, chosen = {}, {}
        for seed in range(draw.first, draw.first + draw.profiles):
            profile = draw_profile(seed)
            said = [clinical_text(profile, i, 0.0 if i == 0 else _OMIT) for i in range(self.meta.texts)]
            texts[profile.id] = (said, [vector(parse(t, "drawn"), "drawn") for t in said])
            chosen[profile.id] = np.flatnonzero(images.label == profile.id)
        return self._classes(name, images, chosen, texts, True)

    def _classes(
        self,
        name: str,
        images: Images,
        chosen: Mapping[str, Ints],
        texts: Mapping[str, tuple[list[str], list[npt.NDArray[np.float32]]]],
        turn: bool,
    ) -> tuple[MetaClass, ...]:
        rows = np.concatenate(list(chosen.values()))
        size = self.recipe.size
        found = read_features(name, images, rows, self.net, size, self.base_sha256, self.work, self.tick)
        out, start = [], 0
        for label, own in chosen.items():
            part = slice(start, start + len(own))
            start += len(own)
            said, signs = texts[label]

            def picture(at: Ints, own: Ints = own) -> Tensor:
                order, back = np.unique(own[at], return_inverse=True)  # a memory map reads ascending rows
                x = self.given.normalised(centre_view(images.pixels[order], size))
                return x[torch.from_numpy(back)].to(self.device)

            out.append(
                MetaClass(
                    label,
                    name,
                    torch.from_numpy(found.eight[part]).to(self.device),
                    torch.from_numpy(found.one[part]).to(self.device),
                    torch.from_numpy(self.encoder.embed(said)).to(self.device),
                    torch.from_numpy(np.stack(signs)).to(self.device),
                    picture,
                    turn,
                )
            )
        return tuple(out)
