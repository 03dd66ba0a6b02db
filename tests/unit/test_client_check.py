"""`check` tells every problem at once, each with its fix."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import Bench

from sgps.default_plan import DEFAULT_PLAN
from sgps_client import check as checks
from sgps_client import coordinator, witness
from sgps_client.check import Finding
from sgps_client.coordinator import Named, Status


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return site_bench.make(tmp_path / "north")


@pytest.fixture
def online(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The network answers; what the coordinator says can be changed."""
    said: dict[str, Any] = {"ahead": 0.0, "fingerprint": bench.mark}

    def status(_: Any) -> Status:
        return Status(
            federation="derm", fingerprint=said["fingerprint"], state="waiting", round=1, rounds=1, time=time.time() + said["ahead"],
            latest=Named(name="0000", sha256="0" * 64),
        )  # fmt: skip

    class Line:
        def close(self) -> None: ...

    monkeypatch.setattr(checks.socket, "getaddrinfo", lambda *_, **__: [])
    monkeypatch.setattr(checks.socket, "create_connection", lambda *_, **__: Line())
    monkeypatch.setattr(coordinator.Coordinator, "status", status)
    monkeypatch.setattr(checks, "shake_hands", lambda *_: None)
    monkeypatch.setattr(witness, "look", lambda *_: witness.Seen(3, None))
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
    few = next(f for f in found if f.area == "forecast")
    assert not few.bad and "too few patients to help alone" in few.what and "only receiving" in few.do


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("role", ["contribute", "receive"])
def test_a_device_that_is_not_there_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench.write(device="cuda", role=role)
    (found,) = bad(bench)
    assert found.exit_code == 3 and "`device: cuda`: no CUDA here" in found.what and "choose auto or cpu" in found.do
    bench.write(device="auto", role=role)
    assert not bad(bench)


def test_every_problem_is_told_at_once(bench: Bench, online: dict[str, Any]) -> None:
    online.update(ahead=-20.0, fingerprint="b" * 64)
    bench.site.tls_key.chmod(0o644)
    (bench.folder / "keys" / "plan.pub").write_text("nothing")
    (bench.folder / "images" / "p1-0.png").write_bytes(b"nothing")
    with (bench.folder / "table.csv").open("a") as table:
        table.write("p0-9,patient 9,unheard-of\n")
    bench.write(slots=3)
    found = bad(bench)
    assert {"keys", "network", "clock"} <= {f.area for f in found}
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
    assert "first: " in found and "p1-0.png: is not a picture - mend it before the first round" in found
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


def test_a_port_that_refuses_is_told_with_the_setting_that_names_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(checks.socket, "getaddrinfo", lambda *_, **__: None)
    monkeypatch.setattr(checks.socket, "create_connection", refused)
    monkeypatch.setenv("NO_PROXY", "*")
    rounds, releases = [f for f in bad(bench) if f.area == "network"]
    assert "`federation.url`" in rounds.do
    assert "`federation.releases_url`" in releases.do


@pytest.mark.usefixtures("online")
def test_the_budget_says_what_a_round_costs_and_when_nothing_is_left(bench: Bench) -> None:
    (line,) = [f for f in checks.run(bench.file) if f.area == "budget"]
    assert "epsilon 0.000 of 3 spent" in line.what
    assert "needs noise 1.391 or more, and then costs epsilon 3.000 at most" in line.what
    assert f"the default plan, {DEFAULT_PLAN}, fits" in line.what
    bench.write(limits={"least_sigma": 2.0, "most_clip": 1.0, "most_steps": 1, "most_q": 1.0, "denominator": 1})
    (line,) = [f for f in checks.run(bench.file) if f.area == "budget"]
    assert "would be refused" in line.what
    bench.write()
    from sgps_client.round import open_ledger
    from sgps_privacy.events import Event
    from sgps_privacy.ledger import Order

    with open_ledger(bench.site) as ledger:
        ledger.open_cohort("first", [f"patient {p}" for p in range(5)], 3.0, 1e-5)
        ledger.charge(Order(bench.mark, 1, "a" * 64, "rows", Event(1.391, 1.0, 1), 1.0, "first"))
    (line,) = [f for f in checks.run(bench.file) if f.area == "budget"]
    assert "epsilon 3.000 of 3 spent" in line.what
    assert "new cohort" in line.do


@pytest.fixture
def closed(bench: Bench) -> Bench:
    """The ledger knows the five patients of the cohort."""
    from sgps_client.round import open_ledger

    with open_ledger(bench.site) as ledger:
        ledger.open_cohort("first", [f"patient {p}" for p in range(5)], 3.0, 1e-5)
    return bench


def rows(bench: Bench, *changes: tuple[str, str]) -> None:
    table = bench.folder / "table.csv"
    text = table.read_text()
    for old, new in changes:
        text = text.replace(old, new)
    table.write_text(text)


@pytest.mark.usefixtures("online")
def test_a_closed_cohort_that_lost_a_patient_is_told_as_start_would(closed: Bench) -> None:
    assert not bad(closed)
    rows(
        closed,
        ("p4-0,patient 4,df\n", ""),
        ("p4-1,patient 4,df\n", ""),
        ("p4-0,patient 4,akiec\n", ""),
        ("p4-1,patient 4,akiec\n", ""),
    )
    kept = {line.split(",")[1] for line in (closed.folder / "table.csv").read_text().splitlines()[1:]}
    assert len(kept) == 4
    (finding,) = bad(closed)
    assert "first: the cohort is closed with other patients: 1 of its 5 patients are missing" in finding.what
    assert finding.exit_code == 5
    from sgps_client.round import RoundFailed, open_cohorts, open_ledger

    with open_ledger(closed.site) as ledger, pytest.raises(RoundFailed, match="1 of its 5 patients are missing"):
        open_cohorts(closed.site, ledger, closed.release)


@pytest.mark.usefixtures("online")
def test_another_column_for_the_patient_is_told(closed: Bench) -> None:
    closed.write(cohorts=[{**site_bench.settings(closed.mark)["cohorts"][0], "unit_column": "image_id"}])
    assert "none of its 5 patients is listed now; another column of ids, or another table?" in texts(bad(closed))


@pytest.mark.usefixtures("online")
def test_a_patient_of_two_cohorts_is_told_before_anything_is_closed(bench: Bench) -> None:
    one = site_bench.settings(bench.mark)["cohorts"][0]
    bench.write(cohorts=[one, {**one, "name": "second"}])
    assert "second: cohort 'second': 5 of its patients belong to cohort 'first'" in texts(bad(bench))
    assert not (bench.folder / "state").exists()


@pytest.mark.usefixtures("online")
def test_cohorts_are_looked_at_before_the_first_pull(bench: Bench) -> None:
    shutil.rmtree(bench.folder / "releases")
    (bench.folder / "images" / "p1-0.png").write_bytes(b"nothing")
    found = checks.run(bench.file)
    assert "with the catalogue of this installation" in texts(found)
    assert "p1-0.png: is not a picture" in texts(found)


@pytest.mark.usefixtures("online")
def test_a_fault_in_the_settings_does_not_hide_the_rest(bench: Bench) -> None:
    (bench.folder / "images" / "p1-0.png").write_bytes(b"nothing")
    bench.site.tls_key.chmod(0o644)
    text = bench.file.read_text()
    bench.file.write_text(text.replace("slots: 8", "slots: many; very many"))
    found = bad(bench)
    (settings,) = [f for f in found if f.area == "settings"]
    assert "slots: 'many; very many' should be a valid integer" in settings.what
    assert settings.do == "write for example `slots: 200`"
    assert {"keys", "cohort"} <= {f.area for f in found}


@pytest.mark.usefixtures("online")
def test_a_fault_in_one_cohort_does_not_hide_the_other(bench: Bench) -> None:
    one = site_bench.settings(bench.mark)["cohorts"][0]
    bench.write(cohorts=[{**one, "budget": {"delta": 1e-5}}, {**one, "name": "second", "table": "none.csv"}])
    found = texts(bad(bench))
    assert "cohorts.0.budget.epsilon: is missing - write for example `epsilon: 3.0`" in found
    assert "none.csv: does not exist" in found


@pytest.mark.usefixtures("online")
def test_settings_without_a_federation_end_there(bench: Bench) -> None:
    bench.file.write_text(bench.file.read_text().replace("federation:", "federatoin:"))
    found = checks.run(bench.file)
    assert {f.area for f in found} == {"settings"}
    assert "did you mean `federation`?" in texts(found)


@pytest.mark.usefixtures("online")
def test_the_code_that_a_plan_must_accept_is_shown(bench: Bench) -> None:
    from sgps.code import contributor_code

    assert contributor_code() in texts(checks.run(bench.file))


def labelled(bench: Bench, **classes: str) -> None:
    """The hospital's own labels in place of the ids in its table."""
    rows(bench, (",akiec\n", ",AK\n"), (",df\n", ",Fibrom\n"))
    bench.write(classes=classes)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("classes", "said", "code"),
    [
        ({"AK": "akiec", "Fibrom": "df"}, "", 0),
        ({"AK": "akiec"}, "unknown class 'Fibrom': 4 pictures (first row 4)", 2),
        ({"AK": "akiec", "Fibrom": "dff"}, "'Fibrom' is no class: 'dff' is no id of the release", 2),
        ({"AK": "akiec", "Fibrom": "df", "Warze": "sk"}, "`classes:` maps 'Warze' to 'sk', which is no id of the release", 3),
        ({"AK": "akiec", "Fibrom": "none"}, "", 0),
    ],
)  # fmt: skip
def test_local_labels_are_compared_with_release_and_data(
    bench: Bench, classes: dict[str, str], said: str, code: int
) -> None:
    labelled(bench, **classes)
    found = bad(bench)
    assert [f.exit_code for f in found] == ([code] if code else [])
    assert said in texts(found)


@pytest.mark.usefixtures("online")
def test_labels_that_share_a_class_or_stand_nowhere_are_noted(bench: Bench) -> None:
    labelled(bench, AK="df", Fibrom="df", fibrom="df", Warze="none")
    found = checks.run(bench.file)
    assert not [f for f in found if f.bad]
    notes = {
        f.what: f.do for f in found if (f.area == "cohort" and "`classes:` names" in f.what) or "count as" in f.what
    }
    assert notes == {
        "'AK', 'Fibrom' all count as df": "right where they are names of one disease; else give each its own id",
        "`classes:` names 'Warze', a label of no picture": "correct it, or remove the line",
        "`classes:` names 'fibrom', a label of no picture": "write it as in the data: 'Fibrom'",
    }


@pytest.mark.usefixtures("online")
def test_only_some_bad_pictures_are_named(bench: Bench) -> None:
    for picture in (bench.folder / "images").iterdir():
        picture.write_bytes(picture.read_bytes()[:60])
    found = [f for f in bad(bench) if f.area == "cohort"]
    assert len(found) == 6
    assert "and 5 pictures more" in found[-1].what


@pytest.mark.usefixtures("online")
def test_pictures_that_take_too_long_are_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from sgps_client.data import cohort as cohorts

    monkeypatch.setattr(cohorts, "read_picture", lambda *_: time.sleep(0.5))
    bench.write(seconds_per_patient=0.2)
    assert "the pictures of this patient take longer than 0.2 s" in texts(bad(bench))
