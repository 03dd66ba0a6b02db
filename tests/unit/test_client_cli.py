"""The command line: quick help, one-line errors, documented exit codes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "simulators"))
import site_bench

from sgps import errors
from sgps_privacy.errors import CODES

HEAVY = (
    "torch",
    "timm",
    "flwr",
    "opacus",
    "dp_accounting",
    "transformers",
    "numpy",
    "httpx",
    "rich",
    "matplotlib",
    "sklearn",
)


def client(
    *arguments: object, code: str = "from sgps_client.cli import main; main()"
) -> subprocess.CompletedProcess[str]:
    import os

    paths = os.pathsep.join(str(ROOT / part) for part in ("sgps", "privacy", "client", "server"))
    command = [sys.executable, "-c", f"import sys; sys.argv[0] = 'sgps-client'\n{code}", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_help_needs_nothing_heavy() -> None:
    code = "import sgps_client.cli; print(json.dumps([m for m in sys.modules if m.partition('.')[0] in sys.argv[1:]]))"
    done = client(*HEAVY, code=f"import json\n{code}")
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "--config", "missing.yaml"], 2),
        (["start", "--config", "missing.yaml"], 2),
        (["unknown"], 2),
        (["enroll"], 2),
        (["enroll", "Bad Name"], 2),
        (["forecast", "--patients", "5", "--epsilon", "3", "--sites", "6"], 2),
        (["inspect", "nowhere"], 2),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(arguments: list[str], code: int, tmp_path: Path) -> None:
    if arguments[0] == "inspect":
        site_bench.make(tmp_path)
        arguments = [*arguments, "--config", str(tmp_path / "site.yaml")]
    done = client(*arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    if arguments[0] != "check":
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("sgps-client: ")


def test_errors_are_json_where_json_was_asked_for() -> None:
    done = client("ledger", "show", "--config", "missing.yaml", "--json")
    found = json.loads(done.stderr)
    assert found["exit_code"] == done.returncode == 2


def test_a_privacy_refusal_has_its_code(tmp_path: Path) -> None:
    site_bench.make(tmp_path)
    done = client("ledger", "forgive", 1, "--officer", "Dr Officer", "--config", tmp_path / "site.yaml")
    assert done.returncode == errors.RefusedError.exit_code, done.stderr
    done = client(
        "ledger", "raise", "first", "--epsilon", 5, "--officer", "Dr Officer", "--config", tmp_path / "site.yaml"
    )
    assert done.returncode == 5
    assert "open it first" in done.stderr


def test_the_reference_names_every_code_and_every_word() -> None:
    text = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
    rows = {int(c) for c in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    kinds = {e.exit_code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.SgpsError)}
    assert kinds <= rows
    assert set(re.findall(r"`([a-z_]+)`", text)) >= CODES


def test_classes_of_the_catalogue_are_listed_and_found() -> None:
    every = json.loads(client("classes", "--json").stdout)
    assert every["exact"] and {"df", "nv", "akiec"} <= {c["id"] for c in every["classes"]}
    assert "df" in client("classes", "Dermato-Fibroma").stdout.split()
    near = client("classes", "dermatofibrom of the leg")
    assert near.returncode == 0
    assert near.stdout.startswith("no class is called dermatofibrom of the leg; the nearest are\ndf ")


def test_version() -> None:
    from sgps.code import contributor_code

    name, code = client("--version").stdout.splitlines()
    assert name.startswith("sgps-client 0.")
    assert code == f"contributor code {contributor_code()}"
