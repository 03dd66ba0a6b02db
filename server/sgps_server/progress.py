"""What the program says while it runs: plain lines for people, or one JSON object a line for programs."""

import json
import sys
import threading
import time
from typing import Any

_LINES = {
    "listening": "{federation} listens at {url}, gives releases at {releases}; fingerprint {fingerprint}",
    "resumed": "resumes after round {done}; round {round} is open, attempt {attempt} was its last",
    "online": "{site} is online",
    "offline": "{site} is offline",
    "waiting": "round {round} waits for {missing} more site(s); enrolled and not here: {waiting_for}",
    "round_started": "round {round} of {rounds}, attempt {attempt}: {sites}; answers in {answer_in:.0f} s, deadline in {deadline_in:.0f} s",
    "reply": "round {round}: {site} contributed, receipt {receipt}",
    "refusal": "round {round}: {site} refused: {code}",
    "other_code": "{site} says that its code is {site_code}; `code:` in federation.yaml does not accept it",
    "rejected": "round {round}: reply of {site} rejected: {code}",
    "lost": "round {round}: {site} is gone; waiting {patience:.0f} s for it",
    "again": "round {round}: {site} is back and has its order again",
    "attempt_failed": "round {round}, attempt {attempt}: {contributions} of {quorum} contributions; no answer from: {silent}",
    "terms_kept": "round {round} keeps the terms it was issued with; changes of federation.yaml come with the next one",
    "pooled": "round {round}: pooled contributions of {sites}",
    "release": "release {release} written, sha256 {sha256}",
    "done": "DONE: {rounds} round(s), release {release}",
    "serving": "serving release {release} until stopped",
    "lingering": "serving release {release} for {seconds:.0f} s more",
    "fetched": "{site} fetched release {release}",
    "refused": "{site} was refused at the door: {status} {why}",
    "enrolled": "{site} is enrolled",
    "revoked": "{site} is revoked",
    "renewed": "the coordinator's certificate was renewed",
    "stopped": "stopped; start again to go on",
    "ended": "stopped: all rounds are done; start again to serve release {release}",
}


class Progress:
    """Writes to standard output. Safe for several threads."""

    def __init__(self, as_json: bool) -> None:
        self._json, self._lock = as_json, threading.Lock()

    def __call__(self, event: str, **fields: Any) -> None:
        if self._json:
            line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False)
        else:
            words = {k: (", ".join(map(str, v)) or "none") if isinstance(v, list) else v for k, v in fields.items()}
            line = f"{time.strftime('%H:%M:%S')} {_LINES[event].format(**words)}"
        with self._lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
