"""Where the federation stands, for sites (the call `Status`) and for the operator (`sgps-server status`). It says who is missing."""

import fcntl
import json
import threading
import time
from typing import Any

from sgps.code import contributor_code
from sgps.files import write_atomic
from sgps.signing import fingerprint, load_public
from sgps_server.checkpoint import read_state
from sgps_server.config import Folder
from sgps_server.plans import accepted_code
from sgps_server.registry import Registry
from sgps_server.releases import latest

FRESH = 15.0  # seconds; the running coordinator writes its state at least every third of this


class Board:
    """The running coordinator's view. Written by the rounds, read by the release service."""

    def __init__(self, folder: Folder, federation: str, fingerprint: str, rounds: int) -> None:
        self._path, self._lock, self._written = folder.state / "status.json", threading.Lock(), 0.0
        self._told = time.monotonic()
        self._now: dict[str, Any] = {
            "federation": federation,
            "fingerprint": fingerprint,
            "state": "waiting",
            "round": 0,
            "rounds": rounds,
            "release": "",
            "sites": {},
            "waiting_for": [],
        }

    def snapshot(self) -> dict[str, Any]:
        with self._lock:
            return {**self._now}

    def alive(self) -> bool:
        """Whether the rounds have set something lately: they do so all the time, unless they hang."""
        return time.monotonic() - self._told < FRESH

    def set(self, **changes: Any) -> None:
        """Change fields; the file follows at once, and now and then when nothing changed, so that a hang shows."""
        with self._lock:
            self._told = time.monotonic()
            changed = any(self._now[k] != v for k, v in changes.items())
            self._now.update(changes)
            now = {**self._now, "time": time.time()}
            due = changed or time.monotonic() - self._written > FRESH / 3
            if due:
                self._written = time.monotonic()
                write_atomic(self._path, json.dumps(now, sort_keys=True).encode())


def running(folder: Folder) -> bool:
    """Whether a coordinator holds this folder."""
    path = folder.state / "lock"
    if not path.exists():
        return False
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read(folder: Folder) -> dict[str, Any]:
    """State for the operator: that of the running coordinator while its word is fresh, else what the disk says."""
    settings, state = folder.settings(), read_state(folder.state)
    contributed = sorted(r.site for r in state.accepted if r.round == state.done + 1)
    found: dict[str, Any] = {
        "federation": settings.name,
        "fingerprint": fingerprint(load_public(folder.keys / "plan.pub")),
        "state": "stopped",
        "rounds_done": state.done,
        "rounds": max(settings.rounds, state.done),  # a release that was pooled again or carried counts, too
        "release": latest(folder.releases).name,
        "open_round": state.open.round if state.open else None,
        "contributed": contributed,
        "code": list(accepted_code(settings)),
        "open_code": list(state.open.code) if state.open else None,
        "sites": {name: "unknown" for name in sorted(Registry(folder.registry).sites())},
        "waiting_for": [],
    }
    path = folder.state / "status.json"
    if running(folder):
        found["state"] = "starting"
        if path.exists():
            live = json.loads(path.read_bytes())
            fresh = time.time() - live["time"] < FRESH
            found["state"] = live["state"] if fresh else "not responding"
            if fresh:
                enrolled = found["sites"]  # the registry is newer than the running coordinator's word
                found["sites"] = {name: live["sites"].get(name, "offline") for name in enrolled}
                found["waiting_for"] = [name for name in live["waiting_for"] if name in enrolled]
    return found


def as_text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [
        f"federation   {found['federation']}  {found['fingerprint']}",
        f"state        {found['state']}",
        f"rounds       {found['rounds_done']} of {found['rounds']} done"
        + (f", round {found['open_round']} open" if found["open_round"] else ""),
        f"release      {found['release']}",
        *(
            f"accepts code {code}{' (of this installation)' if code == contributor_code() else ''}"
            for code in found["code"]
        ),
    ]
    if found["open_code"] is not None and found["open_code"] != found["code"]:
        lines += [f"round {found['open_round']} keeps code {code}, as it was issued" for code in found["open_code"]]
    if found["contributed"]:
        lines.append(f"contributed  {', '.join(found['contributed'])}")
    if found["waiting_for"]:
        lines.append(f"waiting for  {', '.join(found['waiting_for'])}")
    lines += [f"site         {name}: {state}" for name, state in found["sites"].items()] or [
        "site         none enrolled"
    ]
    return "\n".join(lines)
