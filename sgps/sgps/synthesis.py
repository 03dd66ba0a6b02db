"""Synthesis: exemplars and clinical texts -> a complete classifier, in about a second, without training.

One disease is judged beside rivals of the reference bank; several are judged beside each other. A prototype is

    v = Memory.blend(mean of exemplars and own patients, row of the class memory) + (v_generated - v_base)

(design D13), and the head is centred cosine, in the metric that the spread of several exemplars gives (`linear_head`).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from sgps.asked import Asked, complete, disease, remarks, subject
from sgps.attributes import NAMES, VOCABULARIES, parse, vector
from sgps.bank import Bank
from sgps.catalogue import Catalogue
from sgps.classifier import Classifier
from sgps.device import CPU, exact
from sgps.encoders import ImageEncoder, text_encoder_of
from sgps.errors import InputError, SignatureError
from sgps.foreign import classes as foreign_classes
from sgps.generator import KNOWN_KIND, PARTS, STRANGE_KIND, ClassInputs, Generator, Trust, linear_head, spread_of
from sgps.memory import Memory
from sgps.open_encoders import Spec
from sgps.record import Origin, Record
from sgps.rehearsal import Judged, calibrate
from sgps.release import BANK, CATALOGUE, GENERATOR, Release, encoder_sha256
from sgps.rivals import STRANGE, Familiarity, choose, domain_of, same_disease, unit

Array = NDArray[Any]
RIVALS, FALSE_ALARMS = 5, 0.10
SCALE = "head.scale"


def synthesize(
    exemplars: Mapping[str, Sequence[Image]],
    texts: Mapping[str, str],
    release: Release,
    *,
    own: Mapping[str, Array] | None = None,
    memory: Memory | None = None,
    false_alarms: float = FALSE_ALARMS,
    rivals: int = RIVALS,
    encoders: Spec | None = None,
    device: torch.device = CPU,
) -> Classifier:
    """Exemplars of one or several diseases -> classifier.

    exemplars: pictures by disease name or catalogue id. One key: the outputs are the disease and at most `rivals` rivals from the
    bank; several keys: these. texts: clinical texts by the same keys; a disease of the catalogue may do without. own: features
    [patients, f] of the site's own patients by the same keys; each counts like an exemplar. memory: another class memory than the
    release's (`Memory.without`). false_alarms: the stated level of the conformal threshold. encoders: folder of the text encoder, for a
    release that does not read texts with the installed one. device: where it is computed; the classifier's weights come back from it.

    The order of the keys orders the outputs and changes nothing else. Raises InputError for missing pictures or texts, a text or own
    patients of no disease, or a level that the bank cannot support; SignatureError for a release or an encoder that does not fit;
    ConfigError when the release needs an encoder's folder.
    """
    loaded = _loaded(release.folder, release.sha256, encoders, device)
    return loaded.synthesize(exemplars, texts, own or {}, memory, false_alarms, rivals)


@lru_cache(maxsize=2)
def _loaded(folder: Path, sha256: str, encoders: Spec | None, device: torch.device) -> "Synthesizer":
    return Synthesizer(Release.open(folder, sha256=sha256), encoders, device)


@dataclass(frozen=True)
class Composition:
    """All weights of a classifier. Rows of weight [N, f] and bias [N]: the asked diseases by name, then the rivals.

    body: tensors of the generated body where it was computed, none for the base. beside, others, foreign: places of rivals, of negatives and of classes of other kinds in the bank. cosine: of
    the exemplars' features before and after. trust: in how several exemplars differ. seconds: all of it took.
    """

    asked: tuple[Asked, ...]
    weight: Tensor
    bias: Tensor
    body: dict[str, Tensor] | None
    beside: tuple[int, ...]
    others: tuple[int, ...]
    foreign: tuple[int, ...]
    domain: str
    cosine: float
    trust: Trust
    notes: tuple[str, ...]
    seconds: float


class Synthesizer:
    """A release, loaded once. `synthesize` is the same as the module's function."""

    def __init__(self, release: Release, encoders: Spec | None = None, device: torch.device = CPU) -> None:
        """Raises SignatureError when the parts of the release, or the text encoder, do not fit its manifest."""
        self.release, self.encoder, self.bank = release, ImageEncoder(release, device), Bank.of(release)
        self.catalogue, self.memory, self.text = (
            Catalogue.load(release.folder / CATALOGUE),
            release.memory(),
            text_encoder_of(release, encoders),
        )
        a = release.manifest.architecture
        where, again = release.folder / GENERATOR, "get the release again"
        if encoder_sha256(release.tensors(GENERATOR, "base."), a, self.memory) != release.manifest.encoder_sha256:
            raise SignatureError("base network and coordinates are not those of the manifest", where=where, do=again)
        if unknown := sorted(set(a.learned) - set(PARTS)):
            raise SignatureError(f"unknown learned part {unknown[0]}", where=where, do="update the program")
        widths = (self.bank.features.shape[1], self.bank.embedding.shape[1])
        if len(self.bank.classes) < 2 or widths != (self.encoder.target.width, self.text.width):
            raise SignatureError("does not fit the encoders", where=release.folder / BANK, do=again)
        scale = release.tensors(GENERATOR, SCALE).get("")
        if scale is None or scale.size != 1:
            raise SignatureError(f"lacks {SCALE}", where=where, do=again)
        self.scale, self.centre = float(scale.item()), self.memory.coordinates.mean.astype(np.float32)
        self._inside: dict[str, Array] = {}
        self.familiarity = Familiarity(self.bank, self.centre)
        self.generator: Generator | None = None
        if a.learned:
            tensors = {n: torch.from_numpy(t) for n, t in release.tensors(GENERATOR, "generator.").items()}
            try:
                self.generator = Generator.from_tensors(tensors, a.depth).to(device)
            except ValueError as error:
                raise SignatureError(str(error), where=where, do=again) from error

    @torch.inference_mode()
    def compose(
        self,
        exemplars: Mapping[str, Sequence[Image]],
        texts: Mapping[str, str],
        *,
        own: Mapping[str, Array] | None = None,
        memory: Memory | None = None,
        rivals: int = RIVALS,
    ) -> "Composition":
        """All weights, without calibration. Arguments and errors are those of the module's `synthesize`."""
        start = time.perf_counter()
        memory = memory or self.memory
        if memory.coordinates.sha256() != self.memory.coordinates.sha256() or memory.ids != self.memory.ids:
            raise InputError("belongs to another release", where="class memory", do="use the memory of this release")
        asked = complete(exemplars, texts, own or {}, self.catalogue, memory, self.encoder.target.width)
        # one by one: what is made of a class does not depend on the batch of the others
        base = [self.encoder.features(d.images) for d in asked]
        seen = [np.concatenate([b, d.own.astype(np.float32)]) for b, d in zip(base, asked, strict=True)]
        prototypes = np.stack([self._blended(x.mean(0), d, memory) for x, d in zip(seen, asked, strict=True)])
        embedded = self.text.embed([d.text for d in asked])
        domain, looks, notes = self._domain(asked[0], prototypes[0])
        strange = np.mean([self.familiarity(x).mean() for x in seen]) < STRANGE
        trust = STRANGE_KIND if strange else KNOWN_KIND
        if strange:
            notes.append(
                f"{subject(sum(len(d.images) for d in asked), 'look')} like no kind of picture in the reference bank (most like {looks}): false alarms and 'none of these' "
                "were measured on other kinds and may be far off"
            )
        kinds = {domain, looks, *(self._kind(d, p) for d, p in zip(asked[1:], prototypes[1:], strict=True))}
        itself = set().union(*(same_disease(self.bank, d.names, t) for d, t in zip(asked, embedded, strict=True)))
        others = [i for i in self.bank.of_domain(domain) if i not in itself]
        if not others:
            others = [i for i in range(len(self.bank.classes)) if i not in itself]
            notes.append(
                f"the reference bank holds nothing else of the kind {domain}: rivals and negatives are of other kinds"
            )
        beside = choose(self.bank, others, prototypes[0], embedded[0], self.centre, rivals) if len(asked) == 1 else []
        beside.sort(key=lambda i: self.bank.classes[i].id)
        if len(asked) == 1 and not beside:
            raise InputError("one disease needs at least one rival", where="rivals", do="ask for one or more")

        inputs = self._inputs(asked, prototypes, embedded, beside, domain)
        with exact(self.encoder.device):
            body, tokens = self._body(inputs)
            moved, cosine = self._moves(asked, base, body)
            all_of_them = np.concatenate([prototypes + moved, self.bank.means[beside]]).astype(np.float32)
            weight, bias = (
                t.cpu() for t in self._head(self._tensor(all_of_them), inputs, tokens, self._spread(seen, trust))
            )
        if body is not None:
            notes.append(
                "rivals and public negatives keep their features under the base network: the bank holds no pictures of them"
            )
        return Composition(
            tuple(asked),
            weight,
            bias,
            body,
            tuple(beside),
            tuple(others),
            tuple(i for i in foreign_classes(self.bank, kinds) if i not in itself),
            domain,
            cosine,
            trust,
            tuple(notes),
            time.perf_counter() - start,
        )

    @torch.inference_mode()
    def synthesize(
        self,
        exemplars: Mapping[str, Sequence[Image]],
        texts: Mapping[str, str],
        own: Mapping[str, Array],
        memory: Memory | None,
        false_alarms: float,
        rivals: int,
    ) -> Classifier:
        """See the module's function."""
        start = time.perf_counter()
        c = self.compose(exemplars, texts, own=own, memory=memory, rivals=rivals)
        calibration, foreign, rehearsed = calibrate(self.judged(c, rivals), false_alarms)
        order = [next(i for i, d in enumerate(c.asked) if d.key == key) for key in exemplars]
        order += range(len(c.asked), len(c.asked) + len(c.beside))
        state = self.encoder.target.export(c.body, c.weight[order], c.bias[order])
        m, a = self.release.manifest, self.release.manifest.architecture
        diseases = {d.key: disease(d) for d in c.asked}
        origin = Origin(
            release=m.name,
            release_sha256=self.release.sha256,
            bank_sha256=m.files[BANK],
            encoder_sha256=m.encoder_sha256,
            licence=m.licence,
            domain=c.domain,
            diseases=tuple(diseases[key] for key in exemplars),
            rivals=tuple(self.bank.classes[i].id for i in c.beside),
            negatives=tuple(self.bank.classes[i].id for i in c.others),
            rehearsed=rehearsed,
            learned=a.learned,
            cosine=c.cosine,
            provenance=tuple(p.model_dump(mode="json") for p in m.provenance),
            seconds={"weights": c.seconds, "all": time.perf_counter() - start},
        )
        record = Record(
            architecture=a.base,
            size=a.size,
            mean=a.mean,
            std=a.std,
            views=a.views,
            labels=self._labels([*exemplars], c.beside),
            ids=tuple([diseases[k].id for k in exemplars] + [self.bank.classes[i].id for i in c.beside]),
            calibration=calibration,
            foreign=foreign,
            origin=origin,
            notes=(
                *c.notes,
                *(line for d in c.asked for line in remarks(d, self.catalogue, self.text)),
            ),
        )
        return Classifier(record, state)

    def _blended(self, mean: Array, d: Asked, memory: Memory) -> Array:
        if d.place is None or d.entry is None:
            return mean
        return memory.blend(mean, d.shots, d.place, self.inside(d.entry.domain))

    def inside(self, domain: str) -> Array:
        """Within-class variance of the memory's coordinates [k] in the bank's classes of a domain."""
        if domain not in self._inside:
            mine = np.isin(self.bank.label, self.bank.of_domain(domain))
            self._inside[domain] = self.memory.coordinates.inside(self.bank.features[mine], self.bank.label[mine])
        return self._inside[domain]

    def _domain(self, first: Asked, prototype: Array) -> tuple[str, str, list[str]]:
        """The kind of picture of a disease, the one that its exemplar looks like, and a note where they differ."""
        domain, looks = self._kind(first, prototype), domain_of(self.bank, prototype, self.centre)
        more = "looks more" if len(first.images) == 1 else "look more"
        note = f"{subject(len(first.images))} of {first.key} {more} like {looks} than like {domain}"
        return domain, looks, [note] if looks != domain else []

    def _kind(self, d: Asked, prototype: Array) -> str:
        """The kind of picture by the catalogue, where the bank knows that kind; else the one that the exemplar looks like."""
        if d.entry and d.entry.domain in self.bank.domains:
            return d.entry.domain
        return domain_of(self.bank, prototype, self.centre)

    def _inputs(
        self, asked: Sequence[Asked], prototypes: Array, embedded: Array, beside: Sequence[int], domain: str
    ) -> ClassInputs:
        """What the generator sees of every output, the named ones first."""
        classes = [self.bank.classes[i] for i in beside]
        k = len(self.memory.coordinates.directions)
        signs = [
            vector(
                d.entry.attributes
                if d.entry and d.text == d.entry.text
                else _signs(d.text, d.entry.domain if d.entry else domain),
                d.entry.domain if d.entry else domain,
            )
            for d in asked
        ] + [vector(_signs(c.text, c.domain), c.domain) for c in classes]
        columns = (
            np.concatenate([prototypes, self.bank.means[beside]]),
            np.array([d.shots for d in asked] + [int((self.bank.label == i).sum()) for i in beside]),
            np.concatenate([np.stack([d.row for d in asked]), np.zeros((len(beside), k))]),
            np.array([d.worth for d in asked] + [0.0] * len(beside)),
            np.concatenate([embedded, unit(self.bank.embedding[beside])]),
            np.stack(signs) if signs else np.zeros((0, len(NAMES))),
        )
        return ClassInputs(*(self._tensor(np.ascontiguousarray(c, np.float32)) for c in columns))

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self.encoder.device)

    def _body(self, inputs: ClassInputs) -> tuple[dict[str, Tensor] | None, Tensor | None]:
        learned = self.release.manifest.architecture.learned
        if self.generator is None:
            return None, None
        tokens = self.generator.tokens(inputs, learned)
        if "body" not in learned:
            return None, tokens
        return self.encoder.target.materialise(self.generator.coefficients(tokens)), tokens

    def _moves(
        self, asked: Sequence[Asked], base: Sequence[Array], body: dict[str, Tensor] | None
    ) -> tuple[Array, float]:
        """v_generated - v_base of each disease [N, f]; mean cosine of the exemplars' centred features before and after.

        The bank's classes have no pictures, so rivals and negatives keep their features under the base. Shifting them by what the body
        does to the exemplar is worse: with random bodies (cosine .95, four exemplars) the shift left 8.6 of a move of 6.6, and 14.6 %
        false alarms at a stated 10 %; without it 9.7 %.
        """
        if body is None:
            return np.zeros((len(asked), self.encoder.target.width)), 1.0
        generated = [self.encoder.features(d.images, body=body) for d in asked]
        moved = np.stack([(g - b).mean(0) for g, b in zip(generated, base, strict=True)])
        before, after = (unit(np.concatenate(x) - self.centre) for x in (base, generated))
        return moved, float((before * after).sum(1).mean())

    def _spread(self, seen: Sequence[Array], trust: Trust) -> Tensor | None:
        """How exemplars and own patients [k, f] of one disease differ, for the head of several; one disease beside rivals does not gain by it
        (docs/results/heads.md)."""
        return spread_of([self._tensor(x) for x in seen], self._tensor(self.centre), trust) if len(seen) > 1 else None

    def _head(
        self, prototypes: Tensor, inputs: ClassInputs, tokens: Tensor | None, spread: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        centre = self._tensor(self.centre)
        if self.generator is None or tokens is None:
            return linear_head(prototypes, centre, self.scale, spread)
        learned = self.release.manifest.architecture.learned
        return self.generator.head(prototypes, inputs, tokens, centre, self.scale, learned, spread)

    def judged(self, c: Composition, rivals: int = RIVALS) -> Judged:
        """A composition as the bank judges it."""
        return Judged(
            bank=self.bank,
            centre=self.centre,
            scale=self.scale,
            weight=c.weight.numpy(),
            bias=c.bias.numpy(),
            named=len(c.asked),
            beside=c.beside,
            others=c.others,
            foreign=c.foreign,
            domain=c.domain,
            shots=float(np.mean([d.shots + d.worth for d in c.asked])),
            trust=c.trust,
            rivals=rivals,
        )

    def _labels(self, keys: Sequence[str], beside: Sequence[int]) -> tuple[str, ...]:
        taken, out = {k.casefold() for k in keys}, list(keys)
        for i in beside:
            c = self.bank.classes[i]
            name = c.name if c.name.casefold() not in taken else f"{c.name} ({c.id})"
            taken.add(name.casefold())
            out.append(name)
        return tuple(out)


def _signs(text: str, domain: str) -> dict[str, int]:
    return parse(text, domain) if domain in VOCABULARIES else {}
