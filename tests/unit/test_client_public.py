"""Stock Flower gets public pictures only; features that were made once are used again."""

import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import Bench

from bench import simulation
from sgps.errors import ConfigError
from sgps.settings import dump
from sgps_client import app, public, records
from sgps_client.public import NotPublic, open_public, recall, share, site_file
from sgps_client.round import open_ledger
from sgps_server.strategy import to_record

STATEMENT = dump({"licence": "CC0-1.0", "source": "numbers of a test"})


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A virtual site: enrolled by its key, without a certificate. What other tests have encoded is forgotten."""
    monkeypatch.setattr(records, "_prepared", records._Prepared())
    found = site_bench.make(tmp_path / "north")
    (found.folder / "keys" / "site.crt").unlink()
    return found


def ask(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Message:
    """The ClientApp's reply, as stock Flower calls it."""
    from flwr.supercore.task_identity import TaskIdentity  # noqa: TID251

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    signed = bench.plan(answer_at=bench.plan().issued + 50).sign(bench.key)
    plan = ConfigRecord({"text": signed.text, "signature": signed.signature})
    content = RecordDict({"plan": plan, "arrays": to_record(bench.start())})
    order = Message(content, dst_node_id=7, message_type="train")
    order.metadata.__dict__["_src_node_id"] = 1
    return app.public(order, Context(1, 7, {"site": str(bench.file)}, RecordDict(), {}))


def test_a_site_that_says_nothing_is_refused_with_the_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotPublic, match=r"site\.yaml: nothing says .* public; .* code that comes over the wire"):
        ask(bench, monkeypatch)
    with open_ledger(bench.site) as ledger:
        assert not list(ledger.history())


def test_a_hospitals_site_is_refused_whatever_it_says(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.folder / "public.yaml").write_text(STATEMENT)
    open_public(bench.file)
    (bench.folder / "keys" / "site.crt").write_text("a certificate")
    with pytest.raises(NotPublic, match=r"enrolled with a coordinator; .* sgps-client start"):
        ask(bench, monkeypatch)


@pytest.mark.parametrize("statement", ["licence: CC0-1.0\n", "licence: ''\nsource: here it is\n", ""])
def test_a_statement_names_licence_and_source(bench: Bench, statement: str) -> None:
    (bench.folder / "public.yaml").write_text(statement)
    with pytest.raises(ConfigError, match=r"public\.yaml"):
        open_public(bench.file)


def test_nothing_but_the_constant_refusals_reaches_the_server(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.file.write_text(bench.file.read_text() + "patient: Jane\n")
    with pytest.raises(app.RoundFailed) as caught:
        ask(bench, monkeypatch)
    assert str(caught.value) == app.FAILED


def test_a_public_site_answers_at_once_from_shared_features(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.folder / "public.yaml").write_text(STATEMENT)
    assert share(bench.site, bench.release) == site_bench.PATIENTS
    made = records.prepared(bench.site, bench.release, "first")
    monkeypatch.setattr(records, "_prepared", records._Prepared())
    monkeypatch.setattr(records, "encoded", lambda *_: pytest.fail("encoded again"))
    recall(bench.site, bench.release)
    for one, other in zip(records.prepared(bench.site, bench.release, "first"), made, strict=True):
        assert one is not None and other is not None
        assert one.labels == other.labels
        assert np.array_equal(one.features, other.features)
    reply = ask(bench, monkeypatch).content
    assert reply["reply"]["status"] == "accepted"
    assert isinstance(reply["arrays"], ArrayRecord)


def test_features_of_other_settings_are_not_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    share(bench.site, bench.release)
    monkeypatch.setattr(records, "_prepared", records._Prepared())
    bench.write(images_per_patient=1)
    recall(bench.site, bench.release)
    assert not records._prepared.kept


def test_a_node_names_its_site_before_the_run_does() -> None:
    run = {"sites": "/world/sites"}
    assert site_file({"partition-id": 7}, run) == Path("/world/sites/site-0007/site.yaml")
    assert site_file({"partition-id": 7, "site": "/mine/site.yaml"}, run) == Path("/mine/site.yaml")
    with pytest.raises(ConfigError, match="names no site"):
        site_file({}, run)


def test_a_simulation_takes_no_pictures_without_a_licence_and_none_of_a_site(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--out", str(tmp_path / "out"), "--diseases", "df", "--data"]
    assert simulation.main([*own, str(tmp_path)]) == 2
    assert "give its licence with --public" in capsys.readouterr().err
    assert simulation.main([*own, str(bench.folder / "images"), "--public", "CC0-1.0"]) == 2
    assert "lies in the folder of a site" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert public.virtual_name(3) == "site-0003"
