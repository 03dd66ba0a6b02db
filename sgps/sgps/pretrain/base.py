"""Make the base network: `run` is `sgps pretrain base`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from sgps.code import code_sha256
from sgps.device import CPU, exact
from sgps.episodes import EpisodeSet
from sgps.errors import InputError, StateError
from sgps.files import sha256_file, write_atomic
from sgps.open_encoders import ImageTower
from sgps.pretrain.distil import distil
from sgps.pretrain.features import Features, pack_features, read_features
from sgps.pretrain.figures import measure
from sgps.pretrain.finetune import finetune
from sgps.pretrain.frozen import frozen_episodes
from sgps.pretrain.images import Images, Source, read_images
from sgps.pretrain.loop import Stage
from sgps.pretrain.networks import (
    BASE,
    HALF,
    TEACHER_LICENCE,
    TEACHER_PACKAGE,
    TEACHER_SHA256,
    Arithmetic,
    Input,
    average,
    base_network,
    load_state,
    read_teacher,
    rounded,
    save_state,
)
from sgps.pretrain.own import Own, Weights, read_own
from sgps.pretrain.pool import Pool, held_out
from sgps.pretrain.progress import Report, Stop, silent, stopping
from sgps.pretrain.recipe import Draw, ImageSet, Recipe, read_recipe
from sgps.pretrain.statistics import (
    BANK_DRAWN_FIRST,
    BANK_DRAWN_PATIENTS,
    BANK_DRAWN_PROFILES,
    bank,
    public_space,
    write_statistics,
)
from sgps.pretrain.teach import Teacher, teach
from sgps.pretrain.transplant import transplant
from sgps.settings import dump

BANK_SET = ImageSet(
    name="bank",
    draw=Draw(first=BANK_DRAWN_FIRST, profiles=BANK_DRAWN_PROFILES, patients=BANK_DRAWN_PATIENTS),
    role="other",
    frame=(160, 160),
    turn=True,
    leave_out=(),
    licence="Apache-2.0",
    source="lesions drawn by sgps.draw",
)


def read_sets(data: Path, kinds: Sequence[ImageSet], work: Path, report: Report, stop: Stop) -> dict[str, Images]:
    """Image sets by name, decoded into `work`/images once."""
    sets = {}
    for kind in kinds:

        def tick(done: int, total: int, name: str = kind.name) -> None:
            report(f"decode {name}", done, total, {})
            if stop.asked:
                raise KeyboardInterrupt

        sets[kind.name] = read_images(data, kind, work / "images", tick)
    return sets


def claim(
    work: Path,
    recipe: Recipe,
    seed: int,
    sets: Mapping[str, Images],
    own: Weights | None = None,
    teacher: Teacher | None = None,
) -> None:
    """Tie the work folder to recipe, seed, images, a user's weights and encoder. Raises StateError when it belongs to others."""
    key = {"recipe": recipe.model_dump(mode="json", exclude={"atlas"}), "seed": seed, "teacher": TEACHER_SHA256}
    if recipe.atlas is not None:
        key["atlas"] = recipe.atlas
    if own is not None:
        key["weights"] = [own.sha256, *astuple(own.input)]
    if teacher is not None:
        key["encoders"] = teacher.encoders.sha256
    key["images"] = {name: images.sha256 for name, images in sets.items()}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = work / "run.sha256"
    if not path.exists():
        write_atomic(path, digest.encode())
    elif path.read_text() != digest:
        raise StateError(
            "belongs to another recipe, seed or set of images"
            if own is None and teacher is None
            else "belongs to other weights or images",
            where=work,
            do="continue that run, or choose another --out",
        )


def train(
    sets: Mapping[str, Images],
    recipe: Recipe,
    work: Path,
    seed: int,
    report: Report,
    stop: Stop,
    given: Input,
    own: Weights | None = None,
    tower: ImageTower | None = None,
    arithmetic: Arithmetic | None = None,
) -> dict[str, Tensor]:
    """Run or continue all training stages. Returns the averaged weights, rounded as they are stored.

    Without own weights the base starts from Lite0, without a tower Lite0 teaches it.
    """
    arithmetic = arithmetic or Arithmetic()
    pool = Pool(sets, recipe, arithmetic.device)
    first = Stage("distil", recipe.distil.steps, (recipe.distil.steps,), work)
    if not first.done():
        if tower is None:
            distil(first, pool, recipe, read_teacher(), seed, arithmetic, report, stop)
        else:
            begun = own.state if own is not None else _transplanted(seed)
            teach(first, pool, recipe, tower, begun, given, seed, arithmetic, report, stop)
    start = load_state(first.kept(recipe.distil.steps))
    kept = []
    for number, settings in enumerate(recipe.finetune):
        stage = Stage(settings.name, settings.steps, settings.keep, work)
        if not stage.done():
            finetune(stage, settings, number, start, given, pool, recipe, seed, arithmetic, report, stop)
        kept += [load_state(stage.kept(s)) for s in settings.keep]
    return rounded(average(kept))


def _transplanted(seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(transplant(base_network(), read_teacher()).state_dict())


def public_features(
    sets: Mapping[str, Images], recipe: Recipe, net: Any, digest: str, work: Path, report: Report, stop: Stop
) -> dict[str, Features]:
    """Features of every public image: training images of the skin set (the atlas), all images of the others, and `bank`,
    the drawn patients of the reference bank."""
    found = {}
    for kind in [*recipe.sets, BANK_SET]:
        images = sets[kind.name]
        rows = np.arange(len(images))
        if kind.role == "skin":
            rows = np.flatnonzero(
                np.isin(images.label, recipe.base_classes) & ~held_out(images.lesion, images.label, recipe)
            )

        def tick(done: int, total: int, name: str = kind.name) -> None:
            report(f"features {name}", done, total, {})
            if stop.asked:
                raise KeyboardInterrupt

        found[kind.name] = read_features(kind.name, images, rows, net, recipe.size, digest, work, tick)
    return found


def provenance(sets: Mapping[str, Images], recipe: Recipe, use: str = "trained_on") -> list[dict[str, Any]]:
    """Of every image set: source, licence, hash, and how many images of each class were used (`use`) or held out."""
    out = []
    for kind in recipe.sets:
        images = sets[kind.name]
        held = np.zeros(len(images), bool)
        if kind.role == "skin":
            held = held_out(images.lesion, images.label, recipe)
        labels, counts = np.unique(images.label[~held], return_counts=True)
        entry: dict[str, Any] = {
            "name": kind.name,
            "source": kind.source,
            "licence": kind.licence,
            "sha256": images.sha256,
        }
        if kind.draw is not None:
            entry |= {"draw": kind.draw.model_dump(), "sha256_of": "pixels"}
        else:
            entry |= {"file": kind.file, use: dict(zip(labels.tolist(), counts.tolist(), strict=True))}
        entry |= {"images": int((~held).sum()), "held_out": int(held.sum()), "left_out": list(kind.leave_out)}
        out.append(entry)
    return out


def manifest(
    sets: Mapping[str, Images],
    recipe: Recipe,
    work: Path,
    seed: int,
    threads: int,
    digest: str,
    net: Any,
    given: Input,
    own: Weights | None,
    teacher: Teacher | None,
    figures: Any,
    arithmetic: Arithmetic,
) -> dict[str, Any]:
    """What `base.yaml` says."""
    network = {
        "architecture": given.architecture,
        "classes": 0,
        "features": int(net.num_features),
        "size": given.size,
        "mean": list(given.mean),
        "std": list(given.std),
        "numbers": "float16, BatchNorm running statistics float32",
        "sha256": digest,
    }
    made_by: dict[str, Any] = {
        "command": f"sgps pretrain base --seed {seed} --threads {threads}"
        + ("" if arithmetic.device == CPU else f" --device {arithmetic.device.type}"),
        "code_sha256": code_sha256("sgps.pretrain", "sgps.draw"),
        "torch": str(torch.__version__),
        "timm": str(timm.__version__),
    }
    licences = {s.licence for s in recipe.sets}
    out: dict[str, Any] = {"network": network}
    if own is None:
        licences.add(TEACHER_LICENCE)
        out["teacher"] = {"package": TEACHER_PACKAGE, "licence": TEACHER_LICENCE, "sha256": TEACHER_SHA256}
    else:
        made_by["command"] += " --weights"
        licences.add(own.licence)
        out["weights"] = own.record()  # what they were trained on is the user's to know: nothing is claimed
    if teacher is not None:
        made_by["command"] += " --encoders"
        licences.add(teacher.licence.strip())
        out["encoders"] = teacher.record()
    out["licences"] = sorted(licences)
    if own is None or teacher is not None:
        stages = ["distil", *(f.name for f in recipe.finetune)]
        made_by |= {
            "bfloat16": arithmetic.bfloat16,
            "stages": {name: json.loads((work / f"{name}.json").read_text()) for name in stages},
            "average_of": [f"{f.name} step {s}" for f in recipe.finetune for s in f.keep],
            "recipe": recipe.model_dump(mode="json", exclude={"sets"}, exclude_none=True),
        }
        out["images"] = provenance(sets, recipe)
        out["meta_test"] = list(recipe.meta_test)
    else:
        made_by["recipe"] = recipe.model_dump(mode="json", exclude={"sets", "distil", "finetune"}, exclude_none=True)
        out["images"] = provenance(sets, recipe, "classes")
    return {**out, "made_by": made_by, "figures": figures}


def _measurable(data: Path, recipe: Recipe, sets: Mapping[str, EpisodeSet]) -> bool:
    names = set(Source(data, recipe.skin.file or "").names)
    return all(name in names for one in sets.values() for name in one.name.tolist())


def run(
    data: Path,
    out: Path,
    recipe: Path | None = None,
    seed: int = 0,
    threads: int = 1,
    report: Report | None = None,
    own: Own | None = None,
    atlas: int | None = None,
    teacher: Teacher | None = None,
    device: torch.device = CPU,
) -> None:
    """Make the base network from the image sets under `data`. Work in progress lies in `out`/work; `out` gets

    base.safetensors        the feature network: weights float16, BatchNorm running statistics float32
    base.yaml               architecture, input, provenance, how it was made, figures
    statistics.safetensors  mean, coordinates and bank samples; names, radius and within in statistics.json
    public.safetensors      eight-view features of all public images; names in public.json

    recipe: a YAML file, else the shipped one; threads: of torch; own: a user's checkpoint is the base, and nothing is trained unless
    there is a teacher; teacher: a user's encoder is distilled into the base in place of Lite0; atlas: at most so many lesions of each
    base class, all others are held out; device: where training and features are computed. A run that was stopped or killed continues where its last
    checkpoint is, when it is started again with the same arguments; threads and device may be others. Raises InputError, ConfigError, SignatureError,
    StateError; KeyboardInterrupt after a clean stop.
    """
    if threads < 1:
        raise InputError("must be at least 1", where="threads")
    if atlas is not None and atlas < 2:
        raise InputError("must be at least 2", where="atlas")
    plan, show = read_recipe(recipe), report or silent
    weights, tower = None if own is None else read_own(own), None if teacher is None else ImageTower(teacher.encoders)
    given = Input(BASE, plan.size, HALF, HALF) if weights is None else weights.input
    plan = plan.model_copy(update={"size": given.size} | ({} if atlas is None else {"atlas": atlas}))
    torch.set_num_threads(threads)
    arithmetic = Arithmetic(device=device)
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    with exact(device), stopping() as stop:
        sets = read_sets(data, plan.sets, work, show, stop)
        claim(work, plan, seed, sets, weights, teacher)
        if weights is None or tower is not None:
            state = train(sets, plan, work, seed, show, stop, given, weights, tower, arithmetic)
        else:
            state = weights.state
        save_state(out / "base.safetensors", state)
        digest = sha256_file(out / "base.safetensors")
        net = given.network(state).to(device)
        sets |= read_sets(data, [BANK_SET], work, show, stop)
        found = public_features(sets, plan, net, digest, work, show, stop)
        shown, drawn = found[plan.skin.name], found.pop(BANK_SET.name)
        others = [found[k.name] for k in plan.sets if k.role == "other"]
        space = public_space(shown, others, plan.base_classes)
        real = [found[k.name] for k in plan.sets if k.role == "other" and k.draw is None]
        shown_classes = plan.base_classes if plan.skin.draw is None else ()  # drawn classes of a bank are never trained
        write_statistics(out, space, bank(shown, real, drawn, shown_classes), plan.base_classes, digest)
        packed, names = pack_features(list(found.values()))
        write_atomic(out / "public.safetensors", packed)
        write_atomic(out / "public.json", json.dumps({"base_sha256": digest, "rows": names}).encode())
        figures: Any = "not measured"
        frozen = frozen_episodes()
        if plan.measure and not _measurable(data, plan, frozen):
            figures = "not measured: the images of the frozen episodes are not there"
        elif plan.measure:
            place = {name: row for row, name in enumerate(sets[plan.skin.name].name.tolist())}
            rows = np.array([place[name] for name in shown.name.tolist()])
            figures = measure(
                data,
                plan,
                net,
                read_teacher().to(device),
                shown,
                lambda chosen: sets[plan.skin.name].pixels[rows[chosen]],
                space,
                frozen,
                lambda done, total: show("measure", done, total, {}),
            )
        record = manifest(sets, plan, work, seed, threads, digest, net, given, weights, teacher, figures, arithmetic)
        write_atomic(out / "base.yaml", dump(record).encode())
