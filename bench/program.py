"""How the programs here end: with their report on the terminal, or with a fault in one line."""

import sys
from collections.abc import Callable
from pathlib import Path

from threadpoolctl import threadpool_limits

from sgps.errors import SgpsError


def finish(work: Callable[[], object], report: Path) -> int:
    """Do the work, in one thread of numpy's, and print the report that it has written. Returns the exit code."""
    try:
        with threadpool_limits(1):  # many small products: more threads only wait for each other
            work()
    except SgpsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(report.read_text())
    return 0
