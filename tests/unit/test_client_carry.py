"""At a site: after a carry its own part still comes out, no cohort pays twice, and a plan of the old space is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import CLASSES, FEATURES, Bench, K

from sgps.carry import About, Map, arrays
from sgps.encoders import ImageEncoder
from sgps.errors import StateError
from sgps.memory import COUNTS, ROWS, Contribution, Coordinates, Memory, pool
from sgps.release import (
    BANK,
    CATALOGUE,
    GENERATOR,
    MEMORY,
    Carry,
    Manifest,
    Release,
    Round,
    encoder_sha256,
    memory_bytes,
    write,
)
from sgps_client import records
from sgps_client import round as rounds
from sgps_client.inspect import Inspection
from sgps_client.own import own_patients
from sgps_client.round import answer, open_ledger
from sgps_privacy import egress


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A site that has taken part in round 1; its budget would allow another."""
    monkeypatch.setattr(rounds, "_wait", lambda _: None)
    found = site_bench.make(tmp_path / "north", cohorts=cohorts("first"))
    records.prepared(found.site, found.release, "first")
    return found


def cohorts(*names: str) -> list[dict[str, object]]:
    (one,) = site_bench.settings("")["cohorts"]
    paths = {"first": ("images", "table.csv"), "second": ("images2", "table2.csv")}
    return [
        {**one, "name": n, "images": paths[n][0], "table": paths[n][1], "budget": {"epsilon": 9.0, "delta": 1e-5}}
        for n in names
    ]


def moved() -> Coordinates:
    rng = np.random.default_rng(11)
    axes = np.linalg.qr(rng.normal(size=(FEATURES, K)))[0].T.astype(np.float32)
    return Coordinates(np.zeros(FEATURES, np.float32), axes, radius=3.0, within=2.0)


def ask(bench: Bench, **changes: object) -> egress.Reply:
    signed = bench.plan(**changes).sign(bench.key)
    return answer(bench.site, signed.text, signed.signature, bench.start())


def others() -> Contribution:
    rng = np.random.default_rng(3)
    return Contribution(rng.normal(size=(len(CLASSES), K)), np.full(len(CLASSES), 30.0), sigma=0.5)


def carried(bench: Bench, sent: Contribution, wide: bool = False) -> tuple[Release, Map]:
    """Release 0002 of the federation: other coordinates, and the rows of round 1 through a map. wide: a map for more numbers than were sent."""
    old = bench.release
    tensors = old.tensors(GENERATOR, "base.")
    encoder = encoder_sha256(tensors, old.manifest.architecture, Memory.empty(moved(), CLASSES))
    about = About(before=old.manifest.encoder_sha256, after=encoder, figures={"cosine": {"mean": 0.93}})
    one = Map(np.random.default_rng(4).normal(size=(K, K)), np.full(K, 0.01), about)
    memory = pool(moved(), CLASSES, [one.carry(sent), one.carry(others())])
    step = Carry(**about.model_dump(exclude={"domains"}), last=1, map_sha256="e" * 64)
    happened = Round(round=1, kind="rows", terms=bench.terms(), sites=("north", "south"))
    manifest: Manifest = old.manifest.model_copy(
        update={"name": "0002", "rounds": (happened,), "carried": (step,), "encoder_sha256": encoder}
    )
    contents: dict[str, bytes | Path] = {n: old.folder / n for n in (GENERATOR, BANK, CATALOGUE)}
    target = old.folder.parent / "0002"
    told = Map(np.ones((K, K + 1)), one.error, about) if wide else one
    write(target, {**contents, MEMORY: memory_bytes(memory, arrays([told]))}, manifest, bench.key)
    return Release.open(target, key=bench.key.public_key()), one


def took_part(bench: Bench) -> Contribution:
    reply = ask(bench)
    assert reply.status == egress.ACCEPTED
    return Contribution(reply.arrays[ROWS], reply.arrays[COUNTS], bench.terms()["sigma"])


def test_the_own_noised_part_comes_out_of_a_carried_memory(bench: Bench) -> None:
    release, one = carried(bench, took_part(bench))
    memory = own_patients(bench.site, release, ImageEncoder(release), {"df": []}).memory
    alone = pool(moved(), CLASSES, [one.carry(others())])
    for name in ("total", "count", "spread", "noise"):
        assert getattr(memory, name) == pytest.approx(getattr(alone, name), abs=1e-4), name
    assert memory.carried is not None and alone.carried is not None
    assert memory.carried.drift == pytest.approx(alone.carried.drift, abs=1e-5)


def test_a_map_that_does_not_fit_what_was_sent_is_a_line_and_no_wrong_memory(bench: Bench) -> None:
    release, _ = carried(bench, took_part(bench), wide=True)
    with pytest.raises(StateError, match=r"round 1 sent does not fit the release.*with-own-patients"):
        own_patients(bench.site, release, ImageEncoder(release), {"df": []})


def test_a_cohort_that_paid_does_not_pay_again_in_the_new_space_and_a_fresh_one_does(bench: Bench) -> None:
    release, _ = carried(bench, took_part(bench))
    encoder = release.manifest.encoder_sha256
    before = ledger_kinds(bench)
    assert ask(bench, round=3, encoder=bench.release.manifest.encoder_sha256).status == "plan_encoder"
    assert ask(bench, round=3, encoder=encoder).status == "budget"
    assert ledger_kinds(bench) == before  # nothing was spent
    site_bench.draw_patients(bench.folder, first=100, name="2")
    bench.write(cohorts=cohorts("first", "second"))
    assert ask(bench, round=3, encoder=encoder).status == egress.ACCEPTED
    assert ledger_kinds(bench) == [*before, "COHORT", "CHARGE", "COMMIT"]


def ledger_kinds(bench: Bench) -> list[str]:
    with open_ledger(bench.site) as ledger:
        return [str(e["kind"]) for e in ledger.history()]


def test_who_inspects_a_release_reads_where_its_rows_come_from(bench: Bench) -> None:
    release, one = carried(bench, others())
    found = Inspection(release.folder, release.sha256, "the pinned key", release.manifest, (), ())
    assert f"rows up to round 1: carried from base network {one.about.before[:16]}" in found.text()
    assert "cosine on classes left out 0.93" in found.text()
    assert found.facts()["carried"][0]["last"] == 1
