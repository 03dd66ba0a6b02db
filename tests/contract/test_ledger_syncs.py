"""Power loss cannot be tried here; the order in which the kernel is asked to make things durable can be seen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sgps_privacy

PROGRAM = """
import os, sys
from pathlib import Path
from sgps_privacy.events import Event
from sgps_privacy.ledger import Ledger, Order
with Ledger(Path(sys.argv[1])) as ledger:
    ledger.open_cohort("a", ["1"], 8.0, 1e-5)
    def train():
        os.mkdir(sys.argv[1] + "/marker-train")
        return b"x"
    os.mkdir(sys.argv[1] + "/marker-answer")
    ledger.answer(Order("f", 1, "p", "rows", Event(5.0, 1.0, 1), 1.0, "a"), train)
    os.mkdir(sys.argv[1] + "/marker-sent")
"""


def traced(folder: Path) -> list[str]:
    """What was synced, renamed, unlinked or marked, in order, with the names of files shortened to their kind."""
    log = folder.with_suffix(".strace")
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat"
    command = ["strace", "-f", "-y", "-e", calls, "-o", str(log), sys.executable, "-c", PROGRAM, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(sgps_privacy.__path__[0]).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if "ptrace" in done.stderr:
        pytest.skip("this machine does not let a process be traced")
    assert done.returncode == 0, done.stderr
    found = []
    for line in log.read_text().splitlines():
        call = re.search(r"\b(f(?:data)?sync|rename\w*|unlink\w*|mkdir\w*)\(", line)
        if call is None or str(folder) not in line:
            continue
        word = "sync" if call[1].endswith("sync") else re.match("rename|unlink|mkdir", call[1])[0]  # type: ignore[index]
        names = re.findall(r"[<\"](" + re.escape(str(folder)) + r"[^>\"]*)[>\"]", line)
        name = names[-1].removeprefix(str(folder)).strip("/") or "folder"
        found.append(f"{word} {re.sub('[0-9a-f]{64}', 'HASH', name)}")
    return found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_charge_outbox_and_commit_are_durable_one_after_the_other(tmp_path: Path) -> None:
    calls = traced(tmp_path / "ledger")
    start, train, sent = (calls.index(f"mkdir marker-{word}") for word in ("answer", "train", "sent"))
    charge, rest = calls[start + 1 : train], calls[train + 1 : sent]
    transaction = ["sync ledger.sqlite", "unlink ledger.sqlite-journal", "sync folder"]
    assert charge[-3:] == transaction and charge[0] == "sync ledger.sqlite-journal"
    renamed = rest.index("rename outbox/HASH.out")
    assert rest[renamed - 1 : renamed + 2] == ["sync outbox/HASH.tmp", "rename outbox/HASH.out", "sync outbox"]
    assert rest[renamed + 2] == "sync ledger.sqlite-journal" and rest[-3:] == transaction
