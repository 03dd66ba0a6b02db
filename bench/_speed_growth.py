"""How seconds and memory grow: part `growth` of `bench.speed`, and `python -m bench._speed_growth CASE`, its process.

Synthesis by classes and by pictures of a class, prediction by pictures, each in a process of its own, so that its peak memory is its
own; rounds by sites, with the tests' simulated sites, which answer at once. A round by patients is in part `round`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.speed_rows import LEAST, Rows, peak_bytes, seconds
from bench.speed_world import PICTURE, ROOT, World, environment
from sgps.draw import PRESETS, draw_patient

CLASSES, SHOTS, OF_SHOTS = (
    (1, 2, 3, 7),
    (1, 5, 20),
    3,
)  # classes with one picture each; pictures of each of three classes
PICTURES = (1, 4, 16, 64)
SITES, ANSWER_AFTER = (2, 4, 8), 3.0


def child(case: dict[str, Any]) -> dict[str, Any]:
    import torch
    from PIL import Image

    from sgps.classifier import Classifier
    from sgps.shipped import shipped_release
    from sgps.synthesis import FALSE_ALARMS, RIVALS, Synthesizer

    torch.set_num_threads(1)
    synthesizer = Synthesizer(shipped_release())

    def drawn(place: int, first: int, count: int) -> list[Any]:
        profile = list(PRESETS.values())[place]
        return [Image.fromarray(draw_patient(profile, first + n, size=PICTURE)[0]).convert("RGB") for n in range(count)]

    groups = {d: drawn(place, 0, case["shots"]) for place, d in enumerate(list(PRESETS)[: case["classes"]])}

    def make() -> Classifier:
        return synthesizer.synthesize(groups, {}, {}, None, FALSE_ALARMS, RIVALS)

    found = make()  # the first warms up and does not count
    if case["what"] == "synthesis":
        values = [seconds(make) for _ in range(case["repeats"])]
    else:
        pictures = drawn(1, 1000, case["pictures"])
        values = [seconds(found.logits, pictures, 8) for _ in range(case["repeats"])]
    return {"values": values, "peak": peak_bytes()}


def run(work: Path, **case: Any) -> dict[str, Any]:
    file = work / "case.json"
    file.write_text(json.dumps(case))
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "bench._speed_growth", str(file)], env=environment(), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def by_sites(rows: Rows, work: Path, sites: int, repeats: int) -> None:
    world = World(work / f"sites-{sites}", repeats + 1, sites, ANSWER_AFTER)
    try:
        world.start()
        for place in range(sites):
            world.fake_site(f"site-{place}")
        world.wait(lambda: world.said("centre", "serving"))
    finally:
        world.close()
    for cycle in world.cycles()[0]:
        rows.note(
            "growth",
            f"round, {sites} simulated sites, without the wait",
            cycle.seconds - cycle.wait,
            peak=world.peaks["centre"],
        )


def measure(
    rows: Rows, work: Path, repeats: int = LEAST, classes: tuple[int, ...] = CLASSES, shots: tuple[int, ...] = SHOTS,
    pictures: tuple[int, ...] = PICTURES, sites: tuple[int, ...] = SITES,
) -> None:  # fmt: skip
    """Notes one row for each case."""
    work.mkdir(parents=True, exist_ok=True)
    cases = [(n, 1) for n in classes] + [(OF_SHOTS, k) for k in shots if k > 1 or OF_SHOTS not in classes]
    for n, k in cases:
        name = f"synthesis with calibration, warm, {n} class{'es' if n > 1 else ''}, {k} picture{'s' if k > 1 else ''} each"
        found = run(work, what="synthesis", classes=n, shots=k, repeats=repeats)
        for value in found["values"]:
            rows.note("growth", name, value, peak=found["peak"])
    for count in pictures:
        found = run(work, what="prediction", classes=1, shots=1, pictures=count, repeats=repeats)
        for value in found["values"]:
            rows.note(
                "growth",
                f"prediction of {count} picture{'s' if count > 1 else ''}, eight views",
                value,
                peak=found["peak"],
            )
    for count in sites:
        by_sites(rows, work, count, repeats)


def main() -> None:
    print(json.dumps(child(json.loads(Path(sys.argv[1]).read_text()))))


if __name__ == "__main__":
    main()
