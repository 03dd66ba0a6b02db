"""What the client says: JSON lines to the site's own log, and lines for a person, or JSON lines, to the terminal.

Keys are an allow-list. The log never leaves the site; still no patient, no file name and no label has a key of its own here.
"""

import json
import logging
import logging.handlers
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import structlog

# fmt: off
KEYS = frozenset({
    "event", "time", "level", "detail", "site", "federation", "url", "state", "round", "rounds", "attempt", "plan", "code", "cohort",
    "patients", "sigma", "mu", "epsilon", "delta", "budget", "answer_at", "deadline", "receipt", "release", "sha256", "seconds", "retry",
})
# fmt: on
HOUR = 3600.0  # seconds
FILE_BYTES, FILES = 5 << 20, 5  # size and number of log files kept


def allowed(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: drops what has no place in the log."""
    return {key: value for key, value in event.items() if key in KEYS}


class _OwnersFile(logging.handlers.RotatingFileHandler):
    """Mode 0600, also after the file was turned over: a line may name a picture."""

    def _open(self) -> TextIOWrapper:
        handle = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.fchmod(handle, 0o600)
        return TextIOWrapper(os.fdopen(handle, "ab"), encoding=self.encoding)


class Report:
    """Call it with an event's name, a line for a person, and facts under allowed keys."""

    def __init__(self, file: Path | None, line: Callable[[str], None] | None = None, **always: Any) -> None:
        """file: the site's log, made with mode 0600. line: gets the line for a person, or the JSON line. always: facts of each."""
        self._line, self._always = line, always
        self._repeated: dict[
            str, tuple[object, float]
        ] = {}  # event -> what was said last, and until when that is enough
        self._log: Any = None
        if file is not None:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handler = _OwnersFile(file, maxBytes=FILE_BYTES, backupCount=FILES - 1, encoding="utf-8")
            logger = logging.Logger(  # noqa: LOG001  one for each folder, outside the tree that libraries write to
                f"sgps_client:{file}", logging.INFO
            )
            logger.addHandler(handler)
            self._log = structlog.wrap_logger(
                logger,
                wrapper_class=structlog.stdlib.BoundLogger,
                processors=[
                    structlog.stdlib.add_log_level,
                    structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
                    allowed,
                    structlog.processors.JSONRenderer(sort_keys=True, ensure_ascii=False),
                ],
            )

    def __call__(self, event: str, line: str, /, *, bad: bool = False, seldom: bool = False, **facts: Any) -> None:
        """seldom: not again within the hour while line and facts of this event stay the same, for what an order says at every try."""
        if seldom:
            said, until = self._repeated.get(event, (None, 0.0))
            if said == (line, facts) and time.monotonic() < until:
                return
            self._repeated[event] = (line, facts), time.monotonic() + HOUR
        facts = {**self._always, **facts}
        if self._log is not None:
            (self._log.warning if bad else self._log.info)(event, **{"detail": line, **facts})
        if self._line is not None:
            self._say(event, line, facts)

    def _say(self, event: str, line: str, facts: Mapping[str, Any]) -> None:
        if self._line is not None:
            self._line(f"{time.strftime('%H:%M:%S')}  {line}")

    def close(self) -> None:
        """Releases the log file."""
        if self._log is not None:
            for handler in [*self._log.handlers]:
                self._log.removeHandler(handler)
                handler.close()


class JsonReport(Report):
    """One JSON object for each event instead of a line for a person."""

    def _say(self, event: str, line: str, facts: Mapping[str, Any]) -> None:
        if self._line is not None:
            body = {
                "event": event,
                "time": round(time.time(), 3),
                **{k: v for k, v in facts.items() if k in KEYS},
                "line": line,
            }
            self._line(json.dumps(body, ensure_ascii=False, default=str))


_current: ContextVar[Report] = ContextVar("report")
_silent = Report(None)


def current() -> Report:
    """The report of the command that runs; a silent one where Flower itself calls the ClientApp."""
    return _current.get(_silent)


@contextmanager
def reporting(report: Report) -> Iterator[Report]:
    """Makes `report` the current one and closes it at the end."""
    token = _current.set(report)
    try:
        yield report
    finally:
        _current.reset(token)
        report.close()


def to_stdout(line: str) -> None:
    """One line, at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
