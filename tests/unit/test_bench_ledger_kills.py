"""The bench of kills runs the simulator of the tests, counts what it saw and fails where a promise is broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_few_kills_of_ledger_engine_and_sender_and_every_broken_ledger_found(tmp_path: Path) -> None:
    paths = [ROOT, *(ROOT / part for part in ("sgps", "privacy", "client", "server"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.ledger_kills", "--out", str(tmp_path), "--kills", "8"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["figures"]["kills"] == sum(found["stages"].values()) == 8
    assert found["figures"]["trained"] <= found["figures"]["charged"] and not found["wrong"]
    assert len(found["faults"]) == 5 and all(fault["found by"] for fault in found["faults"])
    assert all(point["killed"] for point in found["points"])
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["results.json", "results.md"]
    assert "Promises broken: none" in (tmp_path / "results.md").read_text()


def test_a_broken_promise_is_reported() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from bench.ledger_kills import FIGURES, PROMISES, report
    finally:
        sys.path.remove(str(ROOT))
    found = {
        "figures": {n: 1 for n in ("kills", "ledgers", *FIGURES)}, "stages": {"engine": 1}, "wrong": ["P2 round 3 trained 2 times"],
        "broken": ["P2"], "faults": [{"ledger": "X", "what": "y", "kills": 400, "found by": []}], "points": [], "seed": 1, "seconds": 60,
    }  # fmt: skip
    text = report(found)
    assert "P2 round 3 trained 2 times" in text and "**nobody**" in text
    assert [f"{p} {PROMISES[p]} | no" in text for p in PROMISES] == [p == "P2" for p in PROMISES]
