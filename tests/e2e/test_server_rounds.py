"""Rounds of real processes over mutual TLS on loopback: whole, with bad replies, with kills."""

import hashlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import fake_site
import federation as fed
from safetensors.numpy import load, save

from sgps.memory import COUNTS, ROWS, Contribution, pool
from sgps.release import FILES, GENERATOR, MANIFEST, MEMORY, SIGNATURE, Release
from sgps.signing import load_public
from sgps_privacy import statement
from sgps_server.checkpoint import read_state

pytestmark = [pytest.mark.enable_socket, pytest.mark.slow]
Make = Callable[..., fed.Federation]
BAD = {
    "nan": "not_finite",
    "shape": "shape",
    "name": "names",
    "norm": "norm",
    "code": "code",
    "signature": "statement_signature",
    "facts": "statement_facts",
    "budget": "budget",
}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., fed.Federation]]:
    """Makes a federation in the test's folder; its processes end with the test."""
    made: list[fed.Federation] = []

    def new(**settings: object) -> fed.Federation:
        made.append(fed.Federation(tmp_path, **settings))
        return made[-1]

    yield new
    for found in made:
        found.close()


def outbox(f: fed.Federation, site: str) -> dict[str, np.ndarray]:
    (file,) = (f.work / site / "outbox").iterdir()
    return load(file.read_bytes())


def opened(f: fed.Federation, name: str) -> Release:
    return Release.open(f.folder.releases / name, key=load_public(f.folder.keys / "plan.pub"))


def test_two_rounds_give_two_signed_releases_pooled_from_all_contributions(make: Make) -> None:
    f = make(rounds=2)
    for name in ("north", "south"):
        f.enrol(name)
    coordinator = f.start()
    for name in ("north", "south"):
        f.start_site(name)
    f.wait(lambda: f.events("serving"))
    north, folder = fake_site.Identity(f.work / "north"), f.folder.releases / "0002"
    status = north.ask("Status")
    assert (status.state, status.round, status.rounds, status.latest.name) == ("done", 2, 2, "0002")
    assert dict(status.sites) == {"north": "online", "south": "online"}
    assert [r.name for r in north.ask("List").releases] == ["0000", "0001", "0002"]
    for file in FILES:
        pieces = north.ask("Pull", release=status.latest, file=file)
        assert b"".join(piece.data for piece in pieces) == (folder / file).read_bytes()
    shown = north.ask("Inspect", name="0002")
    assert (shown.manifest, shown.signature) == ((folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes())
    assert hashlib.sha256(shown.manifest).hexdigest() == status.latest.sha256
    head = json.loads(north.ask("AuditHead").text)
    assert (head["head"], head["lines"]) == (f.audit()[-1]["sha256"], len(f.audit()))
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait(300) == 0

    release = opened(f, "0002")
    sigma = float(release.manifest.rounds[0].terms["sigma"])
    parts = [load(p.read_bytes()) for site in ("north", "south") for p in (f.work / site / "outbox").iterdir()]
    assert len(parts) == 4  # two rounds, two sites
    expected = pool(
        release.memory().coordinates, release.manifest.classes, [Contribution(p[ROWS], p[COUNTS], sigma) for p in parts]
    )
    assert np.allclose(release.memory().total, expected.total)
    assert np.allclose(release.memory().count, expected.count)
    assert [r.sites for r in release.manifest.rounds] == [("north", "south")] * 2
    first = opened(f, "0001")
    assert (first.folder / GENERATOR).read_bytes() == (release.folder / GENERATOR).read_bytes()
    assert (first.folder / MEMORY).read_bytes() != (release.folder / MEMORY).read_bytes()
    assert first.manifest.encoder_sha256 == release.manifest.encoder_sha256
    entry = release.manifest.statements["north"][1]
    assert entry["round"] == "2"
    statement.check(json.loads(entry["text"]))
    assert json.loads(entry["text"])["plan_hash"] == f.audit("issued")[1]["plan"]

    second_plan = f.site_events("north", "plan")[1]
    assert (
        second_plan["echo"] == f.audit("contribution")[0]["receipt"]
        or second_plan["echo"] == f.audit("contribution")[1]["receipt"]
    )
    assert "lines follow" in fed.server("audit", "verify", "--config", f.folder.config).stdout
    assert json.loads(fed.server("status", "--json", "--config", f.folder.config).stdout)["rounds_done"] == 2
    fed.server("releases", "export", f.work / "usb", "--config", f.folder.config)
    assert Release.open(f.work / "usb", key=load_public(f.folder.keys / "plan.pub")).sha256 == release.sha256


def test_a_coordinator_killed_in_mid_round_completes_it_with_the_same_bytes(make: Make) -> None:
    f = make(answer_after=4, patience=10)
    for name in ("north", "south"):
        f.enrol(name)
    coordinator = f.start("--linger", 0)
    for name in ("north", "south"):
        f.start_site(name)
    f.wait(lambda: all(f.site_events(name, "made") for name in ("north", "south")))
    coordinator.kill()
    coordinator.wait()
    assert not f.events("reply")
    before = {name: outbox(f, name)[ROWS].tobytes() for name in ("north", "south")}
    again = f.start("--linger", 0)
    assert again.wait(240) == 0
    assert f.events("resumed")[0]["attempt"] == 1
    issued = f.audit("issued")
    assert [e["attempt"] for e in issued] == [1, 2]
    assert issued[0]["plan"] == issued[1]["plan"]
    for name in ("north", "south"):
        assert len(f.site_events(name, "made")) == 1
        assert len(f.site_events(name, "resent")) >= 1
        stored = load((f.folder.state / "contributions" / f"0001.{name}.safetensors").read_bytes())
        assert stored[ROWS].tobytes() == before[name]
    assert opened(f, "0001").manifest.rounds[0].sites == ("north", "south")
    fed.server("audit", "verify", "--config", f.folder.config)


def test_kills_at_random_moments_lose_nothing_and_change_no_byte(make: Make) -> None:
    """Five rounds, which take longer than its first life; the coordinator dies up to eight times, anywhere in its life."""
    f, rng = make(rounds=5, answer_after=1, patience=30), random.Random(20)
    for name in ("north", "south"):
        f.enrol(name)
        f.start_site(name)
    kills = 0
    while True:
        coordinator = f.start("--linger", 0)
        if kills == 8:
            assert coordinator.wait(300) == 0
            break
        try:
            assert coordinator.wait(rng.uniform(2.5, 6)) == 0
            break
        except subprocess.TimeoutExpired:
            coordinator.kill()
            coordinator.wait()
            kills += 1
    assert kills
    for name in ("north", "south"):
        assert len(f.site_events(name, "made")) == 5
        stored = sorted(
            hashlib.sha256(p.read_bytes()).hexdigest() for p in (f.folder.state / "contributions").glob(f"*.{name}.*")
        )
        sent = {
            hashlib.sha256(save(dict(sorted(load(p.read_bytes()).items())))).hexdigest()
            for p in (f.work / name / "outbox").iterdir()
        }
        assert set(stored) == sent
    rounds = opened(f, "0005").manifest.rounds
    assert [r.sites for r in rounds] == [("north", "south")] * 5
    by_round = {n: {e["plan"] for e in f.audit("issued") if e["round"] == n} for n in range(1, 6)}
    assert [len(plans) for plans in by_round.values()] == [1] * 5
    fed.server("audit", "verify", "--config", f.folder.config)


def test_a_contribution_that_arrived_before_the_kill_is_not_asked_for_again(make: Make) -> None:
    f = make(answer_after=1, patience=30)
    for name in ("north", "south"):
        f.enrol(name)
    coordinator = f.start("--linger", 0)
    f.start_site("north")
    silent = f.start_site("south", "--fault", "silent")
    f.wait(lambda: f.events("reply"))
    coordinator.kill()
    coordinator.wait()
    silent.kill()
    silent.wait()
    f.start_site("south")
    again = f.start("--linger", 0)
    assert again.wait(240) == 0
    assert f.audit("issued")[-1]["sites"] == ["south"]
    assert len(f.site_events("north", "plan")) == 1
    assert opened(f, "0001").manifest.rounds[0].sites == ("north", "south")


def test_settings_changed_while_a_round_is_open_wait_for_the_next_one(make: Make) -> None:
    """Sites that answered hold bytes for the first terms; other terms would be another plan for the same round."""
    f = make(answer_after=4, patience=10)
    for name in ("north", "south"):
        f.enrol(name)
    coordinator = f.start("--linger", 0)
    for name in ("north", "south"):
        f.start_site(name)
    f.wait(lambda: f.events("round_started"))
    coordinator.kill()
    coordinator.wait()
    f.write_settings(epsilon=1.0)
    assert f.start("--linger", 0).wait(240) == 0
    assert f.events("terms_kept")
    assert len({e["plan"] for e in f.audit("issued")}) == 1


def test_a_site_that_withdrew_is_in_no_release_from_the_next_one_on(make: Make) -> None:
    f = make(quorum=2, wait_for=3)
    for name in ("north", "south", "west"):
        f.enrol(name)
    coordinator = f.start("--linger", 0)
    for name in ("north", "south", "west"):
        f.start_site(name)
    assert coordinator.wait(240) == 0
    said = json.loads(fed.server("sites", "withdraw", "north", "--json", "--config", f.folder.config).stdout)
    assert said == {"site": "north", "withdrawn": True, "rounds": [1]}
    f.write_settings(rounds=2, wait_for=2)
    assert f.start("--linger", 0).wait(240) == 0

    first, second = opened(f, "0001"), opened(f, "0002")
    assert [r.sites for r in first.manifest.rounds] == [("north", "south", "west")]  # what is out stays as it is
    assert [r.sites for r in second.manifest.rounds] == [("south", "west")] * 2
    assert set(second.manifest.statements) == {"south", "west"}
    sigma = float(second.manifest.rounds[0].terms["sigma"])
    parts = [load(p.read_bytes()) for site in ("south", "west") for p in (f.work / site / "outbox").iterdir()]
    kept = [Contribution(p[ROWS], p[COUNTS], sigma) for p in parts]
    assert len(kept) == 4
    assert np.allclose(second.memory().total, pool(first.memory().coordinates, first.manifest.classes, kept).total)
    assert [e["rounds"] for e in f.audit("withdrawn")] == [[1]]
    csr = f.work / "north" / "north.csr"
    again = fed.server("sites", "approve", csr, "--config", f.folder.config, "--out", f.work / "again.kit", fails=True)
    assert "was withdrawn" in again.stderr
    assert "no site nobody" in fed.server("sites", "withdraw", "nobody", "--config", f.folder.config, fails=True).stderr


def test_bad_replies_are_rejected_audited_and_do_not_stop_the_round(make: Make) -> None:
    f = make(wait_for=2 + len(BAD), patience=60, answer_after=3)
    for name in ("north", "south", *BAD):
        f.enrol(name)
    coordinator = f.start("--linger", 0)
    for name in ("north", "south"):
        f.start_site(name)
    for fault in BAD:
        f.start_site(fault, "--fault", fault)
    assert coordinator.wait(300) == 0
    assert {e["site"]: e["code"] for e in f.audit("rejected", "refusal")} == BAD
    assert [e["site"] for e in f.audit("refusal")] == ["budget"]  # the site's own no, not a fault
    release = opened(f, "0001")
    assert release.manifest.rounds[0].sites == ("north", "south")
    assert set(release.manifest.statements) == {"north", "south"}
    assert np.isfinite(release.memory().total).all()
    assert set(read_state(f.folder.state).receipts) == {"north", "south", *BAD} - {"budget"}
    fed.server("audit", "verify", "--config", f.folder.config)


def test_a_site_lost_in_a_round_gets_its_order_again_when_it_is_back(make: Make) -> None:
    f = make(answer_after=1, patience=45, deadline_after=90)
    for name in ("north", "south"):
        f.enrol(name)
    coordinator = f.start("--linger", 0)
    f.start_site("north")
    silent = f.start_site("south", "--fault", "silent")
    f.wait(lambda: f.events("reply"))
    silent.kill()
    f.wait(lambda: f.events("lost"), 120)  # Flower counts a silent node as gone after two missed beats
    f.start_site("south")
    assert coordinator.wait(240) == 0
    assert f.events("again")
    assert [e["attempt"] for e in f.audit("issued")] == [1]


def test_without_a_quorum_the_program_ends_with_an_error_and_the_next_start_goes_on(make: Make) -> None:
    f = make(attempts=1, deadline_after=4, patience=1)
    for name in ("north", "south"):
        f.enrol(name)
    coordinator = f.start("--linger", 0)
    f.start_site("north")
    silent = f.start_site("south", "--fault", "silent")
    assert coordinator.wait(60) == 7
    assert "round 1 has 1 of 2 contributions" in (f.work / "server.log").read_text()
    assert f.audit("silent")[0]["site"] == "south"
    silent.kill()
    silent.wait()
    f.start_site("south")
    f.write_settings(deadline_after=60, patience=20)
    assert f.start("--linger", 0).wait(240) == 0
    assert len(f.site_events("north", "made")) == 1


def test_a_round_that_too_many_refused_ends_at_once_and_says_who_and_why(make: Make) -> None:
    f = make(answer_after=2)
    for name in ("north", "south"):
        f.enrol(name)
    coordinator = f.start("--linger", 0)
    f.start_site("north")
    f.start_site("south", "--fault", "budget")
    assert coordinator.wait(60) == 7
    said = (f.work / "server.log").read_text()
    assert "round 1 has 1 of 2 contributions and cannot get more; no from south: budget" in said
    assert len(f.audit("issued")) == 1


def test_ctrl_c_while_it_waits_stops_cleanly_and_names_who_was_missing(make: Make) -> None:
    f = make()
    for name in ("north", "south"):
        f.enrol(name)
    coordinator = f.start()
    f.start_site("north")
    f.wait(lambda: f.events("online"))
    f.wait(lambda: any(e["waiting_for"] == ["south"] for e in f.events("waiting")))
    status = json.loads(fed.server("status", "--json", "--config", f.folder.config).stdout)
    assert (status["state"], status["waiting_for"], status["sites"]["north"]) == ("waiting", ["south"], "online")
    second = fed.server("--config", f.folder.config, fails=True)
    assert second.returncode == 7
    assert "another process" in second.stderr
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait(120) == 130
    assert json.loads(fed.server("status", "--json", "--config", f.folder.config).stdout)["state"] == "stopped"


def test_a_receiving_site_is_never_asked_but_is_served(make: Make) -> None:
    f = make(quorum=1)
    f.enrol("north")
    f.enrol("west", "--receive")
    coordinator = f.start()
    f.start_site("north")
    f.start_site("west")
    f.wait(lambda: f.events("serving"))
    assert fake_site.Identity(f.work / "west").ask("Status").latest.name == "0001"
    assert f.site_events("west", "plan") == []
    assert f.audit("issued")[0]["sites"] == ["north"]
    coordinator.send_signal(signal.SIGTERM)
    assert coordinator.wait(300) == 0
    assert f.events()[-1] == {"event": "ended", "time": f.events()[-1]["time"], "release": "0001"}
