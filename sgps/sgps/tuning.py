"""The loss of a round of kind `episodes`: one patient is one episode, judged as synthesis would judge it (design D4, D13).

The patient's class stands beside five rivals. Its prototype is that of synthesis: one of the patient's images as the exemplar, blended
with the row of the class memory. Queries are the patient's other images, and samples of the rivals from the reference bank; all six
classes weigh the same. Everything but the patient's features comes from the release, so a record, and the gradient that it gives, depends on that
patient and public data only. The loss has no batch statistics and no randomness.

A body changes features, so its loss needs pictures: those of the patient, and a few drawn ones that ship with the program. The bank
holds none, so prototypes and samples of rivals move by the mean move of the drawn pictures. Without that a body could tell the
patient's class by what it does to every picture alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgps.attributes import VOCABULARIES, parse, vector
from sgps.bank import Bank
from sgps.catalogue import Catalogue, Entry
from sgps.draw import draw_patient, draw_profile
from sgps.encoders import target_of, text_encoder_of
from sgps.errors import InputError
from sgps.generator import ClassInputs, Generator
from sgps.memory import blend
from sgps.open_encoders import Spec
from sgps.release import CATALOGUE, GENERATOR, Release
from sgps.rivals import choose, domain_of, same_disease, unit
from sgps.subset import CORE, PREFIX, allowed, apply, learned, start

__all__ = ["EpisodeLoss", "allowed", "apply", "episode_loss", "learned", "needs_pictures", "ready", "record", "start"]

Array = NDArray[Any]
RIVALS = 5
OWN, THEIRS = 8, 2  # queries: of the patient, and of each rival
PICTURES = 4  # of a patient, at most: the exemplar and three queries
SMOOTHING, DRIFT = 0.1, 0.1  # as in meta-training (generator note, section 10)
_DRAWN = range(7000, 7008)  # profiles of the drawn pictures, one each


@lru_cache(maxsize=2)
def _public(folder: Path, sha256: str, encoders: Spec | None) -> "_Public":
    return _Public(Release.open(folder, sha256=sha256), encoders)


def ready(release: Release, encoders: Spec | None = None) -> None:
    """Loads what is public of the episodes of a release, once. To be called before records are made, where a failure may be told: after
    it, only a record itself can fail. Raises ConfigError, InputError or SignatureError when the text encoder or a part of the release
    is missing or does not fit."""
    _public(release.folder, release.sha256, encoders).encoder.embed(["ready"])


@dataclass(frozen=True)
class _Known:
    """What is public of a patient's class. place: in the release's classes. samples: how many stand behind `mean` [f], the bank's own."""

    entry: Entry
    text: Array
    place: int
    mean: Array | None
    samples: int


class _Public:
    """The public side of all episodes of a release."""

    def __init__(self, release: Release, encoders: Spec | None) -> None:
        self.release, self.bank, self.memory = release, Bank.of(release), release.memory()
        self.catalogue, self.encoder = Catalogue.load(release.folder / CATALOGUE), text_encoder_of(release, encoders)
        self.centre = self.memory.coordinates.mean.astype(np.float32)
        self._classes: dict[str, _Known] = {}

    def known(self, name: str) -> _Known:
        """Raises InputError for a class that the release does not know."""
        if name not in self._classes:
            entry = self.catalogue.find(name)
            if entry is None or entry.id not in self.memory.ids:
                raise InputError("is no class of this release", where=name, do="use an id of its catalogue")
            place = next((i for i, c in enumerate(self.bank.classes) if c.id == entry.id), None)
            self._classes[name] = _Known(
                entry,
                self.encoder.embed([entry.text])[0],
                self.memory.ids.index(entry.id),
                None if place is None else self.bank.means[place],
                0 if place is None else len(self.bank.samples([place], apart=False)),
            )
        return self._classes[name]

    @cached_property
    def rivals(self) -> list[tuple[Array, int, Array, Array]]:
        """Of each bank class: prototype [f], samples behind it, queries [2, f], attributes [a]. The half that is kept apart is not
        used, and a query is not in its own prototype."""
        out = []
        for i, c in enumerate(self.bank.classes):
            rows = self.bank.samples([i], apart=False)
            asked, rest = (rows[:THEIRS], rows[THEIRS:]) if len(rows) > THEIRS else (rows[:1], rows[1:])
            mean = self.bank.features[rest].mean(0) if self.bank.inside[i] else self.bank.means[i]
            signs = parse(c.text, c.domain) if c.domain in VOCABULARIES else {}
            queries = np.resize(self.bank.features[asked], (THEIRS, len(mean)))
            out.append((mean, len(rest), queries, vector(signs, c.domain if signs else "dermoscopy")))
        return out

    def beside(self, own: _Known, prototype: Array) -> list[int]:
        """Five rivals as synthesis chooses them, filled up with classes of other kinds where its kind has fewer.

        Raises InputError when the bank has fewer than five other classes.
        """
        domain = (
            own.entry.domain if own.entry.domain in self.bank.domains else domain_of(self.bank, prototype, self.centre)
        )
        itself = same_disease(self.bank, own.entry.names, own.text)
        others = [i for i in range(len(self.bank.classes)) if i not in itself]
        of_kind = [i for i in others if self.bank.classes[i].domain == domain]
        chosen = choose(self.bank, of_kind, prototype, own.text, self.centre, RIVALS)
        left = [i for i in others if i not in chosen]
        chosen += choose(self.bank, left, prototype, own.text, self.centre, RIVALS - len(chosen))
        if len(chosen) < RIVALS:
            raise InputError(f"holds fewer than {RIVALS} other classes", where="reference bank", do="use a larger bank")
        return sorted(chosen, key=lambda i: self.bank.classes[i].id)


def record(
    release: Release,
    class_ids: Sequence[str],
    features: Array,
    pictures: Tensor | None = None,
    encoders: Spec | None = None,
) -> dict[str, Tensor]:
    """One patient, ready for the loss: float32 tensors of the same names and shapes for every patient (but for pictures).

    class_ids: of each of the patient's images. features [images, f]: under the base, the mean over the release's views. pictures
    [images, 3, s, s]: normalised; only where `needs_pictures`. encoders: the folder of the text encoder, where the release needs one. The episode is about the class of most images, the first of the
    release's classes among equals. With one image of it, that is the query, and the row of the class memory or the bank's mean of the class
    stands for exemplars. Raises InputError when neither exists, for a class that the release does not know, or a bank that is too
    small: the patient is then the zero record.
    """
    p = _public(release.folder, release.sha256, encoders)
    if not class_ids or len(class_ids) != len(features) or not np.isfinite(features).all():
        raise InputError("needs a class and finite features of each image", where="record")
    places = [p.known(c).place for c in class_ids]
    most = min(set(places), key=lambda place: (-places.count(place), place))
    mine = np.flatnonzero(np.array(places) == most)
    own = p.known(class_ids[int(mine[0])])
    exemplar, queries = mine[:1] if len(mine) > 1 else mine[:0], mine[1:] if len(mine) > 1 else mine
    worth, row = p.memory.worth(most), p.memory.row(most)
    shots = len(exemplar)
    if shots or worth:
        seen = features[exemplar].mean(0) if shots else np.zeros(features.shape[1])
        prototype = blend(seen, p.memory.coordinates.lift(row), worth, shots)
    elif own.mean is not None:
        prototype, shots = own.mean, own.samples
    else:
        raise InputError("has one image of a class that nobody else has shown", where="record")
    beside = p.beside(own, prototype)
    rivals = [p.rivals[i] for i in beside]
    groups = np.array_split(queries, min(OWN, len(queries)))
    asked = np.zeros((OWN, features.shape[1]))
    asked[: len(groups)] = [features[g].mean(0) for g in groups]
    weight = np.zeros(OWN)
    weight[: len(groups)] = 1 / (1 + RIVALS) / len(groups)
    nothing = np.zeros((RIVALS, len(row)))
    columns = {
        "features": np.stack([prototype, *(r[0] for r in rivals)]),
        "shots": np.array([shots, *(r[1] for r in rivals)]),
        "row": np.concatenate([row[None] / p.memory.coordinates.radius, nothing]),
        "worth": np.array([worth, *nothing[:, 0]]),
        "text": np.concatenate([own.text[None], unit(p.bank.embedding[beside])]),
        "attributes": np.stack([vector(own.entry.attributes, own.entry.domain), *(r[3] for r in rivals)]),
        "queries": np.concatenate([asked, *(r[2] for r in rivals)]),
        "weight": np.concatenate([weight, np.full(RIVALS * THEIRS, 1 / (1 + RIVALS) / THEIRS)]),
    }
    out = {n: torch.from_numpy(np.ascontiguousarray(c, np.float32)) for n, c in columns.items()}
    if pictures is not None:
        shown = queries[: PICTURES - len(exemplar)]
        out["queries"][:OWN], out["weight"][:OWN] = 0.0, 0.0
        out["queries"][: len(shown)] = torch.from_numpy(features[shown].astype(np.float32))
        out["weight"][: len(shown)] = 1 / (1 + RIVALS) / len(shown)
        out["exemplar"], out["pictures"] = pictures[exemplar], pictures[shown]
    return out


def needs_pictures(release: Release, names: Sequence[str]) -> bool:
    """Whether the records of a round of these names must hold pictures: the body is on, or is to be trained."""
    return "body" in learned(release, names)


def episode_loss(release: Release, names: Sequence[str]) -> "EpisodeLoss":
    """The loss of a record as a function of these parts of the release's generator. Errors are those of `start` and `learned`."""
    return EpisodeLoss(release, names)


class EpisodeLoss:
    """(parameters, record) -> scalar: weighted cross-entropy of the queries, and for a body `DRIFT` x (1 - cosine of centred features
    under body and base), as in meta-training. Pure; differentiable in the parameters under autograd and torch.func.

    shapes: of every record, so that many can be evaluated at once; None with a body, whose records hold more or fewer pictures.
    """

    def __init__(self, release: Release, names: Sequence[str]) -> None:
        start(release, names)  # refuses names
        self.names, self.parts = tuple(names), learned(release, names)
        self.module = _Episode(release, self.parts).eval().requires_grad_(False)
        self.shapes = None if "body" in self.parts else self.module.shapes()
        self.module.generator.encoder.train()  # without dropout the same, but for a fused path that has no batching rule

    def __call__(self, parameters: Mapping[str, Tensor], record: Mapping[str, Tensor]) -> Tensor:
        whole: dict[str, Tensor] = {}
        for name in self.names:
            value = parameters[name]
            if name.endswith(CORE):
                name = name.removesuffix(CORE) + ".weight"
                value = self.module.get_parameter(name) + self.module.basis[:, : len(value)] @ value
            whole[name] = value
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
            loss: Tensor = functional_call(self.module, whole, (record,))
        return loss


class _Episode(nn.Module):
    basis: Tensor
    centre: Tensor
    truth: Tensor
    drawn: Tensor
    drawn_base: Tensor

    def __init__(self, release: Release, parts: tuple[str, ...]) -> None:
        super().__init__()
        tensors = {n: torch.from_numpy(t) for n, t in release.tensors(GENERATOR, PREFIX).items()}
        coordinates, a = release.memory().coordinates, release.manifest.architecture
        self.generator, self.parts = Generator.from_tensors(tensors, a.depth), parts
        self.scale = float(release.tensors(GENERATOR, "head.scale")[""].item())
        self.register_buffer("centre", torch.from_numpy(coordinates.mean.astype(np.float32)))
        self.register_buffer(
            "basis", torch.from_numpy((coordinates.radius * coordinates.directions.T).astype(np.float32))
        )
        self.register_buffer("truth", torch.tensor([0] * OWN + [1 + i // THEIRS for i in range(RIVALS * THEIRS)]))
        if "body" in parts:
            self.target = target_of(release)
            self.register_buffer("drawn", _drawn(a.size, a.mean, a.std))
            self.register_buffer("drawn_base", self.target.features(self.drawn))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of a record without pictures."""
        ways, queries, g = 1 + RIVALS, len(self.truth), self.generator
        width, coordinates = len(self.centre), g.memory.in_features - 1
        return {
            "features": (ways, width), "shots": (ways,), "row": (ways, coordinates), "worth": (ways,),
            "text": (ways, g.sentence.in_features), "attributes": (ways, g.attribute.in_features),
            "queries": (queries, width), "weight": (queries,),
        }  # fmt: skip

    def forward(self, record: Mapping[str, Tensor]) -> Tensor:
        r = record
        given = ClassInputs(r["features"], r["shots"], r["row"], r["worth"], r["text"], r["attributes"])
        tokens = self.generator.tokens(given, self.parts)
        prototypes, queries, drift = given.features, r["queries"], given.features.new_zeros(())
        if "body" in self.parts:
            prototypes, queries, drift = self._moved(tokens, r)
        weight, bias = self.generator.head(prototypes, given, tokens, self.centre, self.scale, self.parts)
        logits = queries @ weight.T + bias
        wrong = F.cross_entropy(logits, self.truth, reduction="none", label_smoothing=SMOOTHING)
        return (wrong * r["weight"]).sum() + DRIFT * drift

    def _moved(self, tokens: Tensor, r: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Prototypes and queries with what the body changes in one view of each picture, and the drift."""
        body = self.target.materialise(self.generator.coefficients(tokens))
        shots, shown = len(r["exemplar"]), len(r["pictures"])
        own = torch.cat([r["exemplar"], r["pictures"]])
        with torch.no_grad():
            before = torch.cat([self.target.features(own), self.drawn_base])
        after = self.target.features(torch.cat([own, self.drawn]), body)
        move = after - before
        public = move[len(own) :].mean(0)
        exemplar = move[:shots].mean(0) if shots else public
        prototypes = r["features"] + torch.stack([exemplar, *[public] * RIVALS])
        asked = torch.cat(
            [move[shots : len(own)], move.new_zeros(OWN - shown, move.shape[1]), public.expand(RIVALS * THEIRS, -1)]
        )
        drift = 1 - F.cosine_similarity(after - self.centre, before - self.centre, dim=-1).mean()
        return prototypes, r["queries"] + asked, drift


def _drawn(size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    from PIL import Image

    from sgps.images import batch

    return batch([Image.fromarray(draw_patient(draw_profile(seed), 0)[0]) for seed in _DRAWN], size, mean, std)
