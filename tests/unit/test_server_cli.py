"""What an operator sees: quick help, one-line errors with exit codes, JSON on request, and no torch anywhere."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import fake_site
import federation as fed
import tiny_release

from sgps.code import contributor_code
from sgps.errors import SgpsError
from sgps_server.checkpoint import Checkpoint, Open
from sgps_server.cli import app

pytestmark = pytest.mark.enable_socket


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("cli")
    release = tiny_release.make(work / "release")
    out = json.loads(run("init", work / "centre", "--name", "derm", "--port", 9443, "--release", release, "--json"))
    assert out["federation"] == "derm"
    assert len(out["fingerprint"]) == 64
    return work / "centre"


def test_an_operators_first_hour(centre: Path) -> None:
    config = ("--config", centre / "federation.yaml")
    csr = fake_site.request(centre.parent / "north", "north")
    kit = centre.parent / "north" / "site.kit"
    approved = json.loads(run("sites", "approve", csr, "--out", kit, "--json", *config))
    assert approved == {"site": "north", "kit": str(kit), "key_sha256": approved["key_sha256"], "renewed": False}
    assert json.loads(kit.read_text())["url"] == "https://localhost:9443"
    assert json.loads(run("sites", "list", "--json", *config))["role"] == "contribute"
    status = json.loads(run("status", "--json", *config))
    assert (status["state"], status["rounds_done"], status["release"]) == ("stopped", 0, "0000")
    assert "north" in run("status", *config)
    assert json.loads(run("releases", "list", "--json", *config))["name"] == "0000"
    run("releases", "export", centre.parent / "usb", *config)
    assert json.loads(run("audit", "verify", "--json", *config))["lines"] == 2
    run("sites", "revoke", "north", *config)
    assert run("sites", "list", *config) == ""


def test_status_tells_the_code_that_plans_accept_and_what_an_open_round_keeps(centre: Path, tmp_path: Path) -> None:
    folder, here = shutil.copytree(centre, tmp_path / "centre"), contributor_code()
    config = folder / "federation.yaml"
    config.write_text(config.read_text() + f'\ncode: ["{"a" * 64}"]\n')

    def told() -> list[str]:
        return [line for line in run("status", "--config", config).splitlines() if " code " in line]

    every = sorted([here, "a" * 64])
    accepts = [f"accepts code {c}{' (of this installation)' if c == here else ''}" for c in every]
    assert told() == accepts
    state = Checkpoint(folder / "state")
    for code, kept in (((here,), [f"round 1 keeps code {here}, as it was issued"]), (tuple(every), [])):
        state.save(open=Open(round=1, attempt=1, terms={}, code=code))
        assert told() == accepts + kept
    found = json.loads(run("status", "--json", "--config", config))
    assert found["code"] == found["open_code"] == every


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (("status", "--config", "nowhere/federation.yaml"), "no such file", 2),
        (("sites", "approve", "none.csr", "--config", "{centre}"), "cannot be read", 2),
        (("sites", "revoke", "east", "--config", "{centre}"), "no site east", 2),
        (("releases", "export", "out", "--name", "0009", "--config", "{centre}"), "no release 0009", 2),
        (("init", "x", "--name", "BAD NAME", "--release", "{release}"), "name", 3),
        (("init", "x", "--name", "derm", "--release", "nowhere"), "holds no release", 2),
        (
            ("init", "x", "--name", "derm", "--url", "https://a.example:1", "--port", "2", "--release", "{release}"),
            "names port 1",
            3,
        ),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    centre: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [a.format(centre=centre / "federation.yaml", release=centre.parent / "release") for a in arguments]
    with pytest.raises(SgpsError, match=says) as caught:
        run(*filled)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_an_error_reaches_the_shell_as_one_line_on_standard_error(tmp_path: Path) -> None:
    done = fed.server("status", cwd=tmp_path, fails=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sgps-server: federation.yaml: no such file")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("unknown",), ("--bad",), ("status", "--config"), ("init",), ("status", "x")])
def test_a_wrong_command_line_is_one_line_too(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = fed.server(*arguments, cwd=tmp_path, fails=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sgps-server: ")
    assert done.stderr.count("\n") == 1


def test_errors_are_json_where_json_was_asked_for(tmp_path: Path) -> None:
    done = fed.server("status", "--json", cwd=tmp_path, fails=True)
    assert json.loads(done.stderr)["exit_code"] == 2


def test_version() -> None:
    assert fed.server("--version").stdout.startswith("sgps-server 0.")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, sgps_server.cli; heavy = {'numpy', 'flwr', 'pydantic', 'cryptography', 'torch', 'scipy'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=fed.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_shows_defaults_as_they_are_written() -> None:
    said = " ".join(fed.server("sites", "approve", "--help").stdout.split())
    assert "[default: 365; 1<=x<=3650]" in said and "\\" not in said


def test_the_whole_coordinator_runs_without_torch() -> None:
    """Every module of the package, imported in a process where torch cannot be imported."""
    code = (
        "import sys, pkgutil, importlib\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'opacus', 'timm', 'sgps_client'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "import sgps_server\n"
        "for m in pkgutil.iter_modules(sgps_server.__path__): importlib.import_module('sgps_server.' + m.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=fed.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_another_settings_file_is_refused_instead_of_ignored(centre: Path) -> None:
    other = centre / "other.yaml"
    other.write_text("quorum: yes\n")
    result = CliRunner().invoke(app, ["status", "--config", str(other)])
    assert "is not a federation.yaml" in str(result.exception)
    other.unlink()
