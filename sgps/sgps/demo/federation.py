"""The federation of the demo: a coordinator and three sites as separate processes over mutual TLS on loopback, by their own commands."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sgps.demo.world import COHORTS, SITES, World
from sgps.errors import StateError
from sgps.files import write_atomic
from sgps.settings import dump, parse

DELTA, ROUNDS = 1e-5, len(COHORTS)
ANSWER_AFTER, DEADLINE_AFTER = 20, 120  # seconds: a site encodes its patients before it answers
SHARED_CORES = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}  # four programs on one machine: idle threads must not spin
LONGEST = 420.0  # seconds for all rounds
Say = Callable[[str], None]


class Commands:
    """Runs the three programs from one folder and keeps what was run, for the report."""

    def __init__(self, root: Path) -> None:
        self.root, self.ran = root, list[str]()

    def _line(self, program: str, *arguments: object) -> list[str]:
        return [str(Path(sys.executable).with_name(program)), *map(str, arguments)]

    def _remember(self, folder: Path, program: str, arguments: tuple[object, ...]) -> None:
        shown = shlex.join([program, *(str(a).replace(f"{self.root}/", "") for a in arguments)])
        place = folder.relative_to(self.root).as_posix()
        self.ran.append(f"{place if place != '.' else 'demo'}$ {shown}")

    def run(self, folder: Path, program: str, *arguments: object, offline: bool = False) -> str:
        """Standard output of a command run in `folder`. Raises StateError with its last line when it fails.

        offline: in an interpreter that refuses every socket.
        """
        self._remember(folder, program, arguments)
        line = self._line(program, *arguments)
        if offline:
            module = {"sgps-client": "sgps_client.cli"}[program]
            line = [sys.executable, "-m", "sgps.demo.offline", module, *map(str, arguments)]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False, timeout=600)  # noqa: S603
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise StateError(
                f"{program} ended with {done.returncode}: {last}", where=folder, do=f"run it there: {shlex.join(line)}"
            )
        return done.stdout

    @contextmanager
    def process(self, folder: Path, program: str, *arguments: object) -> Iterator["Process"]:
        """A program that goes on beside us; ended when the block ends."""
        self._remember(folder, program, arguments)
        process = Process(self._line(program, *arguments), folder)
        try:
            yield process
        finally:
            process.end()


class Process:
    """A running program that prints one JSON object a line. events: what it has said so far."""

    def __init__(self, line: list[str], folder: Path) -> None:
        self.name, self.events, self._folder = Path(line[0]).name, list[dict[str, Any]](), folder
        self._errors = (folder / f"{self.name}.err").open("w+")
        self._popen = subprocess.Popen(  # noqa: S603
            line, cwd=folder, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=os.environ | SHARED_CORES
        )
        self._reader = threading.Thread(target=self._read, args=(self._popen.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            try:
                self.events.append(json.loads(line))
            except ValueError:
                self.events.append({"event": "text", "text": line.strip()})

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        return self._popen.poll()

    def problem(self) -> StateError:
        self._errors.flush()
        lines = (self._folder / f"{self.name}.err").read_text().strip().splitlines()
        said = lines[-1] if lines else json.dumps(self.events[-1] if self.events else {})
        return StateError(
            f"{self.name} ended early with {self.returncode}: {said}",
            where=self._folder,
            do="look at the .err files there",
        )

    def end(self) -> None:
        """SIGTERM first: every program stops cleanly. (SIGINT is ignored below a shell's background job.)"""
        if self.running:
            self._popen.terminate()
            try:
                self._popen.wait(20)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        self._reader.join(5)
        self._errors.close()


def two_free_ports() -> int:
    """A port of loopback that is free, and so is the one after it, for releases."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with suppress(OSError, OverflowError):  # the next one is taken, or there is none
                second.bind(("127.0.0.1", port + 1))
                return port


def enrol(commands: Commands, world: World, epsilon: float, slots: int) -> Path:
    """Make the federation and three sites; keys are born at each site. Returns the federation folder."""
    port = two_free_ports()
    home = commands.root / "coordinator"
    commands.run(
        commands.root, "sgps-server", "init", "coordinator", "--name", "demo", "--url", f"https://127.0.0.1:{port}"
    )
    settings = parse((home / "federation.yaml").read_text(), home) | {
        "rounds": ROUNDS, "epsilon": epsilon, "delta": DELTA, "quorum": len(SITES), "wait_for": len(SITES),
        "answer_after": ANSWER_AFTER, "deadline_after": DEADLINE_AFTER,
    }  # fmt: skip
    write_atomic(home / "federation.yaml", dump(settings).encode())
    for name in SITES:
        site = commands.root / name
        site.mkdir()
        commands.run(site, "sgps-client", "enroll", name)
        commands.run(home, "sgps-server", "sites", "approve", f"../{name}/{name}.csr", "--out", f"../{name}/{name}.kit")
        commands.run(site, "sgps-client", "enroll", "--kit", f"{name}.kit")
        template = parse((site / "site.yaml").read_text(), site)
        own = [(c, world.tables[name, c]) for c in COHORTS if (name, c) in world.tables]
        cohorts = [
            {
                "name": cohort, "images": str(world.source), "table": str(table), "image_column": "image_id",
                "unit_column": "patient_id", "label_column": "diagnosis", "budget": {"epsilon": epsilon, "delta": DELTA},
            }
            for cohort, table in own
        ]  # fmt: skip
        limits = template["limits"] | {"least_sigma": 0.3}
        write_atomic(
            site / "site.yaml", dump(template | {"slots": slots, "limits": limits, "cohorts": cohorts}).encode()
        )
    return home


def run_rounds(commands: Commands, home: Path, say: Say) -> dict[str, list[dict[str, Any]]]:
    """All rounds, until every site holds the last release. Returns what every program said. Raises StateError."""
    from contextlib import ExitStack

    end = time.monotonic() + LONGEST
    with ExitStack() as stack:
        coordinator = stack.enter_context(commands.process(home, "sgps-server", "--json"))
        while not any(e.get("event") == "listening" for e in coordinator.events):
            if not coordinator.running or time.monotonic() > end:
                raise coordinator.problem()
            time.sleep(0.1)
        for name in SITES:
            commands.run(commands.root / name, "sgps-client", "check")
        sites = {
            n: stack.enter_context(commands.process(commands.root / n, "sgps-client", "start", "--json")) for n in SITES
        }
        told = 0
        while any(site.running for site in sites.values()):
            for event in coordinator.events[told:]:
                _tell(event, say)
                told += 1
            if not coordinator.running:
                raise coordinator.problem()
            if time.monotonic() > end:
                raise StateError(
                    f"the rounds are not done after {LONGEST:.0f} s",
                    where=commands.root,
                    do="run it again when the machine is less busy; log/client.jsonl of each site says what was done last",
                )
            time.sleep(0.2)
        for site in sites.values():
            if site.returncode:
                raise site.problem()
        for event in coordinator.events[told:]:
            _tell(event, say)
        said = {"coordinator": list(coordinator.events), **{n: list(p.events) for n, p in sites.items()}}
    say("coordinator stopped; from here on every command runs with sockets refused")
    return said


def _tell(event: dict[str, Any], say: Say) -> None:
    kind = event.get("event")
    if kind == "online":
        say(f"  {event['site']} is online")
    elif kind == "round_started":
        say(
            f"round {event['round']} of {event['rounds']}: plan sent to {', '.join(event['sites'])}; all answer in {event['answer_in']:.0f} s"
        )
    elif kind == "reply":
        say(f"  {event['site']} contributed; receipt {event['receipt'][:12]}")
    elif kind in {"refusal", "rejected"}:
        say(f"  {event['site']}: {event['code']}")
    elif kind == "release":
        say(f"  release {event['release']} signed")
    elif kind == "fetched" and re.fullmatch(r"\d+", str(event.get("release", ""))):
        say(f"  {event['site']} fetched and verified release {event['release']}")
