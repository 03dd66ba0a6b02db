"""The systemd units: read by systemd itself where it is installed, and never weaker than they say."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgps.errors import InputError

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
NAMES = ["sgps-server", "sgps-client"]
MOST_EXPOSED = 2.0  # of 10, by systemd's own count
HARDENING = {
    "NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes",
    "PrivateDevices": "yes", "RestrictNamespaces": "yes", "RestrictSUIDSGID": "yes", "LimitCORE": "0", "UMask": "0077",
    "StateDirectoryMode": "0700", "SystemCallArchitectures": "native",
}  # fmt: skip


def read(name: str) -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read(UNITS / f"{name}.service")
    return unit


def tool() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("needs systemd-analyze, which is not installed here")
    return found


def here(name: str, folder: Path, text: str | None = None) -> Path:
    """The unit with a program that exists: systemd looks whether it does."""
    program = folder / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = folder / f"{name}.service"
    text = (UNITS / unit.name).read_text() if text is None else text
    unit.write_text(text.replace(f"/opt/sgps/bin/{name}", str(program)))
    return unit


def verify(unit: Path) -> str:
    done = subprocess.run([tool(), "verify", "--man=no", unit], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit {done.returncode}")


@pytest.mark.parametrize("name", NAMES)
def test_systemd_takes_the_unit_without_a_word(name: str, tmp_path: Path) -> None:
    said = verify(here(name, tmp_path))
    assert not [line for line in said.splitlines() if name in line or line.startswith("exit")], said


def test_a_misspelt_key_would_be_seen(tmp_path: Path) -> None:
    text = (UNITS / "sgps-server.service").read_text().replace("ProtectHome=", "ProtectHouse=")
    assert "ProtectHouse" in verify(here("sgps-server", tmp_path, text))


@pytest.mark.parametrize("name", NAMES)
def test_exposure_by_systemds_own_count(name: str, tmp_path: Path) -> None:
    line = [tool(), "security", "--offline=yes", "--no-pager", here(name, tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("needs systemd 250 or later for `systemd-analyze security --offline`")
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSED


@pytest.mark.parametrize("name", NAMES)
def test_hardening_and_user(name: str) -> None:
    service = read(name)["Service"]
    assert {key: service.get(key) for key in HARDENING} == HARDENING
    assert service["User"] == service["StateDirectory"] == name


@pytest.mark.parametrize("name", NAMES)
def test_the_command_is_one_that_the_program_knows(name: str) -> None:
    from sgps_client.cli import app as client
    from sgps_server.cli import app as server

    program, *arguments = read(name)["Service"]["ExecStart"].split()
    assert program == f"/opt/sgps/bin/{name}"
    assert arguments[-1].startswith(f"/var/lib/{name}/"), "within the state folder, the only one that can be written"
    app = {"sgps-server": server, "sgps-client": client}[name]
    done = CliRunner().invoke(app, [*arguments[:-1], "/nowhere/settings.yaml"])
    assert isinstance(done.exception, InputError), f"known options, and only the settings are missing: {done.output}"


def test_a_stop_is_no_failure_and_a_wrong_setting_no_reason_to_try_again() -> None:
    for name in NAMES:
        service = read(name)["Service"]
        assert service["SuccessExitStatus"] == "130"
        assert service["Restart"] == "on-failure"
        assert service["RestartPreventExitStatus"].split() == ["3", "4"]
