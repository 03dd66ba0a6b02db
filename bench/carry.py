"""What a carried row is worth for classes that neither the map nor the base networks saw.

    python -m bench.carry --from RELEASE --to RELEASE --map MAP --data DIR|ZIP --classes a,b,c --out DIR

Rows of 40 patients at most, without noise and with that of one site at epsilon 3; each class against all others of its set. The map is
taken as it is: nothing here chooses anything.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sgps.carry import directions, read_map
from sgps.errors import InputError, SgpsError
from sgps.files import write_atomic
from sgps.pretrain.carry import loss, patients
from sgps.pretrain.progress import console
from sgps.release import Release, vouched
from sgps_privacy.accountant import calibrate

EPSILON, DELTA = 3.0, 1e-5


def measure(
    releases: tuple[Release, Release], file: Path, data: list[Path], classes: list[str], most: int
) -> dict[str, Any]:
    """Raises InputError when the map belongs to other releases, or saw one of the classes, or a class is not there."""
    found, sha256 = read_map(file)
    about = found.about
    if (about.before, about.after) != tuple(r.manifest.encoder_sha256 for r in releases):
        raise InputError("is of other base networks", where=file, do="name the releases that it was made with")
    with console() as report:
        known, sets = patients(releases, data, set(), most, report)
    places = [r.memory().coordinates for r in releases]
    asked = [c for c in np.unique(known.label).tolist() if c.split("/", 1)[1] in classes]
    seen = set(asked) & set(about.figures.get("classes", {}))
    if seen or len({c.split("/", 1)[1] for c in asked}) != len(set(classes)):
        raise InputError(f"{', '.join(sorted(seen)) or 'a class'} is in the map or not in the data", where="--classes")
    of = dict.fromkeys(asked, found.matrix)
    exact = loss(known, of, found.error, places[0], places[1])
    noised = loss(known, of, found.error, places[0], places[1], sigma=calibrate(EPSILON, DELTA, 1))
    old, new = directions(places[0], known.old), directions(places[1], known.new)
    out: dict[str, Any] = {}
    for c in asked:
        carried, own = found.matrix @ old[known.label == c].mean(0), new[known.label == c].mean(0)
        cosine = float(carried @ own / np.linalg.norm(carried) / np.linalg.norm(own))
        out[c] = {"patients": int((known.label == c).sum()), "cosine": cosine, "exact": exact[c], "noised": noised[c]}
    return {"map": sha256, "epsilon": EPSILON, "data": sets, "classes": out}


def table(found: dict[str, Any]) -> str:
    lines = [
        "| class | patients | cosine | exemplar alone | carried row | own row | carried, epsilon 3 | own, epsilon 3 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, c in found["classes"].items():
        e, n = c["exact"], c["noised"]
        figures = [100 * v for v in (e["exemplar"], e["carried"], e["own"], n["carried"], n["own"])]
        lines.append(
            f"| {name} | {c['patients']} | {c['cosine']:.3f} | " + " | ".join(f"{v:.1f}" for v in figures) + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.carry", description=__doc__)
    parser.add_argument("--from", dest="before", type=Path, required=True)
    parser.add_argument("--to", dest="after", type=Path, required=True)
    parser.add_argument("--map", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, action="append", help="zip or folder; may be repeated")
    parser.add_argument("--classes", required=True, help="that neither the map nor the bases saw: a,b,c")
    parser.add_argument("--most", type=int, default=80, help="patients of a class")
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    try:
        found = measure((vouched(o.before), vouched(o.after)), o.map, o.data, o.classes.split(","), o.most)
        o.out.mkdir(parents=True, exist_ok=True)
        write_atomic(o.out / "carry.json", (json.dumps(found, indent=1) + "\n").encode())
        write_atomic(o.out / "carry.md", table(found).encode())
    except SgpsError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    print(table(found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
