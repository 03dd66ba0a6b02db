"""A site's own patients: counted exactly, never twice, and its noised part out of the memory first."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench
from site_bench import CLASSES, FEATURES, Bench, K

from sgps.encoders import ImageEncoder
from sgps.errors import ConfigError, StateError
from sgps.images import read
from sgps.memory import COUNTS, ROWS, Contribution, Memory, pool
from sgps.release import BANK, CATALOGUE, GENERATOR, MEMORY, Release, Round, memory_bytes, write
from sgps_client import records
from sgps_client.own import own_patients
from sgps_client.round import answer

NAME = "0001"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    found = site_bench.make(tmp_path / "north")
    records.prepared(found.site, found.release, "first")
    return found


def others() -> Contribution:
    """Another site, with so many patients that its counts set the scale of the weights."""
    rng = np.random.default_rng(3)
    return Contribution(rng.normal(size=(len(CLASSES), K)), np.full(len(CLASSES), 30.0), sigma=0.5)


def federated(bench: Bench, memory: Memory, *rounds: Round, name: str = NAME) -> Release:
    old = bench.release
    contents = {n: old.folder / n for n in (GENERATOR, BANK, CATALOGUE)}
    manifest = old.manifest.model_copy(update={"name": name, "rounds": rounds})
    write(old.folder.parent / name, {**contents, MEMORY: memory_bytes(memory)}, manifest, bench.key)
    return Release.open(old.folder.parent / name, key=bench.key.public_key())


def took_part(bench: Bench) -> tuple[Contribution, Round]:
    plan = bench.plan()
    signed = plan.sign(bench.key)
    reply = answer(bench.site, signed.text, signed.signature, bench.start())
    sent = Contribution(reply.arrays[ROWS], reply.arrays[COUNTS], plan.terms["sigma"])
    return sent, Round(round=1, kind="rows", terms=plan.terms, sites=("north", "south"))


@pytest.mark.slow
def test_own_noised_part_is_taken_out(bench: Bench) -> None:
    sent, happened = took_part(bench)
    release = federated(bench, pool(site_bench.coordinates(), CLASSES, [sent, others()]), happened)
    memory = own_patients(bench.site, release, ImageEncoder(release), {"df": []}).memory
    alone = pool(site_bench.coordinates(), CLASSES, [others()])
    for name in ("total", "count", "spread", "noise"):
        assert getattr(memory, name) == pytest.approx(getattr(alone, name), abs=1e-5), name
    assert not np.allclose(release.memory().total, alone.total, atol=1e-3)


@pytest.mark.slow
def test_a_round_that_is_not_in_the_release_is_not_taken_out(bench: Bench) -> None:
    took_part(bench)
    release = federated(bench, pool(site_bench.coordinates(), CLASSES, [others()]))
    memory = own_patients(bench.site, release, ImageEncoder(release), {"df": []}).memory
    assert np.array_equal(memory.total, release.memory().total)


@pytest.mark.slow
def test_a_lost_outbox_is_an_error_and_no_double_count(bench: Bench) -> None:
    _, happened = took_part(bench)
    again = Round(round=2, kind="rows", terms=happened.terms, sites=("north",))
    release = federated(bench, pool(site_bench.coordinates(), CLASSES, [others()]), happened, again)
    with pytest.raises(StateError, match=r"outbox: holds nothing of round 2.*count twice"):
        own_patients(bench.site, release, ImageEncoder(release), {"df": []})


def test_features_are_means_over_the_patients_pictures_of_the_class(bench: Bench) -> None:
    """Patients 1 and 4 have df, patients 2 vasc; two pictures each."""
    release = bench.release
    encoder = ImageEncoder(release)
    own = own_patients(bench.site, release, encoder, {"df": [], "vasc": []})
    assert {i: rows.shape for i, rows in own.features.items()} == {"df": (2, FEATURES), "vasc": (1, FEATURES)}
    pictures = [read(bench.folder / "images" / f"p4-{i}.png") for i in range(2)]
    assert own.features["df"][1] == pytest.approx(encoder.features(pictures).mean(0), abs=1e-4)
    assert own.notes == ()


def test_the_exemplars_patient_counts_once_and_a_damaged_one_not_at_all(bench: Bench) -> None:
    images = bench.folder / "images"
    exemplar = read(images / "p1-0.png")
    (images / "p2-0.png").write_bytes((images / "p2-0.png").read_bytes()[:200])
    own = own_patients(bench.site, bench.release, ImageEncoder(bench.release), {"df": [exemplar], "vasc": []})
    assert len(own.features["df"]) == 1 and "vasc" not in own.features
    assert own.notes == (
        "1 own patient with pictures that cannot be read: left out",
        "1 own patient showing an exemplar: not counted twice",
    )


def test_the_exemplar_counts_once_though_its_patient_has_more_pictures_than_are_taken(bench: Bench) -> None:
    bench.write(images_per_patient=1)
    images, encoder = bench.folder / "images", ImageEncoder(bench.release)
    first, exemplar = read(images / "p1-0.png"), read(images / "p1-1.png")
    own = own_patients(bench.site, bench.release, encoder, {"df": [exemplar]})
    assert len(own.features["df"]) == 1 and own.notes == ("1 own patient showing an exemplar: not counted twice",)
    (images / "p1-1.png").write_bytes(b"")
    own = own_patients(
        bench.site, bench.release, encoder, {"df": [exemplar]}
    )  # nobody can tell, and nothing of it is counted
    assert own.features["df"][0] == pytest.approx(encoder.features([first])[0], abs=1e-4) and own.notes == ()


def test_a_receiving_site_has_no_own_patients(bench: Bench) -> None:
    bench.write(role="receive", cohorts=[])
    with pytest.raises(ConfigError, match="cohorts: there is none"):
        own_patients(bench.site, bench.release, ImageEncoder(bench.release), {"df": []})
