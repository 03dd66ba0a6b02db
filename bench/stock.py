"""Flower's own processes on this machine, as they come: for `bench.speed` and for the tests of `deploy/flower-app`."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

BIN = Path(sys.executable).parent
LONGEST = 300.0  # seconds of one `flwr` command


class Processes:
    """Each has a home and a log below `work`. environment: of all of them."""

    def __init__(self, work: Path, environment: Mapping[str, str]) -> None:
        self.work, self._environment = work, environment
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, home: str) -> dict[str, str]:
        (self.work / home).mkdir(exist_ok=True)
        return {
            **self._environment,
            "FLWR_HOME": str(self.work / home),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    def connection(self, address: str, security: str) -> None:
        """The operator's connection `stock`. security: its line of TOML."""
        (self.work / "operator").mkdir(exist_ok=True)
        (self.work / "operator" / "config.toml").write_text(
            f'[superlink]\ndefault = "stock"\n\n[superlink.stock]\naddress = "{address}"\n{security}\n'
        )

    def start(self, program: str, home: str, *arguments: object) -> None:
        with (self.work / f"{home}.log").open("ab") as log:
            self.running[home] = subprocess.Popen(  # noqa: S603
                [str(BIN / program), *map(str, arguments)],
                env=self.environment(home),
                stdout=log,
                stderr=log,
                cwd=self.work,
            )

    def flwr(self, *arguments: object) -> str:
        """What the operator's command says."""
        done = subprocess.run(  # noqa: S603
            [str(BIN / "flwr"), *map(str, arguments)], env=self.environment("operator"), capture_output=True, text=True,
            timeout=LONGEST, check=False, cwd=self.work,
        )  # fmt: skip
        return done.stdout + done.stderr

    def close(self) -> None:
        for process in reversed(self.running.values()):
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
