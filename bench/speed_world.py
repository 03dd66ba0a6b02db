"""A federation of `bench.speed` on loopback: coordinator and sites as processes of their own, over mutual TLS, on drawn lesions."""

import csv
import importlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.speed_rows import peak_bytes
from sgps.draw import PRESETS, write_folder
from sgps.errors import StateError
from sgps.files import sha256_file, write_atomic
from sgps.memory import Coordinates, Memory
from sgps.release import BANK, CATALOGUE, GENERATOR, MANIFEST, MEMORY, Release, encoder_sha256, memory_bytes, write
from sgps.settings import dump, parse
from sgps.shipped import shipped_release
from sgps_client import enrolment as joining
from sgps_server import enrolment
from sgps_server.config import Folder

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("drawn-sable-radiatoma", "drawn-coral-squamoma")
EPSILON, DELTA, SLOTS = 3.0, 1e-5, 200
PICTURE = 450  # pixels a side
LONGEST = 300.0  # seconds without news, then it is given up
AFTER = 20.0  # seconds from `answer_at` to the deadline: a site that is late is asked again soon


def environment(threads: int = 1) -> dict[str, str]:
    paths = [str(ROOT), *(str(ROOT / part) for part in ("sgps", "privacy", "client", "server"))]
    own = {
        "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "NO_PROXY": "*",
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    return {**os.environ, **own}


def free_port() -> int:
    """A port of loopback that is free, and so is the one after it."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


def wide_release(target: Path, classes: int, width: int) -> Release:
    """The shipped network with a class memory of so many rows and coordinates: a payload of 4 classes (width + 1) bytes."""
    shipped = shipped_release()
    known, m = shipped.memory(), shipped.manifest
    rng = np.random.default_rng(0)
    more = rng.normal(size=(width, known.coordinates.directions.shape[1]))
    directions = np.linalg.qr(np.vstack([known.coordinates.directions, more])[:width].T)[0].T.astype(np.float32)
    c = known.coordinates
    ids = (*CLASSES, *(f"class-{n:05d}" for n in range(classes - len(CLASSES))))
    memory = Memory.empty(Coordinates(c.mean, directions, c.radius, c.within), ids)
    base = {n.removeprefix("base."): a for n, a in shipped.tensors(GENERATOR, "base.").items()}
    manifest = m.model_copy(
        update={"classes": ids, "encoder_sha256": encoder_sha256(base, m.architecture, memory), "files": {}}
    )
    files = {name: shipped.folder / name for name in (GENERATOR, BANK, CATALOGUE)}
    write(target, {**files, MEMORY: memory_bytes(memory)}, manifest, key=None)
    return Release.open(target, sha256=sha256_file(target / MANIFEST))


def draw(folder: Path, patients: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """So many drawn patients in folder/pictures, a picture each: rows (image, patient, class)."""
    per_class = -(-patients // len(CLASSES))
    write_folder(folder / "pictures", [PRESETS[c] for c in CLASSES], per_class, seed, size=PICTURE)
    with (folder / "pictures" / "table.csv").open(newline="") as file:
        found = [(r["image_id"], r["patient"], r["dx"]) for r in csv.DictReader(file)]
    return [found[place + c * per_class] for place in range(per_class) for c in range(len(CLASSES))][:patients]


def cohort(folder: Path, name: str, rows: Sequence[tuple[str, str, str]], pictures: Path) -> dict[str, Any]:
    """The table of a cohort, written into the site's folder, and its entry in site.yaml."""
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_id", "patient", "dx"), *rows])
    return {
        "name": name, "images": str(pictures), "table": f"{name}.csv", "unit_column": "patient", "image_column": "image_id",
        "label_column": "dx", "budget": {"epsilon": EPSILON, "delta": DELTA},
    }  # fmt: skip


@dataclass(frozen=True)
class Cycle:
    """One round, from the release before it to its own. seconds: all. wait: of those, in which every site had its sum in the outbox
    and `answer_at` was not yet. site: of the slowest site, from the plan's arrival to the sum in the outbox."""

    seconds: float
    wait: float
    site: float


class World:
    """A federation folder below `work`, its processes, and what they say. Ends every process that it started. port: a free one
    without it."""

    def __init__(
        self, work: Path, rounds: int, sites: int, answer_after: float, release: Release | None = None, port: int = 0
    ) -> None:
        self.work, self.port, self.answer_after = work, port or free_port(), answer_after
        work.mkdir(parents=True)
        self.folder = Folder(work / "centre")
        url = f"https://localhost:{self.port}"
        self.mark = enrolment.init(self.folder.root, "speed", url, release or shipped_release())
        given = parse(self.folder.config.read_text(), self.folder.config)
        changes = {
            "rounds": rounds, "quorum": sites, "wait_for": sites, "answer_after": answer_after,
            "deadline_after": answer_after + AFTER, "attempts": 50, "epsilon": EPSILON, "delta": DELTA,
        }  # fmt: skip
        write_atomic(self.folder.config, dump({**given, **changes}).encode())
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.peaks: dict[str, int] = {}

    def site(self, name: str, cohorts: Sequence[Sequence[tuple[str, str, str]]], pictures: Path, **more: Any) -> Path:
        """An enrolled site folder with a cohort for each group of patients. Returns its site.yaml."""
        folder = self.work / name
        request = enrolment.read_request(joining.request(folder, name))
        enrolment.approve(self.folder, request, folder / "site.kit")
        file = joining.install(folder, folder / "site.kit").settings
        template = parse(file.read_text(), file)
        own = [cohort(folder, f"cohort-{n}", rows, pictures) for n, rows in enumerate(cohorts)]
        write_atomic(file, dump({**template, "slots": SLOTS, "cohorts": own, **more}).encode())
        return file

    def fake_site(self, name: str) -> None:
        """A site of the tests' simulator, without pictures: it answers every plan, as often as it is asked."""
        sys.path.insert(0, str(ROOT / "tests" / "simulators"))
        fake_site = importlib.import_module("fake_site")  # a script of the tests
        request = enrolment.read_request(fake_site.request(self.work / name, name))
        enrolment.approve(self.folder, request, self.work / name / "site.kit")
        self.run(name, str(ROOT / "tests" / "simulators" / "fake_site.py"), "--folder", str(self.work / name))

    def run(self, name: str, *arguments: str, threads: int = 1) -> None:
        with (self.work / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603
                [sys.executable, *arguments], env=environment(threads), stdout=log, stderr=subprocess.STDOUT
            )

    def start(self) -> None:
        self.run("centre", "-m", "sgps_server.cli", "--config", str(self.folder.config), "--json")
        self.wait(lambda: self.said("centre", "listening"))

    def start_site(self, file: Path) -> None:
        self.run(file.parent.name, "-m", "sgps_client.cli", "start", "--config", str(file), "--json")

    def said(self, name: str, *events: str) -> list[dict[str, Any]]:
        path = self.work / f"{name}.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [e for e in found if e["event"] in events]

    def wait(self, done: Callable[[], Any]) -> None:
        """Until `done`. Raises StateError when a process ends early or nothing more is said for long."""
        said, since = 0, time.monotonic()
        while not done():
            now = sum(path.stat().st_size for path in self.work.glob("*.log"))
            since, said = (time.monotonic(), now) if now != said else (since, said)
            ended = [n for n, p in self.processes.items() if p.poll()]
            if ended or time.monotonic() - since > LONGEST:
                name = ended[0] if ended else "centre"
                text = (self.work / f"{name}.log").read_text(errors="replace")
                raise StateError(f"no end of the rounds; {name} said: {text[-1500:]}", where=self.work, do="look there")
            for name, process in self.processes.items():
                self.peaks[name] = max(self.peaks.get(name, 0), peak_bytes(str(process.pid)))
            time.sleep(0.1)

    def cycles(self) -> tuple[list[Cycle], int]:
        """Every round after the first, which warms up; and how many took a second attempt, which are left out."""
        centre, late = self.said("centre", "release", "round_started"), 0
        ends = {e["round"]: e["time"] for e in centre if e["event"] == "release"}
        attempts = {e["round"]: e["attempt"] for e in centre if e["event"] == "round_started"}
        found = []
        sites = [n for n in self.processes if n != "centre"]
        for number in sorted(ends)[1:]:
            if attempts[number] > 1:
                late += 1
                continue
            work, idle = [], []
            for site in sites:
                plan = [e for e in self.said(site, "plan") if e["round"] == number]
                charged = [e for e in self.said(site, "charged") if e["round"] == number]
                if plan and charged:
                    ready = [
                        e["time"] for e in (*plan, *self.said(site, "release"))
                    ]  # the release that it starts from, too
                    work.append(charged[-1]["time"] - max(t for t in ready if t <= charged[-1]["time"]))
                    idle.append(plan[-1]["answer_at"] - charged[-1]["time"])
            wait = max(0.0, min(idle)) if idle else self.answer_after
            found.append(Cycle(ends[number] - ends[number - 1], wait, max(work, default=0.0)))
        return found, late

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
