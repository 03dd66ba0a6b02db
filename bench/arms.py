"""Every method of `bench.fewshot` by its short name, on pictures whose features are known."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from bench.features import Lite0, base_features, lite0_features
from bench.measure import Method
from bench.peers import closed, easy, trained
from bench.peers.adapter import TextMap, Told, told
from bench.peers.film import Film
from bench.peers.literal import Literal, Tasks
from bench.peers.public import Array, Head, Public, tuned
from bench.pictures import Pictures
from bench.shipped import Ours, Rows, with_body, with_random_body, without
from sgps.draw import clinical_text, draw_patient, draw_profile
from sgps.episodes import Episodes, unit
from sgps.errors import InputError
from sgps.images import batch, from_array
from sgps.release import Release

OURS, CONTROL, PEER, SEEING = "ours", "control", "peer", "transductive"  # families
CENTRED = "-centred"
_DRAWN = (5000, 12, 16, 128)  # where the data have no public classes for Lite0; as in `drawn`


@dataclass(frozen=True)
class Kind:
    """title, family; seconds: of one processor for an episode, and for each number of ways and shots; slow: fewer episodes, for a network or a transport plan is made for each."""

    title: str
    family: str
    seconds: float = 0.002
    once: float = 1.0
    slow: bool = False


METHODS = {
    "ours": Kind("ours: synthesis with the shipped settings", OURS, 0.003),
    "ours-no-text": Kind("ours, without text", CONTROL, 0.003),
    "ours-other-text": Kind("ours, texts exchanged between the classes", CONTROL, 0.003),
    "ours-other-exemplar": Kind("ours, exemplars exchanged between the classes, texts kept", CONTROL, 0.003),
    "ours-no-body": Kind("ours, body zeroed", CONTROL, 0.003),
    "ours-other-body": Kind("ours, body of another task", CONTROL, 1.2, 0, True),
    "ours-random-body": Kind("ours, body from a random generator", CONTROL, 1.2, 0, True),
    "prototype": Kind("nearest prototype, base network, plain cosine", PEER),
    "prototype-centred": Kind("nearest prototype, base network, centred", PEER),
    "prototype-lite0": Kind("nearest prototype, frozen Lite0, plain cosine", PEER),
    "prototype-lite0-centred": Kind("nearest prototype, frozen Lite0, centred", PEER),
    "knn": Kind("3 nearest exemplars, centred", PEER),
    "ridge": Kind("ridge probe, centred", PEER),
    "logistic": Kind("logistic probe, centred", PEER, 0.004),
    "protonet": Kind("ProtoNet (easyfsl)", PEER),
    "simpleshot": Kind("SimpleShot (easyfsl)", PEER),
    "finetune": Kind("Finetune (easyfsl)", PEER, 0.045, 4),
    "matchingnet": Kind("MatchingNet (easyfsl), trained", PEER, 0.012, 15),
    "relationnet": Kind("RelationNet (easyfsl), trained", PEER, 0.003, 5),
    "feat": Kind("FEAT (easyfsl), trained", PEER, 0.003, 6),
    "text-only": Kind("text only, ridge map from sentence embeddings, centred", PEER),
    "tip-adapter": Kind("Tip-Adapter on the same ridge map, centred", PEER),
    "tip-adapter-other-text": Kind("Tip-Adapter, texts exchanged between the classes, centred", PEER),
    "fit": Kind("FiT-like: BatchNorm fine-tuned on the support, centred", PEER, 3.5, 0, True),
    "literal": Kind("SGPS taken literally: every weight from the tokens, no base", PEER, 1.5, 55, True),
    "bd-cspn": Kind("BD-CSPN (easyfsl)", SEEING),
    "laplacian-shot": Kind("LaplacianShot (easyfsl)", SEEING),
    "tim": Kind("TIM (easyfsl)", SEEING, 0.025, 2),
    "pt-map": Kind("PT-MAP (easyfsl)", SEEING, 0.28, 12, True),
    "transductive-finetuning": Kind("transductive fine-tuning (easyfsl)", SEEING, 0.011, 1),
}
for _name in (*easy.INDUCTIVE, *trained.NAMES, *easy.TRANSDUCTIVE):
    _kind = METHODS[_name]
    METHODS[_name + CENTRED] = Kind(_kind.title + ", centred", _kind.family, _kind.seconds, _kind.once, _kind.slow)
del METHODS["pt-map"]  # its transport plan overflows on features that are not of length 1
METHODS = {n: METHODS[n] for f in (OURS, CONTROL, PEER, SEEING) for n in METHODS if METHODS[n].family == f}


class Arms:
    """rows: of the pictures that the episodes number."""

    def __init__(
        self,
        release: Release,
        pictures: Pictures,
        rows: Array,
        out: Path,
        test: Sequence[str],
    ) -> None:
        self.release, self.pictures, self.rows, self.out = release, pictures, rows, out
        self.label, self.test = pictures.label[rows], tuple(test)
        self.base = self.base_asked = base_features(release, pictures, rows, out)
        self.queries: Pictures | None = None
        self.made: dict[tuple[str, ...], Ours] = {}
        self.heads: dict[tuple[str, bool, bool, str], tuple[Head, float] | None] = {}

    def showing(self, queries: Pictures) -> "Arms":
        """The same methods, made of the same support; queries are shown as in `queries`."""
        other = copy.copy(self)
        other.queries, other.base_asked = queries, base_features(self.release, queries, self.rows, self.out)
        for kept in ("_base", "_lite0"):
            other.__dict__.pop(kept, None)
        return other

    def lacks(self, name: str) -> str:
        """What the release has not of a method, empty where it has all."""
        learned = self.release.manifest.architecture.learned
        if name in ("ours-no-body", "ours-other-body") and "body" not in learned:
            return "the release has no generated body"
        return "the release reads no text" if name == "ours-no-text" and "text" not in learned else ""

    def get(self, name: str) -> Method | str:
        """The method, or in a few words why this release or these data do not have it."""
        if missing := self.lacks(name):
            return missing
        if name.startswith(OURS):
            return self._synthesis(name)
        if name == "fit":
            return self._film()
        if name == "literal":
            return self._written()
        if name in ("text-only", "tip-adapter", "tip-adapter-other-text"):
            return self._told(name)
        stem, centred = name.removesuffix(CENTRED), name.endswith(CENTRED) or name in ("knn", "ridge", "logistic")
        return self._head(stem.removesuffix("-lite0"), centred, "lite0" in stem)

    def ours(self, *off: str) -> Ours:
        release = without(self.release, *off)
        learned = release.manifest.architecture.learned
        if learned not in self.made:
            self.made[learned] = Ours(release, self.pictures, self._places(self.base))
        return self.made[learned]

    def _places(self, features: Array) -> Mapping[int, Array]:
        return dict(zip(self.rows.tolist(), features, strict=True))

    def _synthesis(self, name: str) -> Method | str:
        ours = self.ours(*{"ours-no-body": ["body"], "ours-no-text": ["text"]}.get(name, []))
        if name == "ours-random-body":
            ours = with_random_body(Ours(with_body(self.release), self.pictures, self._places(self.base)))
        asked = Rows(ours.encoder, self.queries.image, self._places(self.base_asked)) if self.queries else None

        def method(episodes: Episodes, place: int) -> tuple[Array, float]:
            names, support, queries = self._task(episodes, place)
            texts, body = None, None
            if name == "ours-other-text":
                texts = {n: ours.text(o) for n, o in zip(names, [*names[1:], names[0]], strict=True)}
            if name == "ours-other-exemplar":
                support = [*support[1:], support[0]]
            if name == "ours-other-body":
                others, theirs, _ = self._task(episodes, place - 1)
                body = ours.compose(dict(zip(others, theirs, strict=True))).body
            made = ours.compose(dict(zip(names, support, strict=True)), texts, body=body)
            return ours.logits(made, queries, names, asked), ours.temperature(made)

        return method

    def _task(self, episodes: Episodes, place: int) -> tuple[list[str], list[list[int]], list[int]]:
        """Classes, rows of the exemplars of each, rows of the queries."""
        index = episodes.index[place]
        images = self.rows[index]
        names = [str(self.label[i]) for i in index[:, 0]]
        return names, images[:, : episodes.shots].tolist(), images[:, episodes.shots :].ravel().tolist()

    def _head(self, name: str, centred: bool, lite0: bool) -> Method | str:
        features, asked, centre, public = self._lite0 if lite0 else self._base
        shift = centre if centred else np.zeros_like(centre)
        features, asked = features - shift, asked - shift
        choosing = Public(public.features - shift, public.label)

        def prepared(ways: int, shots: int) -> tuple[Head, float] | None:
            if name in trained.NAMES:
                samples = Public(self._learning.features - shift, self._learning.label)
                return trained.learned(name, samples, ways, shots, centred)
            heads = closed.HEADS[name] if name in closed.HEADS else easy.heads(name, centred)
            return tuned(heads, choosing, ways, shots)

        if name in trained.NAMES and not self._learning.tasks(2, 1, 1):
            return "there are no public tasks to learn from"

        def method(episodes: Episodes, place: int) -> tuple[Array, float]:
            key = (name, centred, lite0, episodes.name)
            if key not in self.heads:
                self.heads[key] = prepared(episodes.ways, episodes.shots)
            found = self.heads[key]
            if found is None:
                raise InputError(f"the public samples give no {episodes.name} tasks", where=name)
            head, temperature = found
            index = episodes.index[place]
            queries = asked[index[:, episodes.shots :]].reshape(-1, asked.shape[1])
            return head(features[index[:, : episodes.shots]], queries), temperature

        return method

    @cached_property
    def _base(self) -> tuple[Array, Array, Array, Public]:
        """Features, those of queries, centre, samples to choose by."""
        bank, near = self.ours().synthesizer.bank, self._near
        return self.base, self.base_asked, self.ours().synthesizer.centre, Public(bank.features[near], bank.label[near])

    @cached_property
    def _learning(self) -> Public:
        """Samples to learn from: the whole bank and lesions of the data's other classes."""
        bank, rows = self.ours().synthesizer.bank, self._public_rows
        more = base_features(self.release, self.pictures, rows, self.out) if len(rows) else bank.features[:0]
        names = np.array([c.id for c in bank.classes])[bank.label]
        return Public(
            np.concatenate([bank.features, more]),
            np.concatenate([names, np.char.add("data ", self.pictures.label[rows])]),
        )

    @cached_property
    def _near(self) -> Array:
        """Samples of the bank that are the same kind of picture, and drawn ones; all, where the catalogue knows no test class."""
        s = self.ours().synthesizer
        entry = next((e for c in self.test if (e := s.catalogue.find(c))), None)
        near = {"drawn", entry.domain} if entry else set(s.bank.domains)
        return np.array([c.domain in near for c in s.bank.classes])[s.bank.label]

    @cached_property
    def _public_rows(self) -> Array:
        """Lesions of the data's other classes; of those that the base network was trained on, the ones it was trained with."""
        return self.pictures.others(self.test, trained=True, unknown=True)

    @cached_property
    def _lite0(self) -> tuple[Array, Array, Array, Public]:
        rows = self._public_rows
        kind = self.pictures.label[rows]
        found = lite0_features(self.pictures, np.concatenate([self.rows, rows]), self.out)
        features, public = found[: len(self.rows)], found[len(self.rows) :]
        asked = lite0_features(self.queries, self.rows, self.out) if self.queries else features
        if len(np.unique(kind)) < 2:
            public, kind = _drawn()
        centre = np.mean([public[kind == c].mean(0) for c in np.unique(kind)], 0)
        return features, asked, centre, Public(public, kind)

    def _film(self) -> Method:
        centre, shown = self.ours().synthesizer.centre, self.queries or self.pictures
        film = Film(self.release, centre, lambda r: self.pictures.image(r) if r >= 0 else shown.image(-1 - r))
        _, temperature = tuned(
            closed.HEADS["prototype"], Public(self._base[3].features - centre, self._base[3].label), 2, 1
        )

        def method(episodes: Episodes, place: int) -> tuple[Array, float]:
            _, support, queries = self._task(episodes, place)
            asked = -1 - np.array(queries) if self.queries else np.array(queries)
            return film.scores(np.array(support), asked), temperature

        return method

    def _written(self) -> Method:
        made, said = self._literal, {c: self._said(c) for c in self.test}
        seen, shown = self._places(self.base), self.queries or self.pictures

        def method(episodes: Episodes, place: int) -> tuple[Array, float]:
            names, support, queries = self._task(episodes, place)
            tokens = np.stack([[seen[r] for r in rows] for rows in support])
            texts = np.stack([said[n] for n in names])
            return made.scores(tokens, texts, [shown.image(r) for r in queries]), made.temperature

        return method

    @cached_property
    def _literal(self) -> Literal:
        """Trained on drawn classes and on the data's other classes; further drawn classes choose the temperature."""
        encoder, text, a = (
            self.ours().encoder,
            self.ours().synthesizer.text,
            self.release.manifest.architecture,
        )
        given, sets = (a.size, a.mean, a.std), []

        def tasks(images: Sequence[Any], tokens: Array, label: Array, texts: Mapping[str, str]) -> Tasks:
            pixels = torch.cat([batch(images[i : i + 64], *given).half() for i in range(0, len(images), 64)])
            said = {c: torch.from_numpy(text.embed([t])[0]) for c, t in texts.items()}
            return Tasks(pixels, torch.from_numpy(tokens), label, said)

        for first, profiles in ((6000, 48), (6100, 16)):
            images, label, texts = drawn(first, profiles, 10, a.size)
            sets.append(tasks(images, encoder.features(images), label, texts))
        rows = self._public_rows
        kind = self.pictures.label[rows]
        large = {
            str(c): self.ours().text(str(c))
            for c, n in zip(*np.unique(kind, return_counts=True), strict=True)
            if n >= 10
        }
        if len(large) > 1:
            features = base_features(self.release, self.pictures, rows, self.out)
            sets.append(tasks([self.pictures.image(int(r)) for r in rows], features, kind, large))
        return Literal(encoder.target, given, [sets[0], *sets[2:]], sets[1])

    def _said(self, label: str) -> Array:
        """Embedding of a class's clinical text."""
        ours = self.ours()
        return np.asarray(ours.synthesizer.text.embed([ours.text(label)])[0])

    def _told(self, name: str) -> Method:
        ours, ready = self.ours(), dict[str, tuple[Told, float]]()
        s, (features, asked, centre, public) = ours.synthesizer, self._base
        texts = TextMap(unit(s.bank.embedding), unit(s.bank.means - centre))
        samples = Public(public.features - centre, public.label)
        said = {c: self._said(c) for c in self.test}

        def method(episodes: Episodes, place: int) -> tuple[Array, float]:
            if episodes.name not in ready:
                ready[episodes.name] = told(name == "text-only", texts, samples, episodes.ways, episodes.shots)
            head, temperature = ready[episodes.name]
            index = episodes.index[place]
            queries = asked[index[:, episodes.shots :]].reshape(-1, asked.shape[1]) - centre
            embedding = np.stack([said[str(self.label[i])] for i in index[:, 0]])
            if name == "tip-adapter-other-text":
                embedding = np.roll(embedding, -1, 0)
            return head(embedding, features[index[:, : episodes.shots]] - centre, queries), temperature

        return method


def drawn(first: int, profiles: int, patients: int, size: int) -> tuple[list[Image], Array, dict[str, str]]:
    """Pictures of drawn lesions, their classes, and a clinical text of each class."""
    images, kind, texts = [], [], {}
    for seed in range(first, first + profiles):
        profile, name = draw_profile(seed), f"drawn-{seed}"
        texts[name] = clinical_text(profile)
        for patient in range(patients):
            images.append(from_array(draw_patient(profile, 1_000 * seed + patient, views=1, size=size)[0], name))
            kind.append(name)
    return images, np.array(kind), texts


def _drawn() -> tuple[Array, Array]:
    """Lite0 features [n, 1280] and classes [n] of drawn lesions."""
    images, kind, _ = drawn(*_DRAWN)
    return Lite0().features(images), kind
