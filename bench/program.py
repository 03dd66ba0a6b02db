"""How the programs here begin, where they share it, and end: with their report on the terminal, or with a fault in one line."""

import argparse
import sys
from collections.abc import Callable, Sequence
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


def on_public_sets(
    name: str, doc: str, run: Callable[[Path, Path, int, int], object], seed: int, argv: Sequence[str] | None
) -> int:
    """A program that measures episodes on all public image sets. name, doc: of its module. run: of data, out, episodes and seed."""
    p = argparse.ArgumentParser(prog=f"python -m {name}", description=doc.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="folder of the public image sets")
    p.add_argument("--episodes", type=int, default=300)
    p.add_argument("--seed", type=int, default=seed)
    p.add_argument("--out", type=Path, required=True, help="folder; features are kept here too")
    a = p.parse_args(argv)
    return finish(lambda: run(a.data, a.out, a.episodes, a.seed), a.out / "results.md")
