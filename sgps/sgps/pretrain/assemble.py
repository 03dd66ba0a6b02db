"""Put a release together from what pre-training made: base, statistics, public features, and the generator where there is one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load, save

from sgps.bank import SAME_TEXT, Bank, BankClass, build, same_text
from sgps.catalogue import SHIPPED, Catalogue
from sgps.code import code_sha256
from sgps.draw import clinical_text, draw_profile
from sgps.errors import InputError
from sgps.files import read_limited, sha256_file
from sgps.generator import PARTS
from sgps.images import batch
from sgps.memory import Array, Coordinates, Memory
from sgps.open_encoders import OpenText, Spec
from sgps.pretrain.drawn import draw_images
from sgps.pretrain.recipe import Draw
from sgps.release import (
    BANK,
    CATALOGUE,
    GENERATOR,
    MANIFEST,
    MEMORY,
    Architecture,
    Manifest,
    Provenance,
    TextEncoder,
    encoder_sha256,
    memory_bytes,
    write,
)
from sgps.settings import parse
from sgps.target import factors, input_means, network
from sgps.text import TextEncoder as Texts

LOGIT = 10.0  # length of a logit vector: the head's scale is this over the mean norm of centred public skin features
OTHER = 16  # samples of a class outside dermoscopy, as far as there are
WIDTH, DEPTH = 64, 1  # of the generator that ships
_LIMIT = 1 << 30
_IDS = {  # set, class -> catalogue id, where the class is not named by its id
    ("cxr", "normal"): "cxr-normal",
    ("cxr", "bacteria"): "cxr-bacterial-pneumonia",
    ("cxr", "virus"): "cxr-viral-pneumonia",
    ("busi", "normal"): "us-normal",
    ("busi", "benign"): "us-benign",
    ("busi", "malignant"): "us-malignant",
    ("lung", "lung_n"): "lung-normal",
    ("lung", "lung_aca"): "lung-adenocarcinoma",
    ("lung", "lung_scc"): "lung-squamous-cell-carcinoma",
}


def assemble(
    base_dir: Path,
    generator_file: Path | None,
    out: Path,
    catalogue: Path = SHIPPED,
    name: str = "public",
    encoders: Spec | None = None,
) -> str:
    """Write an unsigned release with an empty class memory to `out`, whole or not at all. Returns the SHA-256 of its manifest.

    base_dir: what `sgps pretrain base` made. generator_file: what meta-training made, with `meta.yaml` beside it, which says which
    learned parts are on; none leaves the head at centred cosine prototypes and the body at the base. encoders: what reads the texts; none
    is the installed text encoder.
    Raises InputError when a file is missing or the parts belong to different bases, or when `out` exists.
    """
    made = _Made(base_dir)
    texts = Texts() if encoders is None else OpenText(encoders)
    core, learned, meta = _generator(made, generator_file, texts)
    classes = Catalogue.load(catalogue)
    memory = Memory.empty(made.coordinates, classes.ids)
    network_of = made.record["network"]
    architecture = Architecture(
        base=network_of["architecture"],
        size=network_of["size"],
        mean=tuple(network_of["mean"]),
        std=tuple(network_of["std"]),
        width=len(core.get("generator.norm.weight", np.zeros(WIDTH))),
        depth=DEPTH,
        learned=learned,
    )
    bank = made.bank(classes, texts, architecture.size)
    provenance = made.provenance() + _meta_provenance(meta, learned)
    figures = {"base": made.record["figures"], "generator": {k: meta[k] for k in sorted(meta) if k != "made_by"}}
    parts = {"base": made.record, "generator": meta} if meta else {"base": made.record}
    figures["made_by"] = {n: {k: part["made_by"][k] for k in ("command", "code_sha256")} for n, part in parts.items()}
    manifest = Manifest(
        name=name,
        federation="none",
        architecture=architecture,
        text_encoder=TextEncoder(name=texts.name, sha256=texts.sha256, kind=texts.kind),
        encoder_sha256=encoder_sha256(made.base, architecture, memory),
        classes=classes.ids,
        files={},
        licence=made.licence(),
        intended_use="research on classifiers made from one exemplar; not a medical device",
        provenance=provenance,
        code_sha256=code_sha256("sgps"),
        figures=figures,
    )
    tensors = {**{f"base.{n}": a for n, a in made.base.items()}, **core}
    write(
        out,
        {
            GENERATOR: bytes(save({n: np.asarray(tensors[n], order="C") for n in sorted(tensors)})),
            MEMORY: memory_bytes(memory),
            BANK: bank.to_bytes(),
            CATALOGUE: catalogue,
        },
        manifest,
        None,
    )
    return sha256_file(out / MANIFEST)


class _Made:
    """The folder of a base network, read and checked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = parse(read_limited(folder / "base.yaml", 4 << 20).decode(), folder / "base.yaml")
        self.base: dict[str, Array] = load(read_limited(folder / "base.safetensors", _LIMIT))
        self.statistics: dict[str, Array] = load(read_limited(folder / "statistics.safetensors", _LIMIT))
        self.names: dict[str, Any] = json.loads(read_limited(folder / "statistics.json", _LIMIT))
        self.eight: Array = load(read_limited(folder / "public.safetensors", _LIMIT))["eight"]
        public = json.loads(read_limited(folder / "public.json", _LIMIT))
        self.rows: list[dict[str, str]] = public["rows"]
        digest = sha256_file(folder / "base.safetensors")
        if not digest == self.names["base_sha256"] == public["base_sha256"]:
            raise InputError(
                "statistics and base belong to different runs", where=folder, do="run sgps pretrain base again"
            )
        if len(self.eight) != len(self.rows) or len(self.statistics["bank"]) != len(self.names["bank"]):
            raise InputError(
                "statistics and their names differ in number", where=folder, do="run sgps pretrain base again"
            )
        self.digest = digest
        self.coordinates = Coordinates(
            self.statistics["mean"],
            self.statistics["directions"],
            float(self.names["radius"]),
            float(self.names["within"]),
        )

    def scale(self) -> float:
        """Of the head, from the public features of the base classes."""
        skin = set(self.names["means"])
        rows = [i for i, r in enumerate(self.rows) if r["class"] in skin]
        return LOGIT / float(np.linalg.norm(self.eight[rows].astype(np.float32) - self.coordinates.mean, axis=1).mean())

    def drawn_pictures(self, lesions: Sequence[str], size: int) -> list[Image.Image]:
        """Drawn patients `profile-patient` of the bank, drawn again."""
        pairs = [tuple(int(n) for n in lesion.split("-")) for lesion in lesions]
        first, last, patients = min(s for s, _ in pairs), max(s for s, _ in pairs), max(p for _, p in pairs) + 1
        _, picture = draw_images(Draw(first=first, profiles=last - first + 1, patients=patients), 160)
        images = (Image.fromarray(picture((s - first) * patients + p)) for s, p in pairs)
        return [image.resize((size, size), Image.Resampling.BICUBIC) for image in images]

    def bank(self, catalogue: Catalogue, texts: Texts | OpenText, size: int) -> Bank:
        """The reference bank: the samples of the statistics, more of the smaller classes, and means over what is left."""
        installed = isinstance(texts, Texts)
        same = SAME_TEXT if installed else same_text(texts.embed([e.text for e in catalogue.entries]))
        groups: dict[tuple[str, str], list[tuple[str, Array]]] = {}
        for row, feature in zip(self.names["bank"], self.statistics["bank"], strict=True):
            groups.setdefault((row["set"], row["class"]), []).append((row["lesion"], feature))
        public: dict[tuple[str, str], dict[str, list[Array]]] = {}
        for row, feature in zip(self.rows, self.eight, strict=True):
            lesions = public.setdefault((row["set"], row["class"]), {})
            lesions.setdefault(row["lesion"], []).append(feature.astype(np.float32))
        classes: list[BankClass] = []
        features: list[Array] = []
        label: list[int] = []
        means: dict[int, Array] = {}
        for place, ((group, kind), samples) in enumerate(groups.items()):
            known = {lesion for lesion, _ in samples}
            left = {n: np.mean(f, 0) for n, f in public.get((group, kind), {}).items() if n not in known}
            wanted = OTHER - len(samples)
            for lesion in sorted(left)[: max(wanted, 0)]:
                samples.append((lesion, left.pop(lesion)))
            if left:
                means[place] = np.mean(list(left.values()), 0)
            classes.append(self._class(group, kind, catalogue))
            features += [f for _, f in samples]
            label += [place] * len(samples)
        embedding = texts.embed([c.text for c in classes])
        return build(classes, embedding, np.stack(features).astype(np.float32), np.array(label), means, same=same)

    def _class(self, group: str, kind: str, catalogue: Catalogue) -> BankClass:
        if kind.startswith("drawn-"):
            return BankClass(kind, kind, "drawn", clinical_text(draw_profile(int(kind.removeprefix("drawn-")))))
        entry = catalogue.find(_IDS.get((group, kind), kind))
        if entry is None:
            raise InputError(
                f"class {kind} of {group} is not in the catalogue", where=self.folder, do="add it to the catalogue"
            )
        return BankClass(entry.id, entry.name, entry.domain, entry.text)

    def provenance(self) -> tuple[Provenance, ...]:
        """Every image set behind the base, its statistics and the bank; and the teacher, or the user's weights and encoder."""
        weights, encoders = self.record.get("weights"), self.record.get("encoders")
        trained = "coordinates" if weights and not encoders else "base network, coordinates"
        out = [
            Provenance(
                name=s["name"],
                licence=s["licence"],
                source=s["source"],
                images=s["images"],
                classes=tuple(s.get("trained_on") or s.get("classes") or ("drawn",)),
                left_out=tuple(s["left_out"]),
                used_for=trained + ("" if "draw" in s else ", reference bank (features, no pictures)"),
                sha256=s["sha256"],
            )
            for s in self.record["images"]
        ]
        out.append(
            Provenance(
                name="drawn bank",
                licence="Apache-2.0",
                source="lesions drawn by sgps.draw",
                images=sum(r["class"].startswith("drawn-") for r in self.names["bank"]),
                classes=("drawn",),
                used_for="reference bank (features, no pictures)",
            )
        )
        if encoders:
            out.append(
                Provenance(
                    name=encoders["name"],
                    licence=encoders["licence"],
                    source=encoders["source"],
                    images=0,
                    classes=(),
                    used_for="teacher of the base network",
                    sha256=encoders["sha256"],
                )
            )
        if weights:
            return (
                *out,
                Provenance(
                    name="weights of the base network",
                    licence=weights["licence"],
                    source=weights["source"],
                    images=0,
                    classes=(),
                    used_for="start of the base network" if encoders else "base network, as its owner gave it",
                    sha256=weights["sha256"],
                ),
            )
        teacher = self.record["teacher"]
        out.append(
            Provenance(
                name=teacher["package"],
                licence=teacher["licence"],
                source="EfficientNet-Lite0 weights, trained on ImageNet",
                images=0,
                classes=("ImageNet",),
                used_for="start of the base network" if encoders else "teacher of the base network",
                sha256=teacher["sha256"],
            )
        )
        return tuple(out)

    def licence(self) -> str:
        """Of the release: the strictest of the public sets, and those of a user's weights and encoder beside it."""
        asked = sorted({s["licence"] for s in self.record["images"]})
        public = next((p for mark in ("NC", "CC BY") for p in asked if mark in p), "Apache-2.0")
        parts = (("base network", "weights"), ("its teacher", "encoders"))
        own = [f"{what}: {self.record[key]['licence']}" for what, key in parts if key in self.record]
        return "; ".join([public, *own])


def _meta_provenance(meta: dict[str, Any], learned: Sequence[str]) -> tuple[Provenance, ...]:
    """The drawn classes that taught the generator's parts, where any is on. The public sets behind it are those of the base."""
    if not learned:
        return ()
    recipe = meta["made_by"]["recipe"]
    taught = {what: recipe[part] for what, part in (("trained", "drawn"), ("judged", "judged"))}
    return (
        Provenance(
            name="drawn classes of meta-training",
            licence="Apache-2.0",
            source="lesions drawn by sgps.draw",
            images=sum(int(d["profiles"]) * int(d["patients"]) for d in taught.values()),
            classes=("drawn",),
            used_for=f"generator, learned parts: {', '.join(learned)}",
        ),
    )


def _generator(
    made: _Made, file: Path | None, texts: Texts | OpenText
) -> tuple[dict[str, Array], tuple[str, ...], dict[str, Any]]:
    """Tensors `fixed.*`, `head.scale` and `generator.*`; the parts that are on; what meta-training recorded.

    Without a generator the fixed factors take their mean inputs from drawn pictures of the bank.
    """
    if file is not None:
        path = file.with_name("meta.yaml")
        meta: dict[str, Any] = parse(read_limited(path, 4 << 20).decode(), path)
        if meta["made_by"]["base_sha256"] != made.digest:
            raise InputError("was trained on another base", where=file, do="train the generator on this base")
        read = meta["made_by"].get("text_encoder")  # records older than open encoders name none: the installed one
        if read != texts.sha256 if read else texts.kind != "package":
            raise InputError("was trained with another text encoder", where=file, do="name that one with --encoders")
        if unknown := sorted(set(meta.get("learned", ())) - set(PARTS)):
            raise InputError(f"unknown learned part {unknown[0]}", where=path)
        return dict(load(read_limited(file, _LIMIT))), tuple(p for p in PARTS if p in meta.get("learned", ())), meta
    n = made.record["network"]
    net = network(n["architecture"])
    net.load_state_dict(
        {k: torch.from_numpy(v).float() if v.dtype.kind == "f" else torch.from_numpy(v) for k, v in made.base.items()}
    )
    size, mean, std = int(n["size"]), [float(x) for x in n["mean"]], [float(x) for x in n["std"]]
    drawn = [r["lesion"] for r in made.names["bank"] if r["class"].startswith("drawn-")]
    pictures = batch(made.drawn_pictures(drawn[::2], size), size, mean, std)
    fixed = factors(net, input_means(net, [pictures[i : i + 32] for i in range(0, len(pictures), 32)]))
    core = {f"fixed.{name}": tensor.numpy() for name, tensor in fixed.items()}
    return {**core, "head.scale": np.array([made.scale()], np.float32)}, (), {}
