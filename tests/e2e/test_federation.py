"""A whole federation of real processes on loopback: coordinator and clients, mutual TLS, real images, kills, forged plans."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import federation as fed
import installation
import site_bench

from sgps.code import contributor_code
from sgps.memory import COUNTS, ROWS, Contribution, pool
from sgps.release import Release
from sgps.signing import load_private, load_public
from sgps_client.config import Site
from sgps_client.round import open_ledger
from sgps_privacy import egress

pytestmark = [pytest.mark.enable_socket, pytest.mark.slow, pytest.mark.timeout(600)]


def client(*arguments: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sgps_client.cli", *map(str, arguments)]
    done = subprocess.run(command, env=fed.environment(), capture_output=True, text=True, timeout=120, check=False)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done


class Federation(fed.Federation):
    """A coordinator with the small release of `site_bench`, and clients of their own."""

    def __init__(self, work: Path, **settings: Any) -> None:
        self.processes, self.serving = [], list[subprocess.Popen[bytes]]()
        self.original = fed.tiny_release.make
        fed.tiny_release.make = lambda target: site_bench.make_release(target, None)  # type: ignore[assignment]
        try:
            super().__init__(
                work, **{"answer_after": 6, "deadline_after": 30, "attempts": 20, "patience": 5, **settings}
            )
        finally:
            fed.tiny_release.make = self.original

    def coordinate(self, *command: str) -> None:
        """Starts the coordinator, and again whenever it ends: it gives up a round that cannot be completed any more."""
        settings = ["--config", str(self.folder.config), "--json", "--linger", "180"]
        self.coordinator = [sys.executable, *(command or ("-m", "sgps_server.cli")), *settings]
        self.tick()

    def tick(self) -> None:
        if getattr(self, "coordinator", None) and (not self.serving or self.serving[-1].poll() is not None):
            with (self.work / "server.log").open("ab") as log:
                self.serving.append(subprocess.Popen(self.coordinator, env=fed.environment(), stdout=log, stderr=log))
            self.processes.append(self.serving[-1])

    def wait(self, what: Callable[[], Any], seconds: float = 450) -> Any:
        """As long as a busy machine takes."""

        def look() -> Any:
            self.tick()
            return what()

        return super().wait(look, seconds)

    def ended(self, *processes: subprocess.Popen[bytes]) -> list[int | None]:
        self.wait(lambda: all(p.poll() is not None for p in processes))
        return [p.returncode for p in processes]

    def site(self, name: str, **changes: Any) -> Site:
        """Enrols a site with five patients, through the command lines of both ends."""
        folder = self.work / name
        folder.mkdir()
        client("enroll", name, "--folder", folder)
        role = ["--receive"] if changes.get("role") == "receive" else []
        fed.server(
            "sites",
            "approve",
            folder / f"{name}.csr",
            "--config",
            self.folder.config,
            "--out",
            folder / "site.kit",
            *role,
        )
        client("enroll", "--kit", folder / "site.kit", "--folder", folder)
        written = Site.load(folder / "site.yaml").config if role else None
        mark = written.federation.fingerprint if written else load_mark(self)
        site_bench.draw_patients(folder, first=100 * len(list(self.work.glob("*/site.kit"))))
        bench = site_bench.Bench(folder, load_private(self.folder.keys / "plan.key"), mark)
        bench.write(url=f"https://localhost:{self.port}", **{"site": name, **changes})
        return bench.site

    def run(
        self, site: Site, *options: str, environment: dict[str, str] | None = None,
        program: tuple[str, ...] = ("-m", "sgps_client.cli"),
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """environment: of another installation of the client. program: the client, or one that does something to it first."""
        command = [sys.executable, *program, "start", "--config", str(site.file), "--json", *options]
        with (site.folder / "out.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment or fed.environment(), stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def said(self, site: Site, *names: str) -> list[dict[str, Any]]:
        path = site.folder / "out.log"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [e for e in found if not names or e["event"] in names]


def load_mark(f: fed.Federation) -> str:
    from sgps.signing import fingerprint

    return fingerprint(load_public(f.folder.keys / "plan.pub"))


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    made: list[Federation] = []
    original = Federation.__init__

    def remember(self: Federation, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        original(self, *args, **kwargs)

    Federation.__init__ = remember  # type: ignore[method-assign]
    yield tmp_path
    Federation.__init__ = original  # type: ignore[method-assign]
    for found in made:
        found.close()


def entries(site: Site) -> list[str]:
    with open_ledger(site) as ledger:
        return [e["kind"] for e in ledger.history()]


def sent(site: Site) -> egress.Reply:
    (file,) = (site.state / "outbox").glob("*.out")
    return egress.decode(file.read_bytes()[32:])


def test_two_sites_contribute_one_receives_and_all_end_with_the_same_release(work: Path) -> None:
    """South is upgraded already and its code is listed; east runs code that nobody knows."""
    new, strange = (installation.Installation(work / name, name) for name in ("new", "strange"))
    codes = {"north": contributor_code(), "south": new.code(), "east": strange.code()}
    assert len({*codes.values()}) == 3
    f = Federation(work, code=[codes["south"]], wait_for=3, patience=300)
    north, south, east = f.site("north"), f.site("south"), f.site("east")
    west = f.site("west", role="receive", slots=None, cohorts=None)
    coordinator = f.start("--linger", 180)
    running = [f.run(north), f.run(west), f.run(south, environment=new.environment)]
    running.append(f.run(east, environment=strange.environment))
    assert f.ended(*running) == [0, 0, 0, 0]
    assert {s.name: sent(s).code_hash for s in (north, south)} == {n: codes[n] for n in ("north", "south")}
    assert entries(east) == ["COHORT"]
    assert [e["code"] for e in f.said(east, "refused")] == ["plan_code"]
    assert [(e["site"], e["code"], e["site_code"]) for e in f.audit("refusal")] == [
        ("east", "plan_code", codes["east"])
    ]
    assert [(e["site"], e["site_code"]) for e in f.events("other_code")] == [("east", codes["east"])]
    release = Release.open(f.folder.releases / "0001", key=load_public(f.folder.keys / "plan.pub"))
    for site in (north, south, west):
        there = Release.open(site.releases / "0001", key=load_public(site.plan_key))
        assert there.sha256 == release.sha256
        assert f.said(site, "done")
    for site in (north, south):
        assert entries(site) == ["COHORT", "CHARGE", "COMMIT"]
        assert [e["event"] for e in f.said(site) if e["event"] in {"plan", "charged", "answered"}] == [
            "plan",
            "charged",
            "answered",
        ]
    assert not (west.state / "ledger.sqlite").exists()
    assert not f.said(west, "plan", "charged", "answered")
    sigma = float(release.manifest.rounds[0].terms["sigma"])
    parts = [Contribution(sent(s).arrays[ROWS], sent(s).arrays[COUNTS], sigma) for s in (north, south)]
    expected = pool(release.memory().coordinates, release.manifest.classes, parts)
    assert np.allclose(release.memory().total, expected.total)
    shown = client("inspect", north.releases / "0001", "--config", north.file, "--json")
    found = json.loads(shown.stdout)
    assert found["problems"] == []
    assert found["contributors"] == {"north": [1], "south": [1]}
    assert all(p["epsilon"] <= 3.0 < p["epsilon_rdp"] for p in found["privacy"])
    assert json.loads(client("ledger", "verify", "--config", north.file, "--json").stdout)["ok"]
    checked = json.loads(client("check", "--config", north.file, "--json").stdout)
    assert checked["ok"], checked
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait(300) == 0


def test_a_client_killed_after_its_charge_sends_the_same_bytes_in_the_same_attempt(work: Path) -> None:
    f = Federation(work, answer_after=8, deadline_after=120)
    north, south = f.site("north"), f.site("south")
    f.start("--linger", 180)
    first, other = f.run(north), f.run(south)
    f.wait(lambda: f.said(north, "charged"))
    first.kill()  # between outbox and answer: it waits for answer_at
    first.wait()
    payload = sent(north)
    assert f.ended(f.run(north), other) == [0, 0]
    assert f.said(north, "resend")
    assert entries(north) == ["COHORT", "CHARGE", "COMMIT"]
    assert egress.encode(sent(north)) == egress.encode(payload)
    assert [e["attempt"] for e in f.said(south, "plan")] == [1]


def test_a_client_killed_before_its_charge_trains_afterwards(work: Path) -> None:
    f = Federation(work, answer_after=8)
    north, south = f.site("north"), f.site("south")
    f.start("--linger", 180)
    first, other = f.run(north), f.run(south)
    f.wait(lambda: f.said(north, "ready"))
    first.kill()
    first.wait()
    assert "CHARGE" not in entries(north)
    assert f.ended(f.run(north), other) == [0, 0]
    assert entries(north) == ["COHORT", "CHARGE", "COMMIT"]


SLOW = """
import time
from sgps_client import round as rounds
from sgps_client.cli import main
real = rounds._trainer
def slow(site, plan, *rest):
    train = real(site, plan, *rest)
    def late():
        payload = train()
        time.sleep(max(0.0, plan.answer_at + 0.5 - time.time()))
        return payload
    return late
rounds._trainer = slow
main()
"""


def test_a_sum_that_is_late_leaves_at_the_moment_of_the_next_attempt(work: Path) -> None:
    f = Federation(work, quorum=1, answer_after=5, deadline_after=9)
    north = f.site("north")
    f.coordinate()
    assert f.ended(f.run(north, program=("-c", SLOW))) == [0]
    assert entries(north) == ["COHORT", "CHARGE", "COMMIT"]
    assert any("it is kept, and goes with a later attempt" in e["line"] for e in f.said(north, "failed"))
    (arrived,), silent = f.audit("contribution"), f.audit("silent")
    assert f.said(north, "resend") and silent and silent[-1]["attempt"] < arrived["attempt"]
    moment = next(e["answer_at"] for e in f.said(north, "plan") if e["attempt"] == arrived["attempt"])
    assert moment - 0.01 <= arrived["time"]
    pooled = Release.open(f.folder.releases / "0001", key=load_public(f.folder.keys / "plan.pub"))
    assert pooled.manifest.rounds[0].sites == ("north",)


def test_a_round_lost_between_charge_and_outbox_is_refused_until_the_officer_forgives(work: Path) -> None:
    f = Federation(work, quorum=2, attempts=50, deadline_after=20)
    north, south = f.site("north"), f.site("south")
    code = (
        "import sys, os; from sgps_client import round as r; r._noised = lambda *a: os._exit(9)\n"
        "sys.argv = ['sgps-client', 'start', '--config', sys.argv[1], '--json']; from sgps_client.cli import main; main()"
    )
    f.coordinate()
    other = f.run(south)
    dies = subprocess.Popen(
        [sys.executable, "-c", code, str(north.file)], env=fed.environment(), stdout=subprocess.DEVNULL
    )
    f.processes.append(dies)
    assert f.ended(dies) == [9]
    assert entries(north) == ["COHORT", "CHARGE"]
    again = f.run(north)
    refused = f.wait(lambda: [e for e in f.said(north, "refused") if e["code"] == "round_lost"])
    assert refused[0]["round"] == 1
    f.wait(
        lambda: any(
            e["attempt"] > 1 and e["time"] < f.said(north, "refused")[-1]["time"] for e in f.said(north, "plan")
        )
    )
    done = client("ledger", "forgive", 1, "--officer", "Dr Officer", "--config", north.file, "--json")
    assert json.loads(done.stdout)["forgiven"] == 1
    assert f.ended(again, other) == [0, 0]
    assert entries(north) == ["COHORT", "CHARGE", "FORGIVE", "CHARGE", "COMMIT"]


def test_a_coordinator_killed_while_sites_wait_gets_the_same_bytes_afterwards(work: Path) -> None:
    f = Federation(work, answer_after=8)
    north, south = f.site("north"), f.site("south")
    coordinator = f.start("--linger", 180)
    running = [f.run(north), f.run(south)]
    f.wait(lambda: f.said(north, "charged") and f.said(south, "charged"))
    coordinator.kill()
    coordinator.wait()
    time.sleep(1)
    f.start("--linger", 180)
    assert f.ended(*running) == [0, 0]
    for site in (north, south):
        assert entries(site) == ["COHORT", "CHARGE", "COMMIT"]
        assert f.said(site, "resend")


FORGED = """
import sys, time
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sgps.plan import SignedPlan
from sgps_server import plans
real, kinds = plans.PlanOffice.plan, ("altered", "other key", "expired", "other site", "beyond limits")
def forged(self, round, attempt, *rest, **more):
    plan, signed = real(self, round, attempt, *rest, **more)
    now, key = time.time(), self._key
    past = {"issued": now - 30, "answer_at": now - 20, "deadline": now - 10}
    def make():
        match kinds[attempt - 1] if attempt <= len(kinds) else "":
            case "altered":
                return SignedPlan(text=signed.text.replace('"attempt":1', '"attempt":2'), signature=signed.signature)
            case "other key":
                return plan.sign(Ed25519PrivateKey.generate())
            case "expired":
                return plan.model_copy(update=past).sign(key)
            case "other site":
                return plan.model_copy(update={"sites": ("elsewhere",)}).sign(key)
            case "beyond limits":
                return plan.model_copy(update={"terms": {**plan.terms, "sigma": 0.5}}).sign(key)
        return signed
    return plan, make()
plans.PlanOffice.plan = forged
from sgps_server.cli import main
main()
"""


def test_forged_plans_are_refused_over_the_wire_and_cost_nothing(work: Path) -> None:
    f = Federation(work, answer_after=5, attempts=20)
    north, south = f.site("north"), f.site("south")
    f.coordinate("-c", FORGED)
    assert f.ended(f.run(north), f.run(south)) == [0, 0]
    for site in (north, south):
        codes = [e["code"] for e in f.said(site, "refused")]
        assert codes == ["plan_signature", "plan_signature", "plan_time", "plan_site", "plan_sigma"]
        assert entries(site) == ["COHORT", "CHARGE", "COMMIT"]
        assert f.said(site, "charged")[0]["time"] > f.said(site, "refused")[-1]["time"]


def test_a_stopped_client_ends_cleanly_and_a_second_one_is_refused(work: Path) -> None:
    f = Federation(work)
    north = f.site("north")
    f.start()
    first = f.run(north)
    f.wait(lambda: f.said(north, "attached"))
    second = client("start", "--config", north.file, fails=True)
    assert second.returncode == 7
    assert "another `sgps-client start`" in second.stderr
    first.send_signal(signal.SIGINT)
    assert first.wait(120) == 130
    assert f.said(north, "stopped")
    assert not (north.state / "inflight").exists()
    assert not (north.state / "node_id").exists()


def test_the_client_keeps_trying_while_nobody_listens_and_goes_on_by_itself(work: Path) -> None:
    f = Federation(work)
    north, south = f.site("north"), f.site("south")
    running = [f.run(north), f.run(south)]
    f.wait(lambda: len(f.said(north, "offline")) > 1)
    assert "refused" in f.said(north, "offline")[0]["line"]
    f.start("--linger", 180)
    assert f.ended(*running) == [0, 0]


def test_nothing_is_called_but_the_coordinator(work: Path) -> None:
    """Every address that the client connects to is the coordinator's."""
    f = Federation(work)
    north, south = f.site("north"), f.site("south")
    code = f"""
import socket, sys
real = socket.socket.connect
def connect(self, address):
    with open({str(work / "calls")!r}, "a") as file:
        file.write(repr(address) + chr(10))
    return real(self, address)
socket.socket.connect = connect
from sgps_client.cli import main
sys.argv = ["sgps-client", "start", "--config", {str(north.file)!r}, "--json"]
main()
"""
    f.start("--linger", 180)
    other = f.run(south)
    process = subprocess.Popen([sys.executable, "-c", code], env=fed.environment(), stdout=subprocess.DEVNULL)
    f.processes.append(process)
    assert f.ended(process, other) == [0, 0]
    calls = set((work / "calls").read_text().splitlines())
    assert calls
    assert all(f", {f.port}" in call for call in calls), (
        calls
    )  # gRPC's calls are not Python's: tests/e2e/test_releases.py
