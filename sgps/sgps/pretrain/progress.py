"""Progress of long work: a bar on a terminal, plain lines elsewhere; and a clean stop on Ctrl-C."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

Report = Callable[[str, int, int, Mapping[str, float]], None]  # stage, done, total, latest values


def silent(stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
    """A Report that shows nothing."""


def _text(values: Mapping[str, float]) -> str:
    return " ".join(f"{k} {v:.4g}" for k, v in values.items())


@contextlib.contextmanager
def console(every: float = 20.0) -> Iterator[Report]:
    """A Report for people, on standard error: a rich bar on a terminal, else a line each `every` seconds and stage end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = Console(stderr=True)
    if not screen.is_terminal:
        start, last = time.monotonic(), dict[str, float]()

        def line(stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
            now = time.monotonic()
            if done in {0, total} or now - last.get(stage, -every) >= every:
                last[stage] = now
                sys.stderr.write(f"{now - start:6.0f} s  {stage}: {done} of {total}  {_text(values)}".rstrip() + "\n")
                sys.stderr.flush()

        yield line
        return
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[values]}"), console=screen) as bars:
        tasks = dict[str, int]()

        def bar(stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, values="")
            bars.update(tasks[stage], completed=done, total=total, values=_text(values))  # type: ignore[arg-type]

        yield bar


class Stop:
    """Set once somebody asks to stop. Work looks at `asked` where it can stop without loss."""

    def __init__(self) -> None:
        self.asked = False


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """While this is open, the first SIGINT or SIGTERM only sets `asked`; a second one interrupts at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        for s, handler in before.items():
            signal.signal(s, handler)

    for s in before:
        signal.signal(s, ask)
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
