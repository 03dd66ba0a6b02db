"""`sgps memory map`: the map that carries rows to another base, from pictures that both bases read, and what it loses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sgps.carry import About, Fit, Map, directions, fit
from sgps.catalogue import Catalogue
from sgps.device import CPU
from sgps.encoders import ImageEncoder
from sgps.errors import InputError
from sgps.memory import SHARE_COUNT, SHARE_ROW, Contribution, Coordinates, pool
from sgps.pretrain.pictures import Listing, public
from sgps.pretrain.progress import Report, silent
from sgps.release import CATALOGUE, Release

Array = NDArray[Any]
MOST_PATIENTS = 200  # of a class
ROW_PATIENTS, EXEMPLARS = 40, 10  # behind each figure of the loss
_BATCH = 128


@dataclass(frozen=True)
class Patients:
    """old, new [n, f]: mean features of each public patient under both bases. label [n]: `set/class`; set [n]."""

    old: Array
    new: Array
    label: Array
    set: Array


def make(
    before: Release,
    after: Release,
    data: Sequence[Path],
    leave_out: Sequence[str] = (),
    most: int = MOST_PATIENTS,
    report: Report = silent,
    domains: Sequence[str] = (),
    device: torch.device = CPU,
) -> Map:
    """data: zips or folders of class folders, public. leave_out: classes that are not looked at, beside those that the provenance of either
    release names. most: patients of a class, a seeded choice. domains: kinds of pictures that the data show, beside those of the classes
    that the new release's catalogue knows by the names of their folders. device: of the base networks.

    Raises InputError when the releases have the same base, or the data hold too few classes or patients.
    """
    old, new = before.manifest.encoder_sha256, after.manifest.encoder_sha256
    if old == new:
        raise InputError("has the same base network and coordinates", where=after.folder, do="no map is needed")
    out = {c for r in (before, after) for p in r.manifest.provenance for c in p.left_out} | set(leave_out)
    catalogue = Catalogue.load(after.folder / CATALOGUE)
    kinds = {e.domain for e in catalogue.entries}
    if wrong := sorted(set(domains) - kinds):
        raise InputError(
            f"{wrong[0]} is in no class of the catalogue", where="--domain", do=f"one of {', '.join(sorted(kinds))}"
        )
    found, sets = patients((before, after), data, out, most, report, device)
    places = [r.memory().coordinates for r in (before, after)]
    try:
        made = fit(directions(places[0], found.old), directions(places[1], found.new), found.label)
    except ValueError as error:
        raise InputError(str(error), where=", ".join(map(str, data)), do="give more public pictures") from error
    areas = loss(found, made.without, made.error, places[0], places[1])
    names, counts = np.unique(found.label, return_counts=True)
    cosine = [made.cosine[c] for c in names.tolist()]
    figures = {
        "classes": {
            c: {"patients": int(n), "cosine": round(made.cosine[c], 4)}
            for c, n in zip(names.tolist(), counts, strict=True)
        },
        "cosine": {"mean": round(float(np.mean(cosine)), 4), "least": round(min(cosine), 4)},
        "auroc": {k: round(float(np.mean([a[k] for a in areas.values()])), 4) for k in ("exemplar", "carried", "own")},
        "strength": made.strength,
        "patients_at_most": round(_ceiling(made, places[1]), 1),
        "data": sets,
        "left_out": sorted(out),
    }
    entries = [catalogue.find(c.split("/", 1)[1]) for c in names.tolist()]
    seen = {e.domain for e in entries if e is not None} | set(domains)
    return Map(made.matrix, made.error, About(before=old, after=new, domains=tuple(sorted(seen)), figures=figures))


def _ceiling(made: Fit, new: Coordinates) -> float:
    """As how many exemplars a carried row counts at most, however many patients are behind it."""
    return new.within / (new.radius**2 / SHARE_ROW * float(made.error.sum()))


def patients(
    releases: Sequence[Release],
    data: Sequence[Path],
    out: set[str],
    most: int,
    report: Report = silent,
    device: torch.device = CPU,
) -> tuple[Patients, list[dict[str, Any]]]:
    """Features under the old and the new base, and what was read. out: classes that are not looked at. most: patients of a class."""
    features: list[list[Array]] = [[], []]
    labels, sets, told = list[str](), list[str](), list[dict[str, Any]]()
    encoders = [ImageEncoder(r, device) for r in releases]
    for path in data:
        one = public(path)
        rows, patient = _chosen(one, out, most)
        name = one.source.where.stem
        if name in set(sets):
            raise InputError("has the name of another set", where=path, do="rename one")
        for encoder, into, which in zip(encoders, features, ("old", "new"), strict=True):
            parts = []
            for start in range(0, len(rows), _BATCH):
                report(f"features {name}, {which} base", start, len(rows), {})
                parts.append(encoder.features([one.image(int(r)) for r in rows[start : start + _BATCH]]))
            into.append(_means(np.concatenate(parts), patient))
        first = np.unique(patient, return_index=True)[1]
        labels += [f"{name}/{c}" for c in one.label[rows[first]].tolist()]
        sets += [name] * len(first)
        told.append({"name": name, "sha256": one.source.sha256(), "pictures": len(rows), "patients": len(first)})
    old, new = (np.concatenate(f) for f in features)
    return Patients(old, new, np.array(labels), np.array(sets)), told


def _chosen(one: Listing, out: set[str], most: int) -> tuple[Array, Array]:
    """Rows of at most so many patients of each class that is not left out, and a patient number for each."""
    random, rows = np.random.default_rng(0), list[Array]()
    for kind in sorted(set(one.label.tolist()) - out):
        own = np.flatnonzero(one.label == kind)
        kept = random.permutation(np.unique(one.lesion[own]))[:most]
        rows.append(own[np.isin(one.lesion[own], kept)])
    if not rows:
        raise InputError("holds no class that may be looked at", where=one.source.where, do="give other pictures")
    found = np.concatenate(rows)
    who = np.char.add(np.char.add(one.label[found], "/"), one.lesion[found])
    return found, np.unique(who, return_inverse=True)[1]


def _means(features: Array, patient: Array) -> Array:
    total = np.zeros((int(patient.max()) + 1, features.shape[1]))
    np.add.at(total, patient, features)
    return total / np.bincount(patient)[:, None]


def loss(
    found: Patients,
    without: Mapping[str, Array],
    error: Array,
    before: Coordinates,
    after: Coordinates,
    sigma: float = 0.0,
) -> dict[str, dict[str, float]]:
    """Class -> mean AUROC, over exemplars, of one exemplar against the other classes of its set: alone, with a carried row, with a row made
    in the new base.

    without: class -> the map that never saw it; error: of the maps. The row has 40 patients at most, and noise where a sigma is given;
    neither the exemplars nor the patients that are asked about are in it. Score: centred cosine with the class less the best of the other
    classes' means.
    """
    random, out = np.random.default_rng(1), dict[str, dict[str, float]]()
    half = np.zeros(len(found.label), bool)
    for kind in np.unique(found.label):
        mine = np.flatnonzero(found.label == kind)
        half[random.permutation(mine)[: len(mine) // 2]] = True
    for kind, matrix in without.items():
        mine = found.label == kind
        beside = (found.set == found.set[mine][0]) & ~mine
        if not beside.any():
            beside = ~mine
        row = np.flatnonzero(mine & half)[:ROW_PATIENTS]
        inside = after.inside(found.new[half & ~mine], found.label[half & ~mine])
        rivals = np.stack([found.new[(found.label == c) & half].mean(0) for c in np.unique(found.label[beside])])
        tested, others = np.flatnonzero(mine & ~half), found.new[beside & ~half] - after.mean
        areas = list[list[float]]()
        for exemplar in tested[:EXEMPLARS]:
            one = Map(matrix, error, About(before="0" * 64, after="1" * 64, figures={}))
            carried = one.carry(_sum(before, found.old[row], sigma, random))
            memories = [pool(after, ["row"], [c]) for c in (carried, _sum(after, found.new[row], sigma, random))]
            asked, seen = found.new[tested[tested != exemplar]] - after.mean, found.new[exemplar]
            made_of = [seen, *(m.blend(seen, 1, 0, inside) for m in memories)]
            areas.append(
                [area(*(_score(x, p - after.mean, rivals - after.mean) for x in (asked, others))) for p in made_of]
            )
        alone, with_carried, with_own = np.mean(areas, axis=0)
        out[kind] = {"exemplar": float(alone), "carried": float(with_carried), "own": float(with_own)}
    return out


def _sum(coordinates: Coordinates, features: Array, sigma: float, random: np.random.Generator) -> Contribution:
    """The sum of patients of one class, with noise of that multiplier."""
    rows = np.sqrt(SHARE_ROW) * directions(coordinates, features).sum(0)
    rows[: coordinates.used] += sigma * random.normal(size=coordinates.used)
    count = np.sqrt(SHARE_COUNT) * len(features) + sigma * random.normal()
    return Contribution(rows[None], np.array([count]), sigma)


def _score(x: Array, prototype: Array, rivals: Array) -> Array:
    unit, heads = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (x, np.vstack([prototype, rivals])))
    cosine = unit @ heads.T
    return np.asarray(cosine[:, 0] - cosine[:, 1:].max(1))


def area(positive: Array, negative: Array) -> float:
    """AUROC; ties count half."""
    order = np.sort(negative)
    low, high = np.searchsorted(order, positive, "left"), np.searchsorted(order, positive, "right")
    return float((low + high).mean() / (2 * len(order)))
