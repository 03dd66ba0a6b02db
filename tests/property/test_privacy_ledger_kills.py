"""A hundred kills at random moments and one at each named point; broken ledgers are found by the same comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sgps_privacy

SCRIPT = Path(__file__).parents[1] / "simulators/ledger_kills.py"


def killed(*words: object) -> dict[str, Any]:
    """The verdict of `tests/simulators/ledger_kills.py`, which forks from a small process of its own."""
    package = Path(sgps_privacy.__path__[0]).parent
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict


@pytest.mark.parametrize(
    ("place", "held", "again"),
    [
        ("before CHARGE", [], "second"),
        ("inside the CHARGE transaction", [], "second"),
        ("after CHARGE", ["CHARGE"], "round_lost"),
        ("before the outbox file", ["CHARGE"], "round_lost"),
        ("temporary file written, not renamed", ["CHARGE"], "round_lost"),
        ("outbox renamed, before COMMIT", ["CHARGE"], "first"),
        ("after COMMIT, before sending", ["CHARGE", "COMMIT"], "first"),
    ],
)
def test_a_kill_at_a_named_point(tmp_path: Path, place: str, held: list[str], again: str) -> None:
    assert killed("point", tmp_path, place) == {"killed": True, "held": held, "again": again, "charges": 1}


@pytest.mark.slow
def test_a_hundred_random_kills_break_no_promise(tmp_path: Path) -> None:
    """Ledger, engine, outbox and sender; `python -m bench.ledger_kills` does a thousand."""
    verdict = killed("random", tmp_path / "work", "Ledger", 100, 200, 1, "engine")
    assert not verdict["wrong"]
    figures = verdict["figures"]
    assert figures["kills"] >= 100 or figures["budget reached"]
    assert figures["charged"] > 20 and figures["committed"] > 10 and figures["answers whole on the wire"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ChargesLate", "ChargesAfterSending", "TrainsAgain", "SendsEarly", "OutboxInPlace"])
def test_a_broken_ledger_is_caught(tmp_path: Path, kind: str) -> None:
    assert killed("random", tmp_path / "work", kind, 1000, 120, 1)["wrong"]
