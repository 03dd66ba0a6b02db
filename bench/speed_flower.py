"""Seconds per round of this federation beside a minimal stock Flower app with the same payload: part `flower` of `bench.speed`.

Ours: coordinator and two real sites, a cohort of two drawn patients for each round. A round lasts from the release before it to its own
release, fetched and verified by the sites; the time in which both sums lay ready and `answer_at` was not yet is taken off. The peer:
Flower's own SuperLink and two SuperNodes over TLS as they come, FedAvg of one array of the same bytes, which the ClientApp sends back.
"""

import os
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.speed_rows import LEAST, Rows, peak_bytes
from bench.speed_world import World, draw, environment, free_port, wide_release
from bench.stock import Processes
from sgps.errors import StateError
from sgps.release import Release
from sgps.shipped import shipped_release

ANSWER_AFTER, ANSWER_AFTER_WIDE = 4.0, 15.0  # seconds; enough for two sites on two idle cores
WIDE = 10_000, 256  # classes, as many as a plan may name, and coordinates: 10.3 MB of float32
MOST_BUSY = 3.0  # times that
PATIENTS = 2  # of a cohort
SLOTS = 8  # a site holds two float64 copies of a gradient for each slot: 330 MB at the wide payload
LONGEST = 240.0
NODES = ("one", "two")
ROUND = "{payload}: a round, without the wait for answer_at"
APP = Path(__file__).resolve().parent / "stock_app"


def ours(work: Path, rounds: int, answer_after: float, release: Release | None) -> tuple[World, Path]:
    """A federation that has run `rounds` and one more, which warms up. On a busy machine sites have longer until `answer_at`."""
    busy = min(MOST_BUSY, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))
    world = World(work, rounds + 1, 2, answer_after * busy, release)
    rows = draw(work, PATIENTS * (rounds + 1))
    groups = [rows[PATIENTS * n : PATIENTS * (n + 1)] for n in range(rounds + 1)]
    files = [world.site(name, groups, work / "pictures", slots=SLOTS) for name in ("north", "south")]
    try:
        world.start()
        for file in files:
            world.start_site(file)
        world.wait(lambda: world.said("centre", "serving"))
    finally:
        world.close()
    return world, files[0]


class Stock(Processes):
    """With the coordinator's server certificate, and one run of the app."""

    def __init__(self, work: Path, keys: Path, ca: Path) -> None:
        super().__init__(work, environment())
        self.port, self.keys, self.ca = free_port(), keys, ca
        work.mkdir()

    def run(self, rounds: int, rows: int, width: int) -> list[float]:
        """Seconds of each round after the first. Raises StateError when the run does not end."""
        address, times = f"localhost:{self.port}", self.work / "times"
        tls = (
            "--ssl-ca-certfile",
            self.ca,
            "--ssl-certfile",
            self.keys / "server.crt",
            "--ssl-keyfile",
            self.keys / "server.key",
        )
        self.start("flower-superlink", "link", "--host", "127.0.0.1", "--port", self.port, *tls)
        for place, name in enumerate(NODES):
            self.start(
                "flower-supernode", name, "--root-certificates", self.ca, "--superlink", address,
                "--port", free_port(), "--node-config", f"partition-id={place}",
            )  # fmt: skip
        self.connection(address, f'root-certificates = "{self.ca}"')
        app = shutil.copytree(APP, self.work / "app")
        config = f'rounds={rounds + 1} rows={rows} width={width} times="{times}"'
        end, asked = time.monotonic() + LONGEST, ""
        while "started run" not in asked:
            if time.monotonic() > end:
                raise StateError(f"the run did not start: {asked[-800:]}", where=self.work, do="look at the logs there")
            asked = self.flwr("run", app, "stock", "--run-config", config)
        while len(found := times.read_text().split() if times.exists() else []) < rounds + 2:
            if time.monotonic() > end:
                raise StateError(f"{len(found)} of {rounds + 2} times", where=self.work, do="look at the logs there")
            time.sleep(0.2)
        return [
            after - before for before, after in pairwise(map(float, found[1:]))
        ]  # the first is the start, the second warms up

    def starts(self) -> list[float]:
        """Seconds until a ClientApp's process took its message, the slower node of each round after the first."""
        nodes = [map(float, (self.work / name / "started").read_text().split()) for name in NODES]
        return [max(pair) for pair in zip(*nodes, strict=False)][1:]

    def peaks(self) -> dict[str, int]:
        return {home: peak_bytes(str(process.pid)) for home, process in self.running.items()}


def compare(
    rows: Rows, work: Path, payload: str, rounds: int, answer_after: float, release: Release | None
) -> dict[str, Any]:
    """Both in one run, ours first. Notes each round of ours beside one of the peer's."""
    world, _ = ours(work / "ours", rounds, answer_after, release)
    cycles, late = world.cycles()
    memory = (release or shipped_release()).memory()
    count, width = memory.total.shape
    stock = Stock(work / "stock", world.folder.keys, world.folder.root / "ca" / "ca.crt")
    try:
        peer = stock.run(rounds, count, width + 1)
        starts, peaks = stock.starts(), stock.peaks()
    finally:
        stock.close()
    floor, peak = "stock Flower", max((v for n, v in world.peaks.items() if n != "centre"), default=0)
    for cycle, beside in zip(cycles, peer, strict=False):
        rows.note(
            "flower",
            ROUND.format(payload=payload),
            cycle.seconds - cycle.wait,
            beside,
            floor=floor,
            peak=world.peaks["centre"],
        )
        rows.note("flower", f"{payload}: of that, at the slower site from plan to outbox", cycle.site, peak=peak)
        rows.note("flower", f"{payload}: of that, everything else", cycle.seconds - cycle.wait - cycle.site)
    for beside in peer:
        rows.note("flower", f"{payload}: a round of stock Flower", beside, peak=peaks["link"])
    for start in starts:
        rows.note("flower", f"{payload}: of that, start of the ClientApp's process at the slower node", start)
    return {"payload": payload, "bytes": 4 * count * (width + 1), "late": late, "rounds": len(cycles)}


def measure(rows: Rows, work: Path, rounds: int = LEAST, wide: tuple[int, int] | None = WIDE) -> list[dict[str, Any]]:
    """Rounds at the default payload and, where `wide` says so, at one of that many classes and coordinates."""
    found = [compare(rows, work / "default", "default payload", rounds, ANSWER_AFTER, None)]
    if wide:
        release = wide_release(work / "wide-release", *wide)
        size = f"{4 * wide[0] * (wide[1] + 1) / 1e6:.1f} MB"
        found.append(compare(rows, work / "wide", size, rounds, ANSWER_AFTER_WIDE, release))
    return found
