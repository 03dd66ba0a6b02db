"""A second installation of this code for tests of an upgrade: real files, another hash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("sgps", "privacy", "client", "server")


class Installation:
    """A copy of this code with one line more, so that its hash is another one."""

    def __init__(self, folder: Path, line: str) -> None:
        for part in PARTS:
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        with (folder / "client" / "sgps_client" / "__init__.py").open("a") as file:
            file.write(f"\n# {line}\n")
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(folder / part) for part in PARTS),
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "*",
        }

    def command(self, *words: object) -> str:
        line = [sys.executable, "-m", "sgps_client.cli", *map(str, words)]
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    def code(self) -> str:
        """As an officer reads it off the screen."""
        (line,) = (x for x in self.command("--version").splitlines() if x.startswith("contributor code "))
        return line.removeprefix("contributor code ")
