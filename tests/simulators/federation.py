"""A federation of real processes on loopback for tests of the coordinator. Ends every process that it started."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_site
import tiny_release

from sgps.settings import dump
from sgps_server.audit import read
from sgps_server.config import Folder

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def free_port() -> int:
    """A free port; the one after it is free, too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


def environment() -> dict[str, str]:
    paths = [str(ROOT / part) for part in ("sgps", "privacy", "client", "server")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "*",
        "PYTHONUNBUFFERED": "1",
    }


def server(*arguments: object, cwd: Path | None = None, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run one `sgps-server` command to its end."""
    command = [sys.executable, "-m", "sgps_server.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    if bool(done.returncode) != fails:
        raise AssertionError(f"{command} gave {done.returncode}: {done.stdout}{done.stderr}")
    return done


class Federation:
    """Federation folder, coordinator and fake sites under `work`."""

    def __init__(self, work: Path, **settings: Any) -> None:
        self.work, self.port = work, free_port()
        self.folder = Folder(work / "centre")
        self.processes: list[subprocess.Popen[bytes]] = []
        release = tiny_release.make(work / "release")
        server("init", self.folder.root, "--name", "derm", "--port", self.port, "--release", release)
        self.settings: dict[str, Any] = {
            "name": "derm",
            "url": f"https://localhost:{self.port}",
            "listen": {"host": "127.0.0.1", "port": self.port},
            "rounds": 1,
            "epsilon": 3.0,
            "delta": 1.0e-5,
            "quorum": 2,
            "patience": 3,
            "answer_after": 1,
            "deadline_after": 60,
            **settings,
        }
        self.write_settings()

    def write_settings(self, **changes: Any) -> None:
        self.settings.update(changes)
        self.folder.config.write_text(dump(self.settings))

    def enrol(self, name: str, *options: str) -> Path:
        """A site folder with key and kit."""
        folder = self.work / name
        csr = fake_site.request(folder, name)
        server("sites", "approve", csr, "--config", self.folder.config, "--out", folder / "site.kit", *options)
        return folder

    def start(self, *options: object) -> subprocess.Popen[bytes]:
        """Start the coordinator; its lines go to work/server.log."""
        command = [
            sys.executable,
            "-m",
            "sgps_server.cli",
            "--config",
            str(self.folder.config),
            "--json",
            *map(str, options),
        ]
        with (self.work / "server.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def start_site(self, name: str, *options: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(HERE / "fake_site.py"), "--folder", str(self.work / name), *map(str, options)]
        with (self.work / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What the coordinator said."""
        path = self.work / "server.log"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [e for e in found if not names or e["event"] in names]

    def site_events(self, site: str, *names: str) -> list[dict[str, Any]]:
        path = self.work / site / "log.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [e for e in found if not names or e["event"] in names]

    def audit(self, *names: str) -> list[dict[str, Any]]:
        return [e for e in read(self.folder.audit) if not names or e["event"] in names]

    def wait(self, what: Callable[[], Any], seconds: float = 240) -> Any:
        end = time.monotonic() + seconds
        while not (found := what()):
            if time.monotonic() > end:
                raise AssertionError(
                    f"timed out; the coordinator said:\n{(self.work / 'server.log').read_text()[-4000:]}"
                )
            time.sleep(0.05)
        return found

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
