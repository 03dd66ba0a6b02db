"""What the client says: allowed keys only, one JSON object a line."""

import json
import stat
from pathlib import Path

import pytest

from sgps_client import log


def test_only_allowed_keys_reach_log_and_terminal(tmp_path: Path) -> None:
    said: list[str] = []
    with log.reporting(log.JsonReport(tmp_path / "log" / "client.jsonl", said.append, site="north")):
        log.current()("plan", "round 1: plan received", round=1, patient="p17", file="scan.dcm")
    (line,) = (tmp_path / "log" / "client.jsonl").read_text().splitlines()
    for found in (json.loads(line), json.loads(said[0])):
        assert found["event"] == "plan"
        assert found["round"] == 1
        assert found["site"] == "north"
        assert not {"patient", "file"} & set(found)
    assert "p17" not in line + said[0]
    assert stat.S_IMODE((tmp_path / "log" / "client.jsonl").stat().st_mode) == 0o600


def test_the_log_is_for_its_owner_only_also_after_it_was_turned_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "FILE_BYTES", 500)
    with log.reporting(log.Report(tmp_path / "client.jsonl")) as report:
        for _ in range(12):
            report("trouble", "x" * 50)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert len(modes) > 2 and set(modes.values()) == {0o600}
    assert (tmp_path / "client.jsonl.1").read_text().count("\n") > 1


def test_a_person_reads_the_line(tmp_path: Path) -> None:
    said: list[str] = []
    with log.reporting(log.Report(tmp_path / "client.jsonl", said.append)) as report:
        report("offline", "no answer", bad=True, retry=0.5)
    assert said[0].endswith("no answer")
    assert json.loads((tmp_path / "client.jsonl").read_text())["level"] == "warning"


def test_what_is_seldom_said_is_said_again_when_it_changed_or_after_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    report, now = log.Report(None, said.append), [1000.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    for line, attempt in (("a", 1), ("a", 1), ("a", 2), ("b", 2), ("b", 2), ("a", 1)):
        report("plan", line, seldom=True, attempt=attempt)
        report("failed", "x", seldom=True)
    assert [line[-1] for line in said] == ["a", "x", "a", "b", "a"]
    now[0] += log.HOUR
    report("failed", "x", seldom=True)
    assert len(said) == 6


def test_without_a_command_nothing_is_said_and_nothing_fails() -> None:
    log.current()("plan", "round 1", round=1)
