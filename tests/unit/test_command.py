"""Whatever goes wrong in a command is one line and a documented exit code; a fault of the program keeps its traceback."""

import ast
import errno
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from sgps import command
from sgps.errors import StateError


def ended(monkeypatch: pytest.MonkeyPatch, error: BaseException, *arguments: str) -> int:
    app = typer.Typer(add_completion=False)

    @app.command()
    def fails(as_json: bool = typer.Option(False, "--json")) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["prog", *arguments])
    with pytest.raises(SystemExit) as end:
        command.run("prog", app)
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (StateError("is damaged", where="x", do="mend it"), "prog: x: is damaged - mend it", 7),
        (OSError(errno.ENOSPC, "No space left on device", "/a"), "prog: /a: No space left on device - make room there", 1),
        (OSError(errno.EROFS, "Read-only file system", "/a"), "prog: /a: Read-only file system - choose a place that can be written", 1),
        (MemoryError(), "prog: not enough memory - give smaller or fewer pictures, or use a machine with more", 1),
        (KeyboardInterrupt(), "", 130),
    ],
)  # fmt: skip
def test_one_line_and_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, line: str, code: int
) -> None:
    assert ended(monkeypatch, error) == code
    assert capsys.readouterr().err.strip() == line


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(monkeypatch, StateError("is damaged", where="x"), "--json") == 7
    assert json.loads(capsys.readouterr().err) == {"error": "x: is damaged", "exit_code": 7}


def test_a_fault_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        ended(monkeypatch, ZeroDivisionError())


@pytest.mark.parametrize("module", ["sgps.cli", "sgps_client.cli", "sgps_server.cli"])
@pytest.mark.parametrize("argument", ["unknown", "--bad"])
def test_a_wrong_command_line_is_one_line_in_every_program(module: str, argument: str) -> None:
    done = _run(module, argument)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(module.removesuffix(".cli").replace("_", "-") + ": ")


def test_no_program_looks_anything_up() -> None:
    """Whoever imports timm first imports the hub's client, which reads its switches once."""
    code = "from sgps import command; import typer\napp = typer.Typer()\n@app.command()\ndef f() -> None:\n  import huggingface_hub.constants as c\n  print(c.HF_HUB_OFFLINE)\ncommand.run('p', app)"
    there = {n: v for n, v in _path().items() if not n.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_a_terminal_without_a_letter_is_no_error() -> None:
    code = "from sgps import command; import typer\napp = typer.Typer()\n@app.command()\ndef f() -> None:\n  typer.echo('\u201cnone\u201d')\ncommand.run('p', app)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**_path(), "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\u201cnone\\u201d\n", b"")


def test_output_that_nobody_reads_is_no_error() -> None:
    code = "import sys; from sgps import command; import typer\napp = typer.Typer()\n@app.command()\ndef f() -> None:\n  print('x' * 9_000_000)\ncommand.run('p', app)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_path()
    )
    assert process.stdout and process.stderr
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(20) == 1


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False, env=_path()
    )


def _path() -> dict[str, Any]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


@pytest.mark.parametrize("module", ["sgps.cli", "sgps_client.cli", "sgps_server.cli"])
def test_every_command_speaks_json(module: str) -> None:
    def leaves(group: Any, path: str) -> dict[str, Any]:
        if not hasattr(group, "commands"):
            return {path: group}
        return {p: c for name, inner in group.commands.items() for p, c in leaves(inner, f"{path} {name}").items()}

    commands = leaves(typer.main.get_command(importlib.import_module(module).app), module)
    assert len(commands) > 3
    assert not [path for path, c in commands.items() if not any("--json" in p.opts for p in c.params)]


def test_every_error_says_what_to_do() -> None:
    """Errors that a person can mend are raised with a next step, everywhere but in the tools of the scientist."""
    kinds = {"InputError", "ConfigError", "SignatureError", "RefusedError", "NetworkError", "StateError"}
    root = Path(__file__).resolve().parents[2]
    files = [
        f for part in ("sgps/sgps", "client/sgps_client", "server/sgps_server") for f in (root / part).rglob("*.py")
    ]
    without = [
        f"{file.relative_to(root)}:{call.lineno}"
        for file in files
        if not {"draw", "pretrain"} & set(file.parts) and file.name not in {"episodes.py", "tuning.py"}
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in kinds
        if not any(k.arg in {"do", None} for k in call.keywords)
    ]
    assert not without
