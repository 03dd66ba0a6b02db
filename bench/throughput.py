"""Images per second in distillation of the base network, on the processor and on an accelerator where there is one.

    python -m bench.throughput --devices cpu,cuda --threads 2 --out DIR

The step is that of the shipped recipe: its sets' frames, size and batch, Lite0 as teacher. The pictures are noise: what they show
takes no time.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgps.device import choose, described, exact
from sgps.errors import SgpsError
from sgps.files import write_atomic
from sgps.pretrain.distil import distil
from sgps.pretrain.images import Images
from sgps.pretrain.loop import Stage
from sgps.pretrain.networks import Arithmetic, read_teacher
from sgps.pretrain.pool import Pool
from sgps.pretrain.process import prepare_process
from sgps.pretrain.progress import Stop
from sgps.pretrain.recipe import ImageSet, Recipe, read_recipe

WARM = 5  # steps that are not counted: kernels are chosen, memory is asked for
EACH = 64  # noise pictures of a class


def noise(kind: ImageSet, labels: Sequence[str]) -> Images:
    """A set of that frame, one lesion a picture."""
    n = EACH * len(labels)
    width, height = kind.frame
    pixels = np.random.default_rng(0).integers(0, 256, (n, height, width, 3), np.uint8)
    name = np.array([f"{kind.name}-{i}" for i in range(n)])
    return Images(pixels, name, np.repeat(labels, EACH), name, np.full(n, "back"), "noise")


def rate(recipe: Recipe, arithmetic: Arithmetic, steps: int) -> dict[str, Any]:
    """Images each second of wall time and each second of all processors, over `steps` steps after the warm-up."""
    sets = {k.name: noise(k, recipe.base_classes if k.role == "skin" else ("one",)) for k in recipe.sets}
    moments: dict[int, tuple[float, float]] = {}

    def note(stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
        moments[done] = time.perf_counter(), time.process_time()

    with tempfile.TemporaryDirectory() as folder, exact(arithmetic.device):
        stage, pool = Stage("distil", WARM + steps, (), Path(folder)), Pool(sets, recipe, arithmetic.device)
        distil(stage, pool, recipe, read_teacher(), 0, arithmetic, note, Stop())
    wall, cpu = (b - a for a, b in zip(moments[WARM], moments[WARM + steps], strict=True))
    images = steps * recipe.distil.batch
    return {
        "device": described(arithmetic.device),
        "arithmetic": str(arithmetic),
        "images": images,
        "images a second": round(images / wall, 1),
        "images a processor-second": round(images / cpu, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__.splitlines()[0])
    p.add_argument(
        "--devices", default="auto", help="of cpu, cuda, with commas; auto: cpu, and cuda where it is present"
    )
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--threads", type=int, default=2, help="processor cores")
    p.add_argument("--batch", type=int, help="images a step; default: the recipe's")
    p.add_argument("--out", type=Path, required=True, help="folder for throughput.json")
    a = p.parse_args(argv)
    prepare_process(a.threads)  # as `sgps pretrain base` runs
    torch.set_num_threads(a.threads)
    recipe = read_recipe(None)
    recipe = recipe.model_copy(
        update={"distil": recipe.distil.model_copy(update={"batch": a.batch or recipe.distil.batch})}
    )
    names = list(dict.fromkeys(("cpu", choose().type))) if a.devices == "auto" else a.devices.split(",")
    try:
        found = [rate(recipe, Arithmetic(device=choose(name)), a.steps) for name in names]
    except SgpsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    result = {
        "size": recipe.size,
        "batch": recipe.distil.batch,
        "threads": a.threads,
        "load before": round(os.getloadavg()[0], 1),
        "torch": str(torch.__version__),
        "devices": found,
    }
    a.out.mkdir(parents=True, exist_ok=True)
    write_atomic(a.out / "throughput.json", json.dumps(result, indent=1).encode())
    for row in found:
        print(", ".join(f"{k} {v}" for k, v in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
