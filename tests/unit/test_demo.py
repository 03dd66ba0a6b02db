"""The demo deals patients cleanly, refuses what it cannot use, and its offline commands cannot reach anything."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sgps.demo.story import MARK, _fresh, _three
from sgps.demo.world import COHORTS, DRAWN, HOLDERS, SITES, World, build
from sgps.draw import PRESETS, write_folder
from sgps.errors import InputError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("demo"), None, None)


def test_no_patient_crosses_a_cut(world: World) -> None:
    at_sites = {p.patient for p in world.at_sites}
    tested = {p.patient for p in world.held_out}
    assert not at_sites & tested
    listed: list[str] = []
    for table in world.tables.values():
        rows = [line.split(",")[1] for line in table.read_text().splitlines()[1:]]
        listed += sorted(set(rows))
    assert len(listed) == len(set(listed)) and set(listed) == at_sites


def test_two_diseases_lie_in_their_sites_and_the_third_nowhere(world: World) -> None:
    for place, disease in enumerate(world.diseases):
        holders = {site for (site, _), cell in world.patients.items() if cell[disease]}
        assert holders == {SITES[s] for s in HOLDERS[place]}
        at_sites = sum(cell[disease] for cell in world.patients.values())
        tested = len({p.patient for p in world.held_out if p.disease == disease})
        assert at_sites == (tested if HOLDERS[place] else 0) and tested >= 16
    assert set(world.tables) == {(site, cohort) for site in SITES for cohort in COHORTS}


def test_a_zip_of_class_folders_and_a_table_is_dealt_by_patient(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", [PRESETS[d] for d in DRAWN], 16, seed=0, size=32, views=2)
    for shadow in ("__MACOSX", ".Trash"):  # what a Mac puts beside every file
        (tmp_path / "set" / shadow / DRAWN[0]).mkdir(parents=True)
        for n in range(3):
            (tmp_path / "set" / shadow / DRAWN[0] / f"._{n}.jpg").write_bytes(b"Mac OS X")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in (tmp_path / "set").rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path / "set"))
    for source in (tmp_path / "set.zip", tmp_path / "set"):
        world = build(tmp_path / f"out-{source.name}", source, DRAWN)
        assert len(world.held_out) + len(world.at_sites) == 2 * (8 + 8 + 8 + 8 + 8)
        assert {p.patient for p in world.at_sites}.isdisjoint(p.patient for p in world.held_out)
        assert world.held_out[0].image().size == (32, 32)


@pytest.mark.parametrize("name", ["none.zip", "text.zip"])
def test_what_is_no_data_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(InputError, match="give a zip or a folder"):
        build(tmp_path / "out", tmp_path / name, None)


def test_too_few_patients_is_one_line(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", [PRESETS[d] for d in DRAWN], 3, seed=0, size=32)
    with pytest.raises(InputError, match="3 patients of"):
        build(tmp_path / "out", tmp_path / "set", DRAWN)


def test_only_a_demos_own_folder_is_made_anew(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not made by a demo"):
        _fresh(mine)
    assert (mine / "thesis.txt").exists()
    _fresh(tmp_path / "demo")
    (tmp_path / "demo" / "old").touch()
    _fresh(tmp_path / "demo")
    assert [p.name for p in (tmp_path / "demo").iterdir()] == [MARK]


def test_three_different_diseases_are_needed() -> None:
    assert _three("a, b,c") == ("a", "b", "c") and _three(None) is None
    for text in ("a,b", "a,b,a"):
        with pytest.raises(InputError, match="three different ids"):
            _three(text)


@pytest.mark.parametrize(
    "action", ["socket.create_connection(('127.0.0.1', 9))", "socket.getaddrinfo('localhost', 80)"]
)
def test_offline_commands_cannot_use_a_socket(tmp_path: Path, action: str) -> None:
    (tmp_path / "caller.py").write_text(f"import socket\n{action}\n")
    command = [sys.executable, "-m", "sgps.demo.offline", "caller"]
    paths = f"{Path(__file__).resolve().parents[2] / 'sgps'}:{tmp_path}"
    done = subprocess.run(command, env={"PYTHONPATH": paths}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode and "this command runs offline" in done.stderr
