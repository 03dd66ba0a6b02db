"""`check` tells every problem at once, each with its fix."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import Bench

from sgps_client import check as checks
from sgps_client import coordinator
from sgps_client.check import Finding
from sgps_client.coordinator import Status


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return site_bench.make(tmp_path / "north")


@pytest.fixture
def online(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The network answers; what the coordinator says can be changed."""
    said: dict[str, Any] = {"ahead": 0.0, "fingerprint": bench.mark}

    def status(_: Any) -> Status:
        return Status(
            federation="derm", fingerprint=said["fingerprint"], state="waiting", round=1, rounds=1, time=time.time() + said["ahead"]
        )  # fmt: skip

    class Line:
        def close(self) -> None: ...

    monkeypatch.setattr(checks.socket, "getaddrinfo", lambda *_, **__: [])
    monkeypatch.setattr(checks.socket, "create_connection", lambda *_, **__: Line())
    monkeypatch.setattr(coordinator.Coordinator, "status", status)
    monkeypatch.setenv("NO_PROXY", "*")
    return said


def bad(bench: Bench) -> list[Finding]:
    return [f for f in checks.run(bench.file) if f.bad]


def texts(found: list[Finding]) -> str:
    return "\n".join(f.line() for f in found)


@pytest.mark.usefixtures("online")
def test_a_site_in_order_has_no_problem(bench: Bench) -> None:
    found = checks.run(bench.file)
    assert not [f for f in found if f.bad], texts(found)
    assert {"settings", "keys", "network", "clock", "disk", "release", "cohort", "budget"} <= {f.area for f in found}
    assert "5 patients in 8 slots, 10 images, 3 classes; the unit is patient_id" in texts(found)


def test_every_problem_is_told_at_once(bench: Bench, online: dict[str, Any]) -> None:
    online.update(ahead=-20.0, fingerprint="b" * 64)
    bench.site.tls_key.chmod(0o644)
    (bench.folder / "keys" / "plan.pub").write_text("nothing")
    (bench.folder / "images" / "p1-0.png").write_bytes(b"nothing")
    with (bench.folder / "table.csv").open("a") as table:
        table.write("p0-9,patient 9,unheard-of\n")
    bench.write(slots=3)
    found = bad(bench)
    assert {"keys", "network", "clock", "release"} <= {f.area for f in found}
    assert "can be read by others" in texts(found)
    assert "20.0 s ahead of" in texts(found)
    assert "another federation" in texts(found)
    for finding in found:
        assert finding.do or finding.area == "release", finding


@pytest.mark.usefixtures("online")
def test_cohort_problems_are_told_one_by_one(bench: Bench) -> None:
    (bench.folder / "images" / "p1-0.png").write_bytes(b"nothing")
    with (bench.folder / "table.csv").open("a") as table:
        table.write("p0-1,patient 0,unheard-of\n")
    bench.write(slots=3)
    found = texts(bad(bench))
    assert "raise `slots:`" in found
    assert "1 patients have images that cannot be read" in found
    assert "two diagnoses for one picture" in found


def test_settings_are_told_key_by_key(bench: Bench) -> None:
    bench.file.write_text("site: north\nrole: contribute\nsurprise: 1\n")
    found = bad(bench)
    assert len(found) >= 2
    assert all(f.area == "settings" and f.exit_code == 3 for f in found)
    assert "surprise" in texts(found)
    assert "federation" in texts(found)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("name", ["site.key", "site.crt", "ca.crt"])
def test_a_missing_key_file_is_told_with_the_command(bench: Bench, name: str) -> None:
    (bench.folder / "keys" / name).unlink()
    found = [f for f in bad(bench) if f.area == "keys"]
    assert name in texts(found)


@pytest.mark.usefixtures("online")
def test_another_sites_certificate_is_told(bench: Bench, tmp_path: Path) -> None:
    other = site_bench.make(tmp_path / "other")
    for name in ("site.crt", "ca.crt"):
        shutil.copy(other.folder / "keys" / name, bench.folder / "keys" / name)
    assert "do not belong together" in texts(bad(bench))


def test_a_name_that_is_not_known_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(checks.socket, "getaddrinfo", unknown)
    monkeypatch.setenv("NO_PROXY", "*")
    found = [f for f in bad(bench) if f.area == "network"]
    assert "is not known here" in texts(found)
    assert "HTTPS_PROXY" in texts(found)
    assert found[0].exit_code == 6


@pytest.mark.usefixtures("online")
def test_the_budget_says_what_a_round_costs_and_when_nothing_is_left(bench: Bench) -> None:
    (line,) = [f for f in checks.run(bench.file) if f.area == "budget"]
    assert "epsilon 0.000 of 3 spent" in line.what
    assert "needs noise 1.391 or more, and then costs epsilon 2.999 at most" in line.what
    from sgps_client.round import open_ledger
    from sgps_privacy.events import Event
    from sgps_privacy.ledger import Order

    with open_ledger(bench.site) as ledger:
        ledger.open_cohort("first", [f"patient {p}" for p in range(5)], 3.0, 1e-5)
        ledger.charge(Order(bench.mark, 1, "a" * 64, "rows", Event(1.391, 1.0, 1), 1.0, "first"))
    (line,) = [f for f in checks.run(bench.file) if f.area == "budget"]
    assert "epsilon 2.999 of 3 spent" in line.what
    assert "new cohort" in line.do
