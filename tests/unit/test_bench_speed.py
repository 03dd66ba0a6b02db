"""`bench.speed` at tiny sizes: its arithmetic, what it takes off a round, and one round at a site through the product's path."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is a folder of the repository, not a package that is installed

from bench import _speed_round, speed, speed_flower, speed_world
from bench.speed_rows import Rows, median, table


def test_the_interval_of_a_median_covers_95_percent_or_is_left_out() -> None:
    assert median([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == {"median": 3.5, "low": 1.0, "high": 6.0}  # 1 - 2 / 64
    nine = median([float(n) for n in range(9)])
    assert (nine["low"], nine["high"]) == (1.0, 7.0)  # 1 - 2 (1 + 9) / 512
    assert median([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0}


def test_a_report_pairs_ratios_and_says_how_much_more_a_round_takes_than_the_peers() -> None:
    rows = Rows()
    for n in range(6):
        rows.note(
            "flower", speed_flower.ROUND.format(payload="tiny"), 2.0 + n, 1.0 + n, floor="stock Flower", peak=3 << 20
        )
    found = rows.to_mapping()
    assert found["tiny: a round, without the wait for answer_at"]["difference"] == {
        "median": 1.0,
        "low": 1.0,
        "high": 1.0,
    }
    assert "| 4.5 s | 2 to 7 | 1.29 | 1.17 to 2.00 | stock Flower | 3 MiB | 6 |" in table(found, "flower")
    told = {
        "release_sha256": "0" * 64, "architecture": "b0", "size": 128, "learned": [], "threads": 1, "cores": 2, "pictures": "drawn", "floor": "",
        "rows": found, "load": {}, "federations": [{"payload": "tiny", "bytes": 12, "rounds": 6, "late": 1}],
    }  # fmt: skip
    assert "Ours less stock Flower: 1.00 s, 1.00 to 1.00." in speed.report(told)


def test_a_round_is_counted_from_release_to_release_without_the_wait_of_the_slower_site(tmp_path: Path) -> None:
    world = object.__new__(speed_world.World)
    world.work, world.answer_after = tmp_path, 4.0
    world.processes = dict.fromkeys(("centre", "north", "south"))  # type: ignore[arg-type]
    centre = [{"event": "release", "round": n, "time": 10.0 * n} for n in (1, 2, 3)]
    started = [
        {"event": "round_started", "round": n, "attempt": a, "time": 0.0} for n, a in ((1, 1), (2, 1), (3, 1), (3, 2))
    ]
    lines = {"centre": [*centre, *started]}
    for site, charged in (("north", 14.0), ("south", 15.5)):
        plan = {"event": "plan", "round": 2, "time": 12.0, "answer_at": 17.0}
        lines[site] = [plan, {"event": "charged", "round": 2, "time": charged}]
    lines["south"].append(
        {"event": "release", "release": "0001", "time": 12.5}
    )  # the plan came before what it starts from
    for name, said in lines.items():
        (tmp_path / f"{name}.log").write_text("".join(json.dumps(line) + "\n" for line in said) + "no JSON\n")
    cycles, late = world.cycles()
    assert cycles == [speed_world.Cycle(seconds=10.0, wait=1.5, site=3.0)]
    assert late == 1  # round 3 took a second attempt


def test_a_round_at_a_site_is_timed_by_part_and_accepted(tmp_path: Path) -> None:
    found = _speed_round.child({"work": str(tmp_path / "world"), "kind": "rows", "patients": 2, "repeats": 2})
    assert len(found["single"]) == len(found["floors"]) == 2
    assert len(found["parts"]) == 2
    for part in found["parts"]:
        assert all(part[name] > 0 for name in ("sum", "ledger", "rest"))
        assert part["whole"] == pytest.approx(part["encode"] + part["sum"] + part["ledger"] + part["rest"], rel=0.01)


def test_every_bench_that_runs_answers_help() -> None:
    """A module that a person may start parses its options; one that another bench starts has a leading underscore."""
    started = [p for p in (ROOT / "bench").glob("[!_]*.py") if 'if __name__ == "__main__"' in p.read_text()]
    assert started and [p.name for p in started if not re.search("ArgumentParser|on_public_sets", p.read_text())] == []
