"""A federation that goes over to a new base network: its rows come along, and what held of them goes on to hold. Real files, keys,
plans and contributions."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import local_rounds
import tiny_release
from local_rounds import run

from sgps.carry import About, Map, brought, maps
from sgps.catalogue import SHIPPED
from sgps.errors import InputError, SgpsError, StateError, StoppedError
from sgps.files import sha256_file
from sgps.memory import COUNTS, ROWS, Contribution, Coordinates, Memory, pool
from sgps.release import BANK, CATALOGUE, GENERATOR, MANIFEST, MEMORY, Release, encoder_sha256, memory_bytes, write
from sgps.signing import load_private
from sgps_server import audit, enrolment, releases
from sgps_server.carry import carry_over, describe
from sgps_server.checkpoint import Checkpoint, read_state
from sgps_server.cli import app
from sgps_server.config import Folder, locked
from sgps_server.repool import repool

K, NEW_K = tiny_release.WIDTH, 5


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    from flwr.supercore.task_identity import TaskIdentity  # noqa: TID251  `Message(...)` asks it for its source

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return local_rounds.make(tmp_path)


def other_base(target: Path, seed: int = 1, **changes: Any) -> Release:
    """A release of another base network: five coordinates, other tensors."""
    source = tiny_release.make(target.with_name(f"{target.name}-source"), floats=6 + seed)
    old = Release.open(source, sha256=sha256_file(source / MANIFEST))
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(tiny_release.FEATURES, NEW_K)))[0].T.astype(np.float32)
    place = Coordinates(np.zeros(tiny_release.FEATURES, np.float32), axes, radius=3.0, within=2.0)
    memory = Memory.empty(place, old.manifest.classes)
    encoder = encoder_sha256(old.tensors(GENERATOR, "base."), old.manifest.architecture, memory)
    contents: dict[str, bytes | Path] = {CATALOGUE: SHIPPED, **{n: source / n for n in (GENERATOR, BANK)}}
    contents[MEMORY] = memory_bytes(changes.pop("memory", memory))
    write(target, contents, old.manifest.model_copy(update={"encoder_sha256": encoder, **changes}), None)
    return Release.open(target, sha256=sha256_file(target / MANIFEST))


def a_map(
    before: Release,
    after: Release,
    path: Path,
    about: dict[str, str] | None = None,
    domains: tuple[str, ...] = ("dermoscopy",),
) -> Path:
    shape = [len(r.memory().coordinates.directions) for r in (after, before)]
    rng = np.random.default_rng(2)
    facts = {"before": before.manifest.encoder_sha256, "after": after.manifest.encoder_sha256, **(about or {})}
    Map(
        rng.normal(size=shape),
        rng.uniform(0, 0.01, shape[0]),
        About(**facts, domains=domains, figures={"cosine": {"mean": 0.9}}),
    ).write(path)
    return path


def opened(folder: Folder, number: int) -> Release:
    key = load_private(folder.keys / "plan.key").public_key()
    return Release.open(folder.releases / releases.name_of(number), key=key)


def again(folder: Folder, release: Release, *pairs: tuple[int, str]) -> Memory:
    """The memory of these contributions, from their bytes and the maps of the release."""
    kept, steps, known = Checkpoint(folder.state).contributions, release.manifest.carried or (), maps(release)
    parts = [
        brought(
            steps, known, n, Contribution(s.arrays[ROWS], s.arrays[COUNTS], s.terms.sigma), release.manifest.classes
        )
        for n, s in ((pair[0], kept[pair]) for pair in pairs)
    ]
    return pool(release.memory().coordinates, release.manifest.classes, parts)


def same(one: Memory, two: Memory) -> None:
    for name in ("total", "count", "spread", "noise", "scale"):
        assert getattr(one, name) == pytest.approx(getattr(two, name)), name
    assert one.carried is not None and two.carried is not None
    assert one.carried.noise == pytest.approx(two.carried.noise)
    assert one.carried.drift == pytest.approx(two.carried.drift)


ONE = [(1, s) for s in ("north", "south", "west")]


def test_rows_come_along_and_later_rounds_join_them(folder: Folder, tmp_path: Path) -> None:
    run(folder, 1, wait_for=3)
    source = other_base(tmp_path / "new")
    file = a_map(opened(folder, 1), source, tmp_path / "map")
    made = carry_over(folder, source, file)
    release = opened(folder, 2)
    assert made.release.sha256 == release.sha256 and made.lost == ()
    assert release.manifest.encoder_sha256 == source.manifest.encoder_sha256
    assert (release.folder / GENERATOR).read_bytes() == (source.folder / GENERATOR).read_bytes()
    (step,) = release.manifest.carried or ()
    assert (step.last, step.map_sha256, step.figures) == (1, sha256_file(file), {"cosine": {"mean": "0.9"}})
    assert release.manifest.rounds == opened(folder, 1).manifest.rounds
    assert release.manifest.statements == opened(folder, 1).manifest.statements
    before, memory = opened(folder, 1).memory(), release.memory()
    matrix = maps(release)[0].matrix * memory.coordinates.radius / before.coordinates.radius
    assert memory.total == pytest.approx(before.total @ matrix.T)
    assert memory.count == pytest.approx(before.count)
    same(memory, again(folder, release, *ONE))

    run(folder, 3, wait_for=3)
    third, three = opened(folder, 3), [(3, s) for _, s in ONE]
    assert third.manifest.carried == release.manifest.carried
    assert [r.round for r in third.manifest.rounds] == [1, 3]
    same(third.memory(), again(folder, third, *ONE, *three))

    enrolment.withdraw(folder, "west")
    run(folder, 4, wait_for=2)
    kept = [(n, s) for n in (1, 3, 4) for s in ("north", "south")]
    same(opened(folder, 4).memory(), again(folder, opened(folder, 4), *kept))
    key = load_private(folder.keys / "plan.key").public_key()
    audit.verify(folder.audit, releases.anchors(folder.releases, key))


def test_rows_of_pictures_that_the_map_never_saw_stay_behind(folder: Folder, tmp_path: Path) -> None:
    run(folder, 1, wait_for=3)
    source = other_base(tmp_path / "new")
    file = a_map(opened(folder, 1), source, tmp_path / "map", domains=("chest x-ray",))
    made = carry_over(folder, source, file)
    assert (made.rows, made.left) == ((1, 0), ("df",))
    memory = opened(folder, 2).memory()
    assert not memory.total.any() and not memory.count.any() and memory.worth(1) == 0
    assert (opened(folder, 2).manifest.carried or ())[0].left == source.manifest.classes
    assert "left behind: df" in describe(made)
    run(folder, 3, wait_for=3)
    fresh = opened(folder, 3).memory()
    assert fresh.count[1] > 20 and fresh.worth(1) > 0


def test_two_maps_one_after_the_other(folder: Folder, tmp_path: Path) -> None:
    run(folder, 1, wait_for=3)
    for number, seed in ((2, 1), (3, 2)):
        source = other_base(tmp_path / f"new{seed}", seed)
        carry_over(folder, source, a_map(opened(folder, number - 1), source, tmp_path / f"map{seed}"))
    release = opened(folder, 3)
    assert [c.last for c in release.manifest.carried or ()] == [1, 2]
    first, second = maps(release)
    scale = release.memory().coordinates.radius / opened(folder, 1).memory().coordinates.radius
    assert release.memory().total == pytest.approx(
        scale * opened(folder, 1).memory().total @ (second.matrix @ first.matrix).T
    )
    same(release.memory(), again(folder, release, *ONE))


def test_a_crash_between_release_and_checkpoint_is_healed_by_the_same_command(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, 1, wait_for=3)
    source = other_base(tmp_path / "new")
    file = a_map(opened(folder, 1), source, tmp_path / "map")

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            carry_over(folder, source, file)
    assert read_state(folder.state).done == 1
    sha256 = opened(folder, 2).sha256
    assert carry_over(folder, source, file).release.sha256 == sha256
    assert read_state(folder.state).done == 2
    key = load_private(folder.keys / "plan.key").public_key()
    audit.verify(folder.audit, releases.anchors(folder.releases, key))


def test_who_withdraws_before_an_interrupted_carry_is_finished_is_told_and_taken_out_next(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, 1, wait_for=3)
    source = other_base(tmp_path / "new")
    file = a_map(opened(folder, 1), source, tmp_path / "map")
    words = ["releases", "carry", "--map", str(file), "--release", str(source.folder), "--config", str(folder.config)]

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        stopped = CliRunner().invoke(app, words).exception
    assert isinstance(stopped, StoppedError) and stopped.exit_code == 130
    assert str(stopped) == "stopped - nothing is lost: give the same command again"
    enrolment.withdraw(folder, "west")
    finished = CliRunner().invoke(app, words)
    assert finished.exit_code == 0, finished.exception
    assert "begun before west withdrew: `sgps-server releases repool` takes that out" in finished.output
    assert [r.sites for r in opened(folder, 2).manifest.rounds] == [("north", "south", "west")]
    assert repool(folder).without == ("west",)
    same(opened(folder, 3).memory(), again(folder, opened(folder, 3), (1, "north"), (1, "south")))
    key = load_private(folder.keys / "plan.key").public_key()
    audit.verify(folder.audit, releases.anchors(folder.releases, key))


def test_what_does_not_belong_together_is_refused_and_nothing_is_written(folder: Folder, tmp_path: Path) -> None:
    run(folder, 1, wait_for=3)
    source, now = other_base(tmp_path / "new"), opened(folder, 1)
    good = a_map(now, source, tmp_path / "map")
    full = pool(
        source.memory().coordinates, source.manifest.classes, [Contribution(np.ones((3, NEW_K)), np.ones(3), 1.0)]
    )
    cases: list[tuple[Release, Path, str]] = [
        (
            source,
            a_map(now, source, tmp_path / "m1", {"before": "d" * 64}),
            "rows of another hash are not used.*--from",
        ),
        (source, a_map(now, source, tmp_path / "m2", {"after": "d" * 64}), "rows of another hash are not used.*--to"),
        (other_base(tmp_path / "classes", classes=("df", "akiec", "vasc")), good, "other classes"),
        (other_base(tmp_path / "full", memory=full), good, "contributions of another federation"),
        (other_base(tmp_path / "another", 3), good, "rows of another hash are not used.*--to"),
    ]
    for release, file, says in cases:
        with pytest.raises(InputError, match=says):
            carry_over(folder, release, file)
    wrong = tmp_path / "shape"
    about = About(before=now.manifest.encoder_sha256, after=source.manifest.encoder_sha256, figures={})
    Map(np.ones((NEW_K, K + 1)), np.zeros(NEW_K), about).write(wrong)
    with pytest.raises(InputError, match="shape of the two spaces"):
        carry_over(folder, source, wrong)
    with locked(folder.state / "lock"), pytest.raises(StateError, match="another process"):
        carry_over(folder, source, good)
    assert releases.names(folder.releases) == ["0000", "0001"] and read_state(folder.state).done == 1
    assert not [e for e in audit.read(folder.audit) if e["event"] == "carried"]


def test_not_while_a_round_is_open_or_between_a_mean_and_its_rows(folder: Folder, tmp_path: Path) -> None:
    from sgps_server.checkpoint import Open

    run(folder, 1, wait_for=3)
    source = other_base(tmp_path / "new")
    file = a_map(opened(folder, 1), source, tmp_path / "map")
    checkpoint = Checkpoint(folder.state)
    terms = checkpoint.state.terms[1]
    checkpoint.save(open=Open(round=2, attempt=1, terms=terms, code=()))
    with pytest.raises(StateError, match="round 2 is open"):
        carry_over(folder, source, file)
    checkpoint.save(open=None, terms={1: {**terms, "kind": "site_mean"}}, accepted=())
    with pytest.raises(StateError, match="took the means"):
        carry_over(folder, source, file)


def test_the_command_says_what_was_carried(folder: Folder, tmp_path: Path) -> None:
    run(folder, 1, wait_for=3)
    source = other_base(tmp_path / "new")
    file = a_map(opened(folder, 1), source, tmp_path / "map")
    words = ["releases", "carry", "--map", str(file), "--release", str(source.folder), "--config", str(folder.config)]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.exception
    assert (
        "rows of rounds up to 1 carried" in found.output
        and "counts as round 2: where further rounds are to follow, raise `rounds`" in found.output
    )
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, SgpsError) and "rows of another hash are not used" in str(error)
