"""The coordinator's record: JSON lines, each with the hash of the line before, so that a later edit shows.

Several processes write it (the rounds, `sites approve`), so every append holds a lock on the file and looks at its end first.
"""

import fcntl
import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from sgps.errors import StateError
from sgps.files import naming
from sgps.signing import canonical

START = "0" * 64
_TAIL = 1 << 20  # bytes; longer than any line: the names of as many sites as a plan can hold take less than half


class Audit:
    """Append-only."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()

    def add(self, event: str, **fields: Any) -> str:
        """Write one line, durable when this returns. Returns its hash. Fields hold names, codes and hashes, nothing else."""
        with self._lock, naming(self.path), self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            line = canonical({"event": event, "time": round(time.time(), 3), "previous": _head(file), **fields})
            if len(line) >= _TAIL:
                raise StateError(
                    f"an audit line of {len(line):,} bytes", where=self.path, do="name fewer sites in a round"
                )
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
            return hashlib.sha256(line).hexdigest()


def _head(file: BinaryIO) -> str:
    """Hash of the last whole line. Half a line that a crash left is cut off: nothing was done in its name."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))
    tail = file.read()
    torn = len(tail) - (tail.rfind(b"\n") + 1)
    if torn:
        file.truncate(size - torn)
        tail = tail[:-torn]
        file.seek(0, os.SEEK_END)
    lines = tail.splitlines()
    return hashlib.sha256(lines[-1]).hexdigest() if lines else START


class Heads:
    """Hashes of all lines, in memory; what was appended since is read at each question. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self._path, self._lines, self._read, self._lock = path, list[str](), 0, threading.Lock()

    def last(self) -> tuple[str, int]:
        """Hash of the last line, number of lines. Raises StateError where a line does not follow from the one before."""
        with self._lock:
            self._look()
            return (self._lines[-1] if self._lines else START), len(self._lines)

    def holds(self, head: str, lines: int) -> bool:
        """Whether the line of that number has that hash. Raises StateError, too."""
        with self._lock:
            self._look()
            return (lines == 0 and head == START) or (0 < lines <= len(self._lines) and self._lines[lines - 1] == head)

    def _look(self) -> None:
        with self._path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # a line counts, and is signed for, once it is durable
            if file.seek(0, os.SEEK_END) < self._read:
                raise StateError("has become shorter", where=self._path, do="keep the file and ask who changed it")
            file.seek(self._read)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]  # half a line is still being written, or was left by a crash
        for line in data.splitlines():
            _followed(line, self._lines[-1] if self._lines else START, f"{self._path} line {len(self._lines) + 1}")
            self._lines.append(hashlib.sha256(line).hexdigest())
            self._read += len(line) + 1


def _followed(line: bytes, head: str, where: str) -> dict[str, Any]:
    """The event of a line. Raises StateError when it does not follow from the line whose hash is `head`."""
    try:
        event = json.loads(line)
        sound = event["previous"] == head and canonical(event) == line
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise StateError("the chain of hashes is broken", where=where, do="keep the file and ask who changed it")
    return dict(event)


def read(path: Path) -> list[dict[str, Any]]:
    """All events; `sha256` is added to each. Raises StateError at the first line that does not follow from the one before."""
    head, events = START, []
    data = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        event = _followed(line, head, f"{path} line {number}")
        head = hashlib.sha256(line).hexdigest()
        events.append({**event, "sha256": head})
    return events


def verify(path: Path, anchors: dict[str, str]) -> list[dict[str, Any]]:
    """The events, after chain and anchors are checked. anchors: name of a signed release -> hash of the line it was made after.

    The chain alone does not show that its end was cut off; a signed release that names a line does.
    """
    events = read(path)
    known = {START, *(e["sha256"] for e in events)}
    for name, head in anchors.items():
        if head not in known:
            raise StateError(
                f"release {name} names a line that is not there", where=path, do="the file was cut or replaced"
            )
    return events
