"""What the bank says about a new classifier: thresholds, measured false alarms, the odds that a score is worth, and other kinds of pictures.

Only public samples are used. One half of every bank class calibrates; the other half is kept apart and measures false alarms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sgps import foreign
from sgps.bank import Bank
from sgps.calibration import Calibration, Share, fit_logistic, fit_temperature, score
from sgps.errors import InputError
from sgps.foreign import Foreign
from sgps.generator import KNOWN_KIND, Trust, linear_head, spread_of
from sgps.rivals import choose, unit

Array = NDArray[Any]
_FEW_CLASSES, _DRAWN = 8, "drawn"
_DRAWS, _EPISODES = 4, 40
_LEAST = 0.05  # share of queries that may be like none of the outputs though their class is one
_NO_LEAST = -1e9


@dataclass(frozen=True)
class Judged:
    """A classifier to be judged by the bank: N outputs, the first `named` of them asked for, then the bank classes `beside`.

    weight [N, f], bias [N]. others: bank classes that are negatives; foreign: of other kinds of pictures. shots: exemplars, own patients and worth of the class memory behind a disease, on average. rivals: as many were asked for.
    trust: in how several exemplars differ.
    """

    bank: Bank
    centre: Array
    scale: float
    weight: Array
    bias: Array
    named: int
    beside: Sequence[int]
    others: Sequence[int]
    foreign: Sequence[int]
    domain: str
    shots: float
    rivals: int
    trust: Trust = KNOWN_KIND


def calibrate(j: Judged, false_alarms: float) -> tuple[Calibration, Foreign | None, tuple[str, ...]]:
    """The calibration at a stated false-alarm level, what tells pictures of other kinds where the bank has some, and the ids of the classes
    that played the disease.

    Raises InputError when the bank has too few negatives for the level.
    """
    bank = j.bank
    calibrating, apart = (bank.samples(j.others, apart=half) for half in (False, True))
    least_level = 1 / (len(calibrating) + 1)
    if not least_level <= false_alarms < 1:
        raise InputError(
            f"cannot be supported by {len(calibrating)} public negatives",
            where=f"false-alarm level {false_alarms:g}",
            do=f"state a level from {least_level:.3f} to below 1",
        )
    scores = score(_outputs(j, calibrating) + without_itself(j, calibrating), j.named).max(1)
    r = rehearse(j)
    calibration = Calibration(
        named=j.named,
        false_alarms=false_alarms,
        negatives=tuple(sorted(float(f"{s:.6g}") for s in scores)),
        least=r.least,
        slope=r.slope,
        offset=r.offset,
        temperature=r.temperature,
        measured=(),
    )
    other = None
    if j.foreign and r.limit is not None:
        weight, bias = foreign.head(bank, j.foreign, j.centre, j.scale)
        other = foreign.made(bank, j.foreign, j.domain, weight, bias, r.limit, (j.weight, j.bias))
    outputs, label = _outputs(j, apart), bank.label[apart]
    wrong = calibration.decide(outputs, other.found(bank.features[apart], outputs) if other else None).accepted
    measured = [Share.of("all", int(wrong.sum()), len(wrong))]
    measured += [
        Share.of(bank.classes[i].name, int(wrong[label == i].sum()), int((label == i).sum())) for i in j.others
    ]
    return calibration.model_copy(update={"measured": tuple(measured)}), other, r.classes


def _outputs(j: Judged, rows: Array) -> Array:
    return np.asarray(j.bank.features[rows] @ j.weight.T + j.bias, dtype=np.float64)


def without_itself(j: Judged, rows: Array) -> Array:
    """Change of the logits [n, N] when no sample is part of its own class's mean, as no new patient is."""
    bank, out = j.bank, np.zeros((len(rows), j.named + len(j.beside)))
    for column, place in enumerate(j.beside, start=j.named):
        mine = np.flatnonzero(bank.label[rows] == place)
        n = len(bank.samples([place], apart=False))
        if bank.inside[place] and n > 1:
            f, mean = bank.features[rows[mine]], bank.means[place]
            alone = unit((n * mean - f) / (n - 1) - j.centre)
            out[mine, column] = j.scale * ((f - j.centre) * (alone - unit(mean - j.centre))).sum(1)
    return out


@dataclass(frozen=True)
class Rehearsal:
    """What a score is worth on public classes that played the disease in turn (`Calibration` says what the numbers mean). limit: of
    `Foreign`, none where the bank has no other kind."""

    slope: float
    offset: float
    temperature: float
    least: float
    limit: float | None
    classes: tuple[str, ...]


def rehearse(j: Judged) -> Rehearsal:
    """Play the same task with public classes, plain prototypes of as many of their own samples: each in turn is the one disease; several
    are told apart.
    """
    random = np.random.default_rng(0)
    return _one(j, random) if j.named == 1 else _several(j, random)


def _logits(j: Judged, prototypes: Array, rows: Array) -> Array:
    return np.asarray((j.bank.features[rows] - j.centre) @ unit(prototypes - j.centre).T * j.scale)


def between(centre: Array, scale: float, groups: Sequence[Array], queries: Array, trust: Trust = KNOWN_KIND) -> Array:
    """Logits [n, N] of queries [n, f] between several classes with these exemplars, one array [k, f] each, as synthesis makes them."""
    middle, given = torch.from_numpy(centre), [torch.from_numpy(g) for g in groups]
    prototypes = torch.stack([g.mean(0) for g in given])
    weight, bias = linear_head(prototypes, middle, scale, spread_of(given, middle, trust))
    return np.asarray(queries @ weight.numpy().T + bias.numpy())


def _ahead(j: Judged, rows: Array, logits: Array) -> Array:
    """How far the best class of another kind is ahead of the best output [n]; nothing where the bank has no other kind."""
    if not j.foreign:
        return np.zeros(0)
    weight, bias = foreign.head(j.bank, j.foreign, j.centre, j.scale)
    return np.asarray((j.bank.features[rows] @ weight.T + bias).max(1) - logits.max(1))


def _limit(ahead: Sequence[Array]) -> float | None:
    """At least 0, so that a class of another kind must be nearer than every output: of a kind that the bank does not hold, which borrows the
    pictures of the kind that it looks like, 20 % of the disease itself would be refused without it, and 1 % is (brain MRI, one exemplar)."""
    found = np.concatenate(ahead) if ahead else np.zeros(0)
    return max(0.0, float(np.quantile(found, 1 - foreign.LEVEL))) if len(found) else None


def _take(j: Judged, place: int, random: np.random.Generator, halves: Sequence[bool] = (False,)) -> tuple[Array, Array]:
    """Rows of exemplars and of queries of one class. halves: of the bank, by whether they are kept apart."""
    rows = random.permutation(np.concatenate([j.bank.samples([place], apart=half) for half in halves]))
    k = int(np.clip(round(j.shots), 1, len(rows) // 2))
    return rows[:k], rows[k:]


def _one(j: Judged, random: np.random.Generator) -> Rehearsal:
    """Only the half of the bank that calibrates plays. A kind of few classes is joined by the drawn ones, as tasks of their own."""
    bank, domains = j.bank, [j.domain]
    if len(bank.of_domain(j.domain)) < _FEW_CLASSES and _DRAWN in bank.domains and j.domain != _DRAWN:
        domains.append(_DRAWN)
    scores, truth, weight, tops, used, ahead = [], [], [], [], [], []
    for domain in domains:
        members = bank.of_domain(domain)
        for place in members if len(members) > 1 else []:
            others = [i for i in members if i != place]
            negatives = bank.samples(others, apart=False)
            for _ in range(_DRAWS):
                exemplars, positives = _take(j, place, random)
                prototype = bank.features[exemplars].mean(0)
                beside = choose(bank, others, prototype, unit(bank.embedding[place]), j.centre, j.rivals)
                prototypes = np.vstack([prototype[None], bank.means[beside]])
                logits = _logits(j, prototypes, np.concatenate([positives, negatives]))
                yes = np.arange(len(logits)) < len(positives)
                scores.append(score(logits, 1)[:, 0])
                truth.append(yes)
                weight.append(np.where(yes, 0.5 / yes.sum(), 0.5 / (~yes).sum()))
                if domain == j.domain:
                    tops.append(logits[yes].max(1))
                    ahead.append(_ahead(j, positives, logits[yes]))
            used.append(bank.classes[place].id)
    if not scores:
        return Rehearsal(0.0, 0.0, 1.0, _NO_LEAST, None, ())
    slope, offset = fit_logistic(np.concatenate(scores), np.concatenate(truth), np.concatenate(weight))
    least = float(np.quantile(np.concatenate(tops), _LEAST)) if tops else _NO_LEAST
    return Rehearsal(slope, offset, 1.0, least, _limit(ahead), tuple(used))


def _several(j: Judged, random: np.random.Generator) -> Rehearsal:
    """Classes of one kind alone: where drawn lesions stood beside skin lesions, tasks were so easy that held-out lesions got a calibration
    error of 14 to 24 points in place of 1 to 3 (`python -m bench.judge`). Both halves of the bank play for the temperature, since nothing
    of it is measured on the half that is kept apart: with one, a class of ten samples has too few for five exemplars and queries.
    """
    members = _kind(j)
    ways = min(j.named, len(members))
    if ways < 2:
        return Rehearsal(0.0, 0.0, 1.0, _NO_LEAST, None, ())
    every = tasks(j, members, ways, random, (False, True))
    calibrating = tasks(j, members, ways, random, (False,))
    least = float(np.quantile(np.concatenate([t.logits.max(1) for t in calibrating]), _LEAST))
    limit = _limit([_ahead(j, t.rows, t.logits) for t in calibrating])
    temperature = fit_temperature([t.logits for t in every], [t.truth for t in every])
    return Rehearsal(0.0, 0.0, temperature, least, limit, tuple(j.bank.classes[i].id for i in members))


def _kind(j: Judged) -> list[int]:
    """Classes of the classifier's kind; of the drawn kind, or of all, where the bank holds fewer than two."""
    bank = j.bank
    groups = (bank.of_domain(j.domain), bank.of_domain(_DRAWN), list(range(len(bank.classes))))
    return next((g for g in groups if len(g) > 1), [])


@dataclass(frozen=True)
class Task:
    """rows [n]: queries in the bank. logits [n, N]. truth [n]: the right output."""

    rows: Array
    logits: Array
    truth: Array


def tasks(
    j: Judged, members: Sequence[int], ways: int, random: np.random.Generator, halves: Sequence[bool]
) -> list[Task]:
    """Forty tasks of so many of these classes, of the halves of the bank that are (not) kept apart."""
    out = []
    for _ in range(_EPISODES):
        drawn = [_take(j, int(i), random, halves) for i in random.choice(members, ways, replace=False)]
        rows = np.concatenate([queries for _, queries in drawn])
        truth = np.repeat(np.arange(ways), [len(queries) for _, queries in drawn])
        groups = [j.bank.features[exemplars] for exemplars, _ in drawn]
        out.append(Task(rows, between(j.centre, j.scale, groups, j.bank.features[rows], j.trust), truth))
    return out
