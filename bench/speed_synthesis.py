"""Parts `synthesis` and `prediction` of `bench.speed`, with the shipped release, on drawn lesions."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image

from bench._cold import DISEASE
from bench.speed_rows import Rows, seconds
from bench.speed_world import PICTURE, ROOT, environment
from sgps.draw import draw_patient, draw_profile
from sgps.images import read
from sgps.shipped import shipped_release
from sgps.synthesis import FALSE_ALARMS, RIVALS, Synthesizer

TRIO, SHOTS = ("akiec", "df", "vasc"), 5
PREDICTED = 16  # pictures of one call
# Repeats: the least that give a 95 % interval of the median, without and with one value left out at each end.
COLD, WARM = 6, 9


class Bench:
    """repeats: of a cold and of a warm measurement."""

    def __init__(self, rows: Rows, threads: int, folder: Path, repeats: tuple[int, int] = (COLD, WARM)) -> None:
        self.rows, self.threads, self.folder = rows, threads, folder
        self.cold_repeats, self.warm_repeats = repeats
        self.synthesizer = Synthesizer(shipped_release())
        self.encoder = self.synthesizer.encoder

    def pictures(self, first: int, count: int, profile: int = 7) -> list[Image.Image]:
        """Drawn lesions, the same for everybody."""
        drawn = draw_profile(profile)
        return [
            Image.fromarray(draw_patient(drawn, seed, size=PICTURE)[0]).convert("RGB")
            for seed in range(first, first + count)
        ]

    def note(self, part: str, name: str, floor: str, unit: str, value: float, beside: float) -> None:
        self.rows.note(part, name, value, beside, floor=floor, unit=unit)

    def save(self, state: Mapping[str, torch.Tensor]) -> None:
        safetensors.torch.save_file(dict(state), self.folder / "weights.safetensors")

    def forward(self, pictures: Sequence[Image.Image], views: int) -> None:
        self.encoder.features(pictures, views)
        self.save(self.encoder.target.base)

    def floor(self, pictures: Sequence[Image.Image]) -> float:
        return seconds(self.forward, pictures, 1)

    def weights(self, exemplars: Mapping[str, Sequence[Image.Image]]) -> None:
        c = self.synthesizer.compose(exemplars, {})
        self.save(self.encoder.target.export(c.body, c.weight, c.bias))

    def calibrated(self, exemplars: Mapping[str, Sequence[Image.Image]]) -> None:
        self.save(self.synthesizer.synthesize(exemplars, {}, {}, None, FALSE_ALARMS, RIVALS).state)

    def folder_of(self, exemplars: Mapping[str, Sequence[Image.Image]], place: int) -> None:
        made = self.synthesizer.synthesize(exemplars, {}, {}, None, FALSE_ALARMS, RIVALS)
        made.save(self.folder / f"model{place}")

    def child(self, kind: str, picture: Path) -> tuple[float, int]:
        """Seconds from the start of a process until its weights are written; its peak memory in the end."""
        call = [sys.executable, "-m", "bench._cold", kind, str(picture), str(self.folder / f"{kind}.safetensors")]
        start = time.perf_counter()
        with subprocess.Popen(  # noqa: S603
            call, cwd=ROOT, env=environment(self.threads), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "written\n"
            found = time.perf_counter() - start
            peak = int(process.stdout.readline())
        assert process.returncode == 0
        return found, peak

    def cold(self) -> None:
        for repeat in range(self.cold_repeats):
            path = self.folder / f"exemplar{repeat}.png"
            self.pictures(1000 + repeat, 1)[0].save(path)
            beside = self.floor([read(path)])
            found, peak = self.child("synthesis", path)
            base, base_peak = self.child("reference", path)
            both = "forward + writing"
            self.note("synthesis", "cold start: process to weights", both, "s", found, beside)
            self.note("synthesis", "cold start of the floor: process, base, forward, writing", both, "s", base, beside)
            self.note(
                "synthesis", "peak memory: process, weights, calibration", f"{both}, in a process", "B", peak, base_peak
            )

    def warm(self) -> None:
        both = "forward + writing"
        groups = {d: self.pictures(0, SHOTS, profile) for profile, d in enumerate(TRIO)}
        fifteen = [p for group in groups.values() for p in group]
        for repeat in range(-1, self.warm_repeats):  # the first warms up and does not count
            one = self.pictures(repeat + 1, 1)
            floor, floor_of_all = self.floor(one), self.floor(fifteen)
            disease = {DISEASE: one}
            found = {
                "floor: forward of one picture, writing": (floor, floor),
                "eight-view forward of one picture, writing": (seconds(self.forward, one, 8), floor),
                "1 exemplar, warm: weights": (seconds(self.weights, disease), floor),
                "1 exemplar, warm: weights and calibration": (seconds(self.calibrated, disease), floor),
                "1 exemplar, warm: model folder, durable": (seconds(self.folder_of, disease, repeat), floor),
                "eight-view forward of 15 pictures, writing": (seconds(self.forward, fifteen, 8), floor_of_all),
                "3-way 5-shot, warm: weights": (seconds(self.weights, groups), floor_of_all),
                "3-way 5-shot, warm: weights and calibration": (seconds(self.calibrated, groups), floor_of_all),
            }
            for name, (value, beside) in found.items() if repeat >= 0 else ():
                self.note("synthesis", name, both, "s", value, beside)

    def predictions(self) -> None:
        made = self.synthesizer.synthesize({DISEASE: self.pictures(0, 1)}, {}, {}, None, FALSE_ALARMS, RIVALS)
        pictures = self.pictures(2000, PREDICTED)
        for repeat in range(-1, self.warm_repeats):
            beside = seconds(self.encoder.features, pictures, 1) / PREDICTED
            for count in (8, 1):
                value = seconds(made.logits, pictures, count) / PREDICTED
                if repeat >= 0:
                    name = f"prediction of a picture, {count} view{'s' if count > 1 else ''}"
                    self.note("prediction", name, "forward", "s", value, beside)
