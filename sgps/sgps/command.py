"""How every command line ends: one line on standard error and a documented exit code, whatever went wrong."""

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any, NoReturn

from sgps.code import contributor_code
from sgps.errors import SgpsError

INTERRUPTED, USAGE = 130, 2
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # no look-up anywhere
_DO = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "give this user the right to it, or choose another place",
    errno.EPERM: "give this user the right to it, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EADDRINUSE: "choose another port",
}


def run(
    program: str, app: Callable[..., Any], also: Callable[[Exception], tuple[str, int] | None] = lambda _: None
) -> NoReturn:
    """Runs a typer or click application and ends the process.

    also: line and exit code of exceptions of other packages. A fault of the program keeps its traceback. With `--json` among the
    arguments the line is `{"error": ..., "exit_code": ...}`.
    """
    import click

    class Formatter(click.HelpFormatter):
        """typer puts a backslash before brackets, for rich, which prints nothing here."""

        def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
            super().write_dl([(name, text.replace(r"\[", "[")) for name, text in rows], col_max, col_spacing)

    os.environ.update(OFFLINE)  # read once, by whoever imports timm or transformers first
    click.Context.formatter_class = Formatter
    as_json = "--json" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # an old terminal without a letter, a file name that is no text
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager stops a command as Ctrl-C does
    try:
        code = app(prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(error.format_message() + "\n")
        sys.exit(USAGE)
    except Exception as error:
        found = also(error) or _known(error)
        if found is None:
            raise
        line, code = found
        if line:
            text = (
                json.dumps({"error": line, "exit_code": code}, ensure_ascii=False) if as_json else f"{program}: {line}"
            )
            sys.stderr.write(text + "\n")
    sys.exit(code if isinstance(code, int) else 0)


def version_line(program: str) -> str:
    """Name and version of the installation, and the hash by which plans know its code."""
    return f"{program} {version('sgps')}\ncontributor code {contributor_code()}"


def _known(error: Exception) -> tuple[str, int] | None:
    """Line and exit code; None for a fault of the program."""
    import click

    if isinstance(error, SgpsError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError):
        helps = error.ctx.command_path if error.ctx else ""
        text = " ".join(error.format_message().split()).rstrip(".")
        return f"{text} - see `{helps} --help`" if helps else text, USAGE
    if isinstance(error, click.ClickException):
        return " ".join(error.format_message().split()), error.exit_code
    if isinstance(error, click.exceptions.Exit):
        return "", error.exit_code
    if isinstance(error, click.Abort):
        return "", INTERRUPTED
    if isinstance(error, MemoryError):
        return "not enough memory - give smaller or fewer pictures, or use a machine with more", 1
    if isinstance(error, OSError):
        what, do = of_disk(error)
        return f"{what}{f' - {do}' if do else ''}", 1
    return None


def of_disk(error: OSError) -> tuple[str, str]:
    """What is wrong and where, and the next step, of an error of the operating system."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}", _DO.get(error.errno or 0, "")
