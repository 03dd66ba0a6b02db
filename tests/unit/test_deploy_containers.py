"""Container files and the compose file. No container engine runs here: they are read, not built; `docker compose` checks where it is."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sgps.settings import parse

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ROOT = DEPLOY.parent
KINDS = {"server": "coordinator", "client": "site"}


def instructions(kind: str) -> list[tuple[str, str]]:
    """(word, rest) of each instruction, lines joined."""
    text = (DEPLOY / "containers" / f"Containerfile.{kind}").read_text()
    lines = [line for line in re.sub(r"\\\n", " ", text).splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def final(kind: str) -> list[tuple[str, str]]:
    """Instructions of the last stage."""
    found = instructions(kind)
    return found[max(i for i, (word, _) in enumerate(found) if word == "FROM") :]


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_runs_without_root(kind: str) -> None:
    (user,) = [rest for word, rest in final(kind) if word == "USER"]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user), "a number, so that Kubernetes can tell that it is not root"
    words = [word for word, _ in final(kind)]
    assert words.index("USER") < words.index("ENTRYPOINT") and "RUN" not in words[words.index("USER") :]


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_stage_holds_nothing_of_the_build(kind: str) -> None:
    assert [rest for word, rest in final(kind) if word in {"COPY", "ADD"}] == ["--from=build /opt/sgps /opt/sgps"]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_is_copied_is_there_and_the_list_is_the_right_one(kind: str) -> None:
    for word, rest in instructions(kind):
        if word == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            assert [s for s in sources if not (ROOT / s).exists()] == []
    runs = " ".join(rest for word, rest in instructions(kind) if word == "RUN")
    assert f"wheelhouse.sh build {KINDS[kind]} " in runs and "pip install" not in runs, (
        "one way to install, with hashes"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_entry_is_the_program(kind: str) -> None:
    found = dict(final(kind))
    assert json.loads(found["ENTRYPOINT"]) == [f"sgps-{kind}"]
    assert "--config" in json.loads(found["CMD"])


def services() -> dict[str, Any]:
    file = DEPLOY / "compose" / "compose.yaml"
    return dict(parse(file.read_text(), file)["services"])


@pytest.mark.parametrize("name", ["coordinator", "site"])
def test_a_service_can_do_little(name: str) -> None:
    service = services()[name]
    assert service["user"] == "10001:10001" and service["read_only"] == "true" and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "pid", "devices"} & set(service)
    assert service["logging"]["options"]["max-size"], "logs do not fill the disk"
    assert service["profiles"] == [name], "nothing starts unless it is named"


def test_images_are_read_only_and_only_the_coordinator_opens_ports() -> None:
    assert [v for v in services()["site"]["volumes"] if "/srv/images" in v and not v.endswith(":ro")] == []
    assert "ports" not in services()["site"] and services()["coordinator"]["ports"] == ["8443:8443", "8444:8444"]


def test_the_health_check_tells_a_live_coordinator_from_a_dead_one() -> None:
    kind, line = services()["coordinator"]["healthcheck"]["test"]
    command, _, test = line.partition("|")
    assert kind == "CMD-SHELL" and command.split()[:3] == ["sgps-server", "status", "--json"]
    for state, well in (
        ("waiting", True),
        ("running", True),
        ("done", True),
        ("stopped", False),
        ("not responding", False),
    ):
        answer = json.dumps({"federation": "derm", "state": state, "rounds": 1})
        assert (subprocess.run(["sh", "-c", test], input=answer, text=True, check=False).returncode == 0) is well


def test_compose_takes_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("needs `docker compose`, which is not installed here")
    line = [docker, "compose", "-f", DEPLOY / "compose" / "compose.yaml", "--profile", "*", "config", "--quiet"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
