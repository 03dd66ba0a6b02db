"""What the coordinator hands out beside Flower: its state and the releases. All of it is for enrolled sites only."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgps.release import FILES, MANIFEST, MEMORY, SIGNATURE
from sgps_server.releases import latest

_FILE = re.compile(r"/sgps/releases/([0-9]{4,})/([a-z.]+)")
_NAMES = frozenset((*FILES, MANIFEST, SIGNATURE))


@dataclass(frozen=True)
class Found:
    """A file of a release. memory: whether it is the one that every release has anew."""

    path: Path
    release: str
    memory: bool


class Shelf:
    """GET paths -> JSON bytes, a file, or nothing."""

    def __init__(self, releases: Path, status: Callable[[], dict[str, Any]]) -> None:
        self._releases, self._status = releases, status

    def find(self, path: str) -> bytes | Found | None:
        """The names are matched against a fixed list, so no path can lead elsewhere."""
        if path == "/sgps/status":
            return _json(self._status())
        if path == "/sgps/releases/latest":
            release = latest(self._releases)
            return _json({"name": release.name, "sha256": release.sha256})
        match = _FILE.fullmatch(path)
        if match is None or match[2] not in _NAMES:
            return None
        file = self._releases / match[1] / match[2]
        return Found(file, match[1], match[2] == MEMORY) if file.is_file() else None


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
