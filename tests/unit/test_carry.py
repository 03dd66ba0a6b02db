"""Rows through a map: what it loses is measured on classes it never saw and counted as doubt; noise, own parts and sums stay right."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import tiny_release

from bench.carry import measure, table
from sgps.carry import About, Map, arrays, brought, directions, fit, maps, read_map
from sgps.errors import InputError, SignatureError
from sgps.files import sha256_file
from sgps.memory import SHARE_ROW, Contribution, Coordinates, Memory, pool, record
from sgps.pretrain import carry as making
from sgps.release import BANK, CATALOGUE, GENERATOR, MANIFEST, MEMORY, Carry, Release, memory_bytes, write

F, K = 30, 6
RNG = np.random.default_rng(5)
OLD, NEW = "a" * 64, "b" * 64


def coordinates(k: int, radius: float, within: float = 4.0) -> Coordinates:
    axes = np.linalg.qr(RNG.normal(size=(F, k)))[0].T.astype(np.float32)
    return Coordinates(RNG.normal(size=F).astype(np.float32), axes, radius, within)


BEFORE, AFTER = coordinates(K, 3.0), coordinates(K + 2, 5.0)
MIX = np.linalg.qr(RNG.normal(size=(K, K)))[0]


def patients(classes: int, each: int, twist: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of the same patients under both bases; the new one is a rotation of the old and, by `twist`, something of its own."""
    label = np.repeat(np.arange(classes), each)
    means = 2 * RNG.normal(size=(classes, K))
    place = means[label] + RNG.normal(size=(len(label), K))
    own = np.zeros((len(label), K + 2))
    own[:, :K] = place @ MIX.T + twist * np.tanh(place @ RNG.normal(size=(K, K)))
    return BEFORE.lift(place), AFTER.lift(own), np.array([f"c{n}" for n in label])


def made(matrix: np.ndarray, error: np.ndarray | None = None) -> Map:
    return Map(
        matrix, np.zeros(len(matrix)) if error is None else error, About(before=OLD, after=NEW, figures={"cosine": {}})
    )


def sent(features: np.ndarray, where: Coordinates, sigma: float = 0.0, seed: int = 0) -> Contribution:
    rows, counts = np.zeros((1, len(where.directions))), np.zeros(1)
    for x in features:
        r, n = record(where, {0: x}, 1)
        rows, counts = rows + r, counts + n
    rng = np.random.default_rng(seed)
    return Contribution(rows + sigma * rng.normal(size=rows.shape), counts + sigma * rng.normal(size=1), sigma)


def test_what_is_linear_is_found_and_nothing_is_lost() -> None:
    old, new, label = patients(8, 60)
    found = fit(directions(BEFORE, old), directions(AFTER, new), label)
    assert min(found.cosine.values()) > 0.999 and found.error.sum() < 1e-4
    row = pool(AFTER, ["x"], [made(found.matrix, found.error).carry(sent(old[:60], BEFORE))]).row(0)
    assert row == pytest.approx(pool(AFTER, ["x"], [sent(new[:60], AFTER)]).row(0), abs=0.02 * AFTER.radius)


def test_what_is_not_linear_shows_in_the_loss_of_classes_left_out() -> None:
    losses = []
    for twist in (0.0, 1.0, 3.0):
        old, new, label = patients(8, 60, twist)
        losses.append(fit(directions(BEFORE, old), directions(AFTER, new), label).error.sum())
    assert losses == sorted(losses) and losses[2] > 10 * losses[0]


def test_too_few_public_classes_or_patients() -> None:
    old, new, label = patients(2, 60)
    with pytest.raises(ValueError, match="2 classes"):
        fit(directions(BEFORE, old), directions(AFTER, new), label)
    old, new, label = patients(4, 9)
    with pytest.raises(ValueError, match="smallest of 9"):
        fit(directions(BEFORE, old), directions(AFTER, new), label)


def test_sums_are_carried_as_their_parts_are() -> None:
    one = made(RNG.normal(size=(K + 2, K)), np.full(K + 2, 0.01))
    parts = [sent(patients(1, n)[0], BEFORE, 0.7, n) for n in (5, 9, 20)]
    whole, before = pool(AFTER, ["x"], [one.carry(p) for p in parts]), pool(BEFORE, ["x"], parts)
    scale = AFTER.radius / BEFORE.radius
    assert whole.total[0] == pytest.approx(scale * one.matrix @ before.total[0])
    assert (whole.count, whole.spread) == (pytest.approx(before.count), pytest.approx(before.spread))


def test_the_noise_of_a_carried_row_is_known_by_coordinate() -> None:
    """Drawn, carried and pooled 4,000 times."""
    one = made(RNG.normal(size=(K + 2, K)))
    empty, sigma = np.zeros((1, K)), 1.3
    found = np.stack(
        [
            one.carry(Contribution(empty + sigma * RNG.normal(size=(1, K)), np.ones(1), sigma)).rows[0]
            for _ in range(4000)
        ]
    )
    memory = pool(AFTER, ["x"], [one.carry(Contribution(empty, np.ones(1), sigma))])
    assert memory.carried is not None
    assert memory.carried.noise[0] == pytest.approx(found.var(0) * AFTER.radius**2 / SHARE_ROW, rel=0.12)
    assert memory.noise[0] == pytest.approx(memory.carried.noise[0].sum())
    again = made(RNG.normal(size=(K, K + 2))).carry(one.carry(Contribution(empty, np.ones(1), sigma)))
    assert again.noise is not None and again.noise.shape == (K,)


def test_no_number_of_patients_makes_a_carried_row_surer_than_its_map() -> None:
    error = np.full(K + 2, 0.02)
    one, inside = made(np.eye(K + 2, K), error), np.full(K + 2, AFTER.within / (K + 2))
    old = BEFORE.lift(np.tile(np.eye(K)[0], (100_000, 1)) * 3)
    many = pool(
        AFTER, ["x"], [one.carry(Contribution(np.sqrt(0.8) * np.eye(K)[:1] * 1e5, np.array([np.sqrt(0.2) * 1e5]), 0.0))]
    )
    few = pool(AFTER, ["x"], [one.carry(sent(old[:10], BEFORE))])
    most = AFTER.within / (error.sum() * AFTER.radius**2 / SHARE_ROW)
    assert few.worth(0) < many.worth(0) == pytest.approx(most, rel=1e-3)
    seen = AFTER.lift(np.zeros(K + 2))
    moved = AFTER.place(many.blend(seen, 1, 0, inside))
    assert moved[0] == pytest.approx(AFTER.radius * most / (1 + most), rel=1e-3)


def test_a_sites_own_carried_part_comes_out_whole() -> None:
    one = made(RNG.normal(size=(K + 2, K)), np.full(K + 2, 0.01))
    mine, big = (one.carry(sent(patients(1, n)[0], BEFORE, 0.5, n)) for n in (6, 40))
    fresh = sent(patients(1, 7)[1], AFTER, 0.5, 3)
    left, alone = pool(AFTER, ["x"], [mine, big, fresh]).without(mine), pool(AFTER, ["x"], [big, fresh])
    for name in ("total", "count", "spread", "noise"):
        assert getattr(left, name) == pytest.approx(getattr(alone, name)), name
    assert left.carried is not None and alone.carried is not None
    assert left.carried.noise == pytest.approx(alone.carried.noise)
    assert left.carried.drift == pytest.approx(alone.carried.drift)
    nothing = pool(AFTER, ["x"], [mine]).without(mine)
    assert nothing.worth(0) == 0 and nothing.carried is not None and not nothing.carried.drift.any()


def test_memory_on_disk_keeps_its_doubt_by_coordinate_and_a_plain_one_its_bytes() -> None:
    one = made(RNG.normal(size=(K + 2, K)), np.full(K + 2, 0.01))
    memory = pool(AFTER, ["x"], [one.carry(sent(patients(1, 9)[0], BEFORE, 0.5))])
    again = Memory.from_arrays({**memory.arrays(), **arrays([one])}, ["x"])
    assert again.worth(0) == memory.worth(0) and again.carried is not None
    assert not any("carried" in n for n in pool(AFTER, ["x"], [sent(patients(1, 9)[1], AFTER)]).arrays())
    for name in ("memory.carried_noise", "memory.carried_drift"):
        with pytest.raises(ValueError, match=name):
            Memory.from_arrays({n: a for n, a in memory.arrays().items() if n != name}, ["x"])
        with pytest.raises(ValueError, match="does not fit"):
            Memory.from_arrays({**memory.arrays(), name: np.zeros((2, K + 2))}, ["x"])


def test_a_map_file_is_read_as_it_was_written_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    one, path = made(RNG.normal(size=(3, 2)), np.ones(3)), tmp_path / "m"
    sha256 = one.write(path)
    again, found = read_map(path)
    assert found == sha256 == sha256_file(path) and again.about == one.about
    assert np.array_equal(again.matrix, one.matrix) and np.array_equal(again.error, one.error)
    with pytest.raises(InputError, match="exists already"):
        one.write(path)
    for bad in (
        b"x",
        path.read_bytes()[:40],
        made(np.full((3, 2), np.nan)).to_bytes(),
        made(np.ones((3, 2)), -np.ones(3)).to_bytes(),
    ):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(InputError, match="sgps memory map"):
            read_map(tmp_path / "bad")
    with pytest.raises(ValueError, match="rows of 2 numbers, these have 4"):
        one.carry(Contribution(np.zeros((1, 4)), np.zeros(1), 1.0))


def carried_release(folder: Path, after: str | None = None, keep: bool = True, k: int = 4) -> Release:
    """A tiny release that says its rows came from another base."""
    source = tiny_release.make(folder / "source")
    release = Release.open(source, sha256=sha256_file(source / MANIFEST))
    one = made(np.eye(k, 4), np.full(k, 0.1))
    step = Carry(before=OLD, after=after or release.manifest.encoder_sha256, last=2, map_sha256="c" * 64, figures={})
    contents: dict[str, bytes | Path] = {n: source / n for n in (GENERATOR, BANK, CATALOGUE)}
    contents[MEMORY] = memory_bytes(release.memory(), arrays([one]) if keep else {})
    write(folder / "carried", contents, release.manifest.model_copy(update={"carried": (step,)}), None)
    return Release.open(folder / "carried", sha256=sha256_file(folder / "carried" / MANIFEST))


def test_only_rounds_before_the_map_go_through_it(tmp_path: Path) -> None:
    release = carried_release(tmp_path)
    steps, known = release.manifest.carried or (), maps(release)
    part = Contribution(np.ones((3, 4)), np.ones(3), 1.0)
    assert brought(steps, known, 3, part, tiny_release.CLASSES) is part
    assert brought(steps, known, 2, part, tiny_release.CLASSES).error == pytest.approx(np.full(4, 0.1))
    behind = (steps[0].model_copy(update={"left": ("df",)}),)
    found = brought(behind, known, 2, part, tiny_release.CLASSES)
    assert found.counts.tolist() == [1, 0, 1] and not found.rows[1].any() and found.rows[0].all()
    assert brought(behind, known, 3, part, tiny_release.CLASSES) is part


def test_rows_of_another_base_are_not_used(tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="rows of another base network are not used"):
        maps(carried_release(tmp_path / "a", after="d" * 64))
    with pytest.raises(SignatureError, match="holds no map"):
        maps(carried_release(tmp_path / "b", keep=False))
    with pytest.raises(SignatureError, match="rows of another base network are not used"):
        maps(carried_release(tmp_path / "c", k=5))


def public_set(folder: Path, classes: int = 4, each: int = 12) -> Path:
    for c in range(classes):
        (folder / f"kind{c}").mkdir(parents=True)
        for n in range(each):
            pixels = np.random.default_rng([c, n]).integers(0, 80, (24, 24, 3)) + np.array(
                [[[40 * c, 90, 160 - 30 * c]]]
            )
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"kind{c}" / f"{n}.png")
    return folder


@pytest.mark.slow
def test_a_map_from_pictures(tmp_path: Path, small_release: "object") -> None:
    """Two real bases of random weights, other coordinates, other numbers of them."""
    import site_bench

    before = site_bench.make_release(tmp_path / "old", None)
    old = Release.open(before, sha256=sha256_file(before / MANIFEST))
    new: Release = small_release()  # type: ignore[operator]
    data = public_set(tmp_path / "set", 5)
    found = making.make(old, new, [data], leave_out=["kind4"])
    f = found.about.figures
    assert found.matrix.shape == (64, site_bench.K) and not found.matrix[32:].any() and (found.error >= 0).all()
    assert list(f["classes"]) == [f"set/kind{c}" for c in range(4)] and f["left_out"] == ["kind4"]
    assert f["data"][0]["pictures"] == 48
    assert set(f["auroc"]) == {"exemplar", "carried", "own"} and all(0 <= v <= 1 for v in f["auroc"].values())
    assert making.make(old, new, [data], leave_out=["kind4"]).to_bytes() == found.to_bytes()
    found.write(tmp_path / "map")
    unseen = measure((old, new), tmp_path / "map", [data], ["kind4"], 12)
    assert list(unseen["classes"]) == ["set/kind4"] and -1 <= unseen["classes"]["set/kind4"]["cosine"] <= 1
    assert "| set/kind4 | 12 |" in table(unseen)
    with pytest.raises(InputError, match="set/kind3 is in the map"):
        measure((old, new), tmp_path / "map", [data], ["kind3"], 12)
    with pytest.raises(InputError, match="other base networks"):
        measure((new, old), tmp_path / "map", [data], ["kind4"], 12)
    with pytest.raises(InputError, match="2 classes"):
        making.make(old, new, [data], leave_out=["kind2", "kind3", "kind4"])
    named = making.make(old, new, [data], leave_out=["kind4"], domains=["dermoscopy"]).about.domains
    assert (found.about.domains, named) == ((), ("dermoscopy",))
    with pytest.raises(InputError, match=r"xray is in no class of the catalogue.*dermoscopy"):
        making.make(old, new, [data], domains=["xray"])
    with pytest.raises(InputError, match="same base"):
        making.make(old, old, [data])
