"""One DP round at a site, by patients: part `round` of `bench.speed`, and `python -m bench._speed_round CASE`, its process.

The product's own path from the signed plan to the outbox: rules, ledger, reading and encoding of drawn patients (a picture each),
clipping, noise, CHARGE and COMMIT. Patients are read and encoded once, timed one by one; the rest is repeated in fresh site folders that
take over the features, because patients pay once.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.speed_rows import LEAST, Rows, peak_bytes, seconds
from bench.speed_world import ROOT, World, draw, environment
from sgps.memory import COUNTS, ROWS
from sgps.plan import Plan, arrays_sha256
from sgps.release import Release
from sgps.signing import load_private

SIZES, EPISODES = (10, 50, 200), 10  # patients
HEAD = (
    "generator.gate.weight", "generator.gate.bias", "generator.token_down.weight", "generator.token_down.bias",
    "generator.token_up.core",
)  # fmt: skip
DENOMINATOR = 4096  # public; large enough for the rule on signal, and without influence on time
STEPS = 10
CASE = "case.json"


class Watch:
    """Seconds by name, of functions that are called within the product's path."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def on(self, owner: Any, name: str, label: str) -> Iterator[None]:
        inner = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*arguments, **named)
            finally:
                self.spent[label] = self.spent.get(label, 0.0) + time.perf_counter() - start

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, inner)


def _terms(kind: str, release: Release) -> tuple[dict[str, Any], dict[str, Any]]:
    """Terms of a plan, and the arrays that it starts from."""
    import numpy as np

    from sgps import subset
    from sgps.kinds import KINDS
    from sgps_privacy.terms import Terms

    if kind == "rows":
        terms = Terms("rows", 1.391, 1.0, 1, (1.0,), ((ROWS, COUNTS),), 1)
        return terms.to_mapping(), {
            n: np.zeros(s, np.float32) for n, s in KINDS["rows"].shapes(release, terms.names).items()
        }
    terms = Terms("episodes", 8.0, 1.0, STEPS, (1.0,), (HEAD,), DENOMINATOR)
    return terms.to_mapping(), subset.start(release, HEAD)


def plan_of(world: World, kind: str, name: str, release: Release) -> tuple[str, str, dict[str, Any]]:
    """Text and signature of a plan for this site, and its start."""
    from sgps.code import contributor_code

    terms, start = _terms(kind, release)
    now = time.time()
    plan = Plan(
        kind=kind, federation=world.mark, round=1, attempt=1, release=release.sha256, encoder=release.manifest.encoder_sha256,
        classes=release.manifest.classes, start=arrays_sha256(start), terms=terms, code=(contributor_code(),), sites=(name,), issued=now - 1,
        answer_at=now + 3600, deadline=now + 7200,
    )  # fmt: skip
    signed = plan.sign(load_private(world.folder.keys / "plan.key"))
    return signed.text, signed.signature, start


def child(case: dict[str, Any]) -> dict[str, Any]:
    """What one process measures: seconds of each patient, and of each repeat by part."""
    import torch
    from PIL.Image import Image

    from sgps.encoders import ImageEncoder
    from sgps_client import records, round
    from sgps_client.config import Site
    from sgps_privacy import engine
    from sgps_privacy.ledger import Ledger

    torch.set_num_threads(1)
    world = World(Path(case["work"]), 1, 1, 60.0, port=8443)  # nobody calls it
    rows = draw(world.work, case["patients"])
    more = {} if case["kind"] == "rows" else {
        "limits": {"kinds": ["episodes"], "episodes": {"denominator": DENOMINATOR, "most_steps": STEPS, "most_numbers": 5000}}
    }  # fmt: skip
    files = [world.site(f"site-{n}", [rows], world.work / "pictures", **more) for n in range(case["repeats"])]
    parts: list[dict[str, float]] = []
    kept, single, floors = None, list[float](), list[float]()
    loading = seconds(lambda: records._prepared._encoder(release_of(files[0], world)))
    patient = records._patient

    def timed(
        images: list[tuple[str, Image]], encoder: ImageEncoder, release: Release, pictures: bool
    ) -> records.Patient:
        start = time.perf_counter()
        found = patient(images, encoder, release, pictures)
        single.append(time.perf_counter() - start)
        floors.append(seconds(encoder.features, [image for _, image in images]))
        return found

    for place, file in enumerate(files):
        release, watch, site = release_of(file, world), Watch(), Site.load(file)
        text, signature, start = plan_of(world, case["kind"], site.name, release)
        reader = records.cohort_of(site, "cohort-0", release.manifest.classes)
        if kept is not None and case["kind"] == "rows":
            records.keep(site, release, "cohort-0", reader, kept)
        records._patient = timed if place == 0 else patient
        with (
            watch.on(round, "prepared", "encode"),
            watch.on(engine.PrivateRound, "run", "sum"),
            watch.on(Ledger, "answer", "answer"),
        ):
            whole = seconds(lambda: check(round.answer(site, text, signature, start, wait=False)))  # noqa: B023
        kept = kept or [*records.prepared(site, release, "cohort-0", reader)]
        spent = watch.spent
        parts.append(
            {
                "whole": whole - (sum(floors) if place == 0 else 0.0),
                "encode": spent["encode"] - (sum(floors) if place == 0 else 0.0),
                "sum": spent["sum"],
                "ledger": spent["answer"] - spent["sum"],
                "rest": whole - spent["encode"] - spent["answer"],
            }
        )
    return {"loading": loading, "single": single, "floors": floors, "parts": parts, "peak": peak_bytes()}


def check(reply: Any) -> None:
    if reply.status != "accepted":
        raise SystemExit(f"the round was refused: {reply.status}")


def release_of(file: Path, world: World) -> Release:
    """The federation's first release in the site's own folder."""
    import shutil

    from sgps_client.config import Site
    from sgps_client.store import Store

    site = Site.load(file)
    if not (site.releases / "0000").exists():
        site.releases.mkdir(exist_ok=True)
        shutil.copytree(world.folder.releases / "0000", site.releases / "0000")
    found = Store(site).newest()
    if found is None:
        raise SystemExit("no release")
    return found


def run(work: Path, kind: str, patients: int, repeats: int) -> dict[str, Any]:
    """A process of its own, so that its peak memory is its own."""
    work.mkdir(parents=True)
    case = {"work": str(work / "world"), "kind": kind, "patients": patients, "repeats": repeats}
    (work / CASE).write_text(json.dumps(case))
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "bench._speed_round", str(work / CASE)], env=environment(), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(rows: Rows, work: Path, sizes: tuple[int, ...] = SIZES, repeats: int = LEAST + 1) -> None:
    """`rows` rounds of so many patients, and one of `episodes`."""
    for kind, patients in (*(("rows", n) for n in sizes), ("episodes", min(EPISODES, *sizes))):
        found = run(work / f"{kind}-{patients}", kind, patients, repeats)
        head = f"{kind}, {patients} patients"
        floor = "eight-view forward"
        for value, beside in zip(found["single"], found["floors"], strict=True):
            rows.note("round", f"{head}: encode, a patient", value, beside, floor=floor, peak=found["peak"])
        first, *later = found["parts"]  # the first warms up what the others use again
        rows.note("round", f"{head}: whole round, patients new", first["whole"], peak=found["peak"])
        rows.note("round", f"{head}: whole round, a patient", first["whole"] / patients)
        rows.note("round", f"{head}: read and encode", first["encode"])
        for part in later or found["parts"]:
            rows.note("round", f"{head}: noised sum", part["sum"])
            rows.note("round", f"{head}: ledger and outbox, durable", part["ledger"])
            rows.note("round", f"{head}: rules, statement and records", part["rest"])


def main() -> None:
    print(json.dumps(child(json.loads(Path(sys.argv[1]).read_text()))))


if __name__ == "__main__":
    main()
