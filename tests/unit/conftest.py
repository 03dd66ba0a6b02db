"""A small release on drawn lesions: a real one in every part, but for a base network that was never trained."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sgps.release import Release


SIZE, ARCHITECTURE = 32, "tf_efficientnetv2_b0"
PROFILES, PATIENTS = 8, 16  # of the bank; profile seeds 500 and on


@pytest.fixture(scope="session")
def drawn() -> Callable[..., list[Any]]:
    """drawn(profile seed, first patient, count) -> pictures."""
    from PIL import Image

    from sgps.draw import draw_patient, draw_profile

    def make(profile: int, first: int = 0, count: int = 1) -> list[Image.Image]:
        p = draw_profile(profile)
        return [Image.fromarray(draw_patient(p, seed, views=1, size=64)[0]) for seed in range(first, first + count)]

    return make


@pytest.fixture(scope="session")
def small_release(
    tmp_path_factory: pytest.TempPathFactory, drawn: Callable[..., list[Any]]
) -> Callable[..., "Release"]:
    """small_release(learned parts, patients in the row of `df`) -> release; learned heads get random weights of some size."""
    import numpy as np
    import torch
    from safetensors.numpy import save

    from sgps import release as r
    from sgps.attributes import NAMES
    from sgps.bank import BankClass, build
    from sgps.catalogue import SHIPPED, Catalogue
    from sgps.draw import clinical_text, draw_profile
    from sgps.files import sha256_file
    from sgps.generator import Generator
    from sgps.images import batch, views
    from sgps.memory import Contribution, Coordinates, Memory, pool, record
    from sgps.target import factors, input_means, network
    from sgps.text import TextEncoder

    torch.manual_seed(0)
    seeds = range(500, 500 + PROFILES)
    pictures = [image for seed in seeds for image in drawn(seed, 0, PATIENTS)]
    x = batch(pictures, SIZE, (0.5,) * 3, (0.5,) * 3)
    net = network(ARCHITECTURE)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a cumulative mean over the one pass that gives the statistics
    with torch.no_grad():
        net.train()(x)
        net.eval()
        features = net(views(x).flatten(0, 1)).view(8, len(x), -1).mean(0).numpy()
    base = {
        n: (t.half() if t.is_floating_point() and "running" not in n else t).numpy()
        for n, t in net.state_dict().items()
    }
    net.load_state_dict({n: torch.from_numpy(np.array(a)).float() for n, a in base.items()})
    fixed = {f"fixed.{n}": t.numpy() for n, t in factors(net, input_means(net, [x])).items()}
    mean = features.mean(0)
    directions = np.linalg.svd(features - mean, full_matrices=False)[2][:64]
    radius = float(np.median(np.linalg.norm((features - mean) @ directions.T, axis=1)))
    label = np.repeat(np.arange(PROFILES), PATIENTS)
    within = float(np.mean([((features[label == i] - mean) @ directions.T).var(0).sum() for i in range(PROFILES)]))
    coordinates = Coordinates(mean.astype(np.float32), directions.astype(np.float32), radius, within)
    classes = [BankClass(f"drawn-{s:04d}", f"drawn-{s:04d}", "drawn", clinical_text(draw_profile(s))) for s in seeds]
    texts = TextEncoder()
    bank = build(classes, texts.embed([c.text for c in classes]), features, label)
    ids = Catalogue.load(SHIPPED).ids
    scale = 10 / np.linalg.norm(features - mean, axis=1).mean()
    made: dict[tuple[Sequence[str], int], Release] = {}

    def make(learned: Sequence[str] = (), patients: int = 0) -> "r.Release":
        key = (tuple(learned), patients)
        if key in made:
            return made[key]
        memory = Memory.empty(coordinates, ids)
        if patients:
            rows, counts = record(coordinates, {ids.index("df"): features[0]}, len(ids))
            memory = pool(coordinates, ids, [Contribution(patients * rows, patients * counts, 0.0)])
        torch.manual_seed(1)
        generator = Generator(layers=len(fixed) // 2 + 16, features=1280, attributes=len(NAMES))
        for head in (
            generator.core,
            generator.chan,
            generator.tap,
            generator.token_up,
            generator.text_up,
            generator.memory,
        ):
            torch.nn.init.normal_(head.weight, std=0.05)
        tensors = (
            {f"generator.{n}": t.detach().half().numpy() for n, t in generator.state_dict().items()} if learned else {}
        )
        a = r.Architecture(
            base=ARCHITECTURE, size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, width=64, depth=1, learned=tuple(learned)
        )
        manifest = r.Manifest(
            name="small",
            federation="none",
            architecture=a,
            text_encoder=r.TextEncoder(name=texts.name, sha256=texts.sha256),
            encoder_sha256=r.encoder_sha256(base, a, memory),
            classes=ids,
            files={},
            licence="Apache-2.0",
            intended_use="tests",
            provenance=(
                r.Provenance(
                    name="drawn",
                    licence="Apache-2.0",
                    source="sgps.draw",
                    images=128,
                    classes=("drawn",),
                    used_for="all",
                ),
            ),
            code_sha256="0" * 64,
        )
        contents = {f"base.{n}": t for n, t in base.items()} | fixed | tensors
        contents["head.scale"] = np.array([scale], np.float32)
        folder = tmp_path_factory.mktemp("releases") / "small"
        files: dict[str, bytes | Path] = {
            r.GENERATOR: bytes(save({n: np.asarray(contents[n], order="C") for n in sorted(contents)})),
            r.MEMORY: r.memory_bytes(memory),
            r.BANK: bank.to_bytes(),
            r.CATALOGUE: SHIPPED,
        }
        r.write(folder, files, manifest, None)
        made[key] = r.Release.open(folder, sha256=sha256_file(folder / r.MANIFEST))
        return made[key]

    return make
