"""`python -m bench._cold synthesis|reference PICTURE WEIGHTS`: one fresh process of `bench.speed`.

Prints `written` when WEIGHTS holds the state dict, then its peak memory in bytes; the synthesis calibrates in between.
"""

import sys
from pathlib import Path

import safetensors.torch

from bench.speed_rows import peak_bytes
from sgps.encoders import ImageEncoder
from sgps.images import read
from sgps.shipped import shipped_release
from sgps.synthesis import RIVALS, Synthesizer

DISEASE = "df"


def main(kind: str, picture: Path, weights: Path) -> None:
    release, image = shipped_release(), read(picture)
    if kind == "synthesis":
        s = Synthesizer(release)
        c = s.compose({DISEASE: [image]}, {})
        safetensors.torch.save_file(s.encoder.target.export(c.body, c.weight, c.bias), weights)
        print("written", flush=True)
        s.synthesize({DISEASE: [image]}, {}, {}, None, 0.1, RIVALS)
    else:
        encoder = ImageEncoder(release)
        encoder.features([image], views=1)
        safetensors.torch.save_file(encoder.target.base, weights)
        print("written", flush=True)
    print(peak_bytes(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
