"""synthesize, predict and evaluate as a person runs them: what they print, their exit codes, and what lies on disk afterwards."""

import io
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import random_classifier
import site_bench

from sgps.classifier import Classifier
from sgps.draw import draw_patient, draw_profile
from sgps.release import FILES, Release, write
from sgps_client import cli, making

TEXT = "A firm, symmetric nodule with a central white patch and a delicate peripheral network."


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """The command line, in a folder of its own. An exit code other than 0 comes with one line on stderr, not a traceback."""
    monkeypatch.chdir(tmp_path)

    def command(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["sgps-client", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return command


def fails(ran: Ran, code: int, *words: str) -> None:
    assert ran.code == code, ran
    assert ran.err.count("\n") == 1 and ran.err.startswith("sgps-client: ") and not ran.out
    assert all(word in ran.err for word in words), ran.err


@pytest.fixture
def exemplar(tmp_path: Path) -> Path:
    return lesion(tmp_path / "exemplar.png", 0)


def lesion(path: Path, seed: int, profile: int = 3) -> Path:
    (pixels,) = draw_patient(draw_profile(profile), seed, views=1, size=160)
    Image.fromarray(pixels).save(path)
    return path


def pinned(release: Release) -> tuple[object, ...]:
    return "--release", release.folder, "--sha256", release.sha256


# --- what is refused before anything is loaded ---------------------------------------------------------------------------


def test_options_that_do_not_go_together(run: Any, exemplar: Path) -> None:
    fails(run("synthesize", "--disease", "df", "--out", "m"), 2, "--exemplar IMG and --disease NAME")
    fails(run("synthesize", "--exemplar", exemplar, "--out", "m"), 2, "--disease NAME")
    fails(
        run("synthesize", "--exemplar", exemplar, "--disease", " ", "--out", "m"),
        2,
        "options: no exemplar or no disease",
    )
    fails(run("synthesize", "--class", "df", "--out", "m"), 2, "'df' is not NAME=IMG")
    fails(
        run("synthesize", "--class", f"df={exemplar}", "--disease", "df", "--out", "m"), 2, "every disease as --class"
    )
    fails(run("synthesize", "--class", f"df={exemplar}", "--text", "nv=x", "--out", "m"), 2, "'nv' is no --class")
    one = ("synthesize", "--exemplar", exemplar, "--disease", "df", "--out", "m")
    fails(run(*one, "--sha256", "0" * 64), 2, "belong to --release")
    fails(
        run(*one, "--with-own-patients", "--release", "r", "--sha256", "0" * 64),
        2,
        "r: holds no release - name a folder with release.yaml",
    )
    fails(run(*one, "--release", "r"), 3, "needs a pinned key")
    fails(run(*one, "--config", "none.yaml"), 2, "none.yaml: no such file")


def bad_picture(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.jpg"
    out = io.BytesIO()
    Image.new("RGB", (90, 80), "pink").save(out, "JPEG")
    if kind == "truncated":
        path.write_bytes(out.getvalue()[:500])
    elif kind == "huge":
        header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)))
    elif kind == "text":
        path.write_text("no picture")
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [("missing", "cannot be read"), ("truncated", "cut off"), ("huge", "pixels"), ("text", "not a picture")],
)
def test_bad_exemplar(run: Any, tmp_path: Path, kind: str, words: str) -> None:
    path = bad_picture(kind, tmp_path)
    before = set(tmp_path.iterdir())
    fails(run("synthesize", "--exemplar", path, "--disease", "df", "--out", "m"), 2, path.name, words)
    assert set(tmp_path.iterdir()) == before


def test_a_name_given_twice_is_refused(run: Any, exemplar: Path, model: Path, labelled: Path) -> None:
    """The second value would take the place of the first without a word."""
    two = ("synthesize", "--class", f"df={exemplar}", "--class", f"nv={exemplar}", "--out", "m")
    fails(run(*two, "--text", "df=a", "--text", "df=b"), 2, "--text: 'df' is given twice")
    ran = run("evaluate", "--model", model, "--data", labelled, "--class", "nv=df", "--class", "nv=df")
    fails(ran, 2, "--class: 'nv' is given twice")


def test_the_same_picture_twice_is_refused(run: Any, exemplar: Path, tmp_path: Path) -> None:
    """A copy would count as another patient, and the stated probability would be too sure."""
    shutil.copy(exemplar, tmp_path / "copy.png")
    two = ("synthesize", "--exemplar", exemplar, "--exemplar", "copy.png", "--disease", "df", "--out", "m")
    fails(run(*two), 2, "df: one picture is given twice")
    two = ("synthesize", "--class", f"df={exemplar}", "--class", "nv=copy.png", "--out", "m")
    fails(run(*two), 2, "nv: a picture of it is also one of df")


def test_only_what_a_killed_run_left_of_this_very_folder_is_removed(tmp_path: Path) -> None:
    mine, kept = [".m.abcd_123.tmp"], [".m.v2.abcd_123.tmp", ".mm.abcd_123.tmp", ".m.notes.tmp"]
    for name in (*mine, *kept):
        (tmp_path / name).mkdir()
    making.check_target(tmp_path / "m")
    making.check_target(tmp_path / "m*")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_nothing_is_overwritten(run: Any, exemplar: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    fails(run("synthesize", "--exemplar", exemplar, "--disease", "df", "--out", "m"), 2, "m: exists already")
    fails(run("predict", "--model", "x", exemplar, "--out", "m"), 2, "m: exists already")
    fails(run("evaluate", "--model", "x", "--data", tmp_path, "--out", "m"), 2, "m: exists already")


# --- predict and evaluate, with a real network of random weights ---------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "df"
    random_classifier.make("df", rivals=("nv",), ids=("df", "nv")).save(folder)
    return folder


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Three pictures of df, four of others, as class folders."""
    for place, name in enumerate(["df/1", "df/2", "df/3", "nv/4", "nv/5", "mel/6", "mel/7"]):
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        lesion(path, place)
    return tmp_path / "data"


def test_a_text_that_is_too_long_is_refused_before_anything_is_made(run: Any, exemplar: Path, tmp_path: Path) -> None:
    ran = run("synthesize", "--exemplar", exemplar, "--disease", "df", "--text", "scar " * 500, "--out", "m")
    fails(ran, 2, "--text: is longer than 2,000 characters")
    assert not (tmp_path / "m").exists()


def test_predict_skips_and_names_bad_pictures(run: Any, model: Path, labelled: Path, tmp_path: Path) -> None:
    (labelled / "df" / "2.png").write_bytes(b"\x89PNG")
    (labelled / "df" / "phone.heic").write_bytes(b"")
    ran = run("predict", "--model", model, labelled, "--out", "r.csv")
    assert ran.code == 2 and "skipped: " in ran.err and "2.png" in ran.err
    assert "\n  probability: that it is df, whatever the label says, if half of the pictures showed it\n" in ran.out
    assert ran.out.count("\n") == 3 and "data: 1 picture of a kind that is not read (.heic): left out" in ran.out
    assert ran.out.startswith("r.csv: 6 pictures, ") and len((tmp_path / "r.csv").read_text().splitlines()) == 8
    ran = run("predict", "--model", model, labelled, "--out", "s.csv", "--json")
    assert ran.code == 2 and ran.facts["pictures"] == 6 and len(ran.facts["bad"]) == 1
    ran = run("predict", "--model", model, labelled, "--out", "t.csv", "--strict")
    assert ran.code == 2 and "2.png: is" in ran.err and not (tmp_path / "t.csv").exists()


def test_predict_needs_a_whole_model(run: Any, model: Path, exemplar: Path, tmp_path: Path) -> None:
    fails(run("predict", "--model", "none", exemplar, "--out", "r.csv"), 2, "none/calibration.json: cannot be read")
    shutil.copytree(model, tmp_path / "changed")
    weights = tmp_path / "changed" / "classifier.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    fails(run("predict", "--model", "changed", exemplar, "--out", "r.csv"), 4, "has changed since")


def test_evaluate_class_folders_says_that_pictures_are_counted(
    run: Any, model: Path, labelled: Path, tmp_path: Path
) -> None:
    ran = run("evaluate", "--model", model, "--data", labelled)
    assert ran.code == 0, ran.err
    assert "7 pictures of 7 patients (file name)" in ran.out and "each picture counts as one patient" in ran.out
    assert (tmp_path / "evaluation" / "roc.png").stat().st_size > 5000
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["labels"] == {
        "df": {"class": "df", "pictures": 3},
        "mel": {"class": None, "pictures": 2},
        "nv": {"class": None, "pictures": 2},
    }


def test_evaluate_by_patient_of_a_table(run: Any, model: Path, labelled: Path, tmp_path: Path) -> None:
    rows = ["1,p1,Knot", "2,p1,Knot", "3,p2,Knot", "4,p3,nv", "5,p4,nv", "6,p4,mel", "7,,mel"]
    (tmp_path / "t.csv").write_text("\n".join(["image_id,patient_id,dx", *rows]))
    base = ("evaluate", "--model", model, "--data", labelled, "--table", "t.csv", "--json")
    fails_json = run(*base)
    assert fails_json.code == 2 and "say which with --class LABEL=NAME" in json.loads(fails_json.err)["error"]
    ran = run(*base, "--class", "Knot=df")
    assert ran.code == 0, ran.err
    assert (ran.facts["pictures"], ran.facts["units"], ran.facts["unit_column"]) == (6, 4, "patient_id")
    assert any("no patient_id: 1 row (8)" in note for note in ran.facts["notes"])
    assert {"auroc", "false_alarm_rate", "ece", "brier"} <= ran.facts["figures"].keys()
    assert "only 2 patients of the disease: the interval says little" in ran.facts["notes"]


def test_evaluate_refuses_data_that_cannot_answer(run: Any, model: Path, labelled: Path) -> None:
    shutil.rmtree(labelled / "nv")
    shutil.rmtree(labelled / "mel")
    fails_with = run("evaluate", "--model", model, "--data", labelled)
    assert fails_with.code == 2 and "needs pictures of the disease and others" in fails_with.err


def test_evaluate_tells_why_no_picture_is_left(run: Any, model: Path, labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image_id,patient_id,dx\nelsewhere,p1,df\n")
    ran = run("evaluate", "--model", model, "--data", labelled, "--table", "t.csv")
    fails(ran, 2, "data: no picture is left", "picture not found: 1 row (2)")
    (tmp_path / "none").mkdir()
    fails(run("evaluate", "--model", model, "--data", "none"), 2, "none: no picture is left")


def test_an_evaluation_names_no_file(run: Any, model: Path, labelled: Path, tmp_path: Path) -> None:
    """It is what a person passes on; a picture's name may be a patient's."""
    shutil.copy(labelled / "df" / "1.png", labelled / "Jane-Doe.png")
    (labelled / "df" / "Jane-Doe.png").write_bytes(b"no picture")
    ran = run("evaluate", "--model", model, "--data", labelled)
    assert ran.code == 2 and "1 picture in no class folder" in ran.out and "Jane-Doe.png" in ran.err
    for name in ("evaluation.json", "evaluation.md"):
        assert "Jane-Doe" not in (tmp_path / "evaluation" / name).read_text()


def test_synonyms_of_the_catalogue_are_the_class(run: Any, model: Path, labelled: Path) -> None:
    (labelled / "df").rename(labelled / "Dermatofibroma")
    ran = run("evaluate", "--model", model, "--data", labelled, "--json")
    assert ran.code == 0 and ran.facts["labels"]["Dermatofibroma"]["class"] == "df"


def test_evaluate_several_diseases(run: Any, labelled: Path, tmp_path: Path) -> None:
    random_classifier.make("df", "nv", ids=("df", "nv")).save(tmp_path / "two")
    ran = run("evaluate", "--model", "two", "--data", labelled, "--json")
    assert ran.code == 0, ran.err
    assert {"accuracy", "balanced_accuracy", "outside_accepted"} <= ran.facts["figures"].keys()
    assert sum(sum(row.values()) for row in ran.facts["confusion"].values()) == 5


# --- synthesize, with the shipped release --------------------------------------------------------------------------------


def test_one_exemplar(run: Any, exemplar: Path, tmp_path: Path, release: Release) -> None:
    ran = run(
        "synthesize",
        "--exemplar",
        exemplar,
        "--disease",
        "Dermatofibroma",
        "--text",
        TEXT,
        *pinned(release),
        "--out",
        "m",
    )
    assert ran.code == 0, ran.err
    for words in (
        "class memory",
        "threshold",
        "false alarms on",
        "sensitivity",
        " s for the weights",
        "m is patient data",
    ):
        assert words in ran.out
    assert stat.S_IMODE(os.stat(tmp_path / "m").st_mode) == 0o700
    classifier = Classifier.load(tmp_path / "m")
    assert classifier.named == ("Dermatofibroma",) and len(classifier.labels) > 2
    assert classifier.record.origin.diseases[0].text == TEXT
    ran = run("predict", "--model", "m", exemplar, "--out", "r.csv", "--json")
    assert ran.code == 0 and ran.facts["accepted"] == {"Dermatofibroma": 1}


def test_shipped_release_is_the_default(run: Any, exemplar: Path, release: Release) -> None:
    ran = run("synthesize", "--exemplar", exemplar, "--disease", "df", "--out", "m", "--json")
    assert ran.code == 0, ran.err
    assert ran.facts["release_sha256"] == release.sha256 and ran.facts["named"] == ["df"]


def test_unknown_disease_offers_the_nearest_and_uses_no_row(run: Any, exemplar: Path, release: Release) -> None:
    one = (
        "synthesize",
        "--exemplar",
        exemplar,
        "--disease",
        "dermatofibromma",
        *pinned(release),
        "--out",
        "m",
        "--json",
    )
    fails_json = run(*one)
    assert fails_json.code == 2 and "no clinical text" in json.loads(fails_json.err)["error"]
    ran = run(*one, "--text", TEXT)
    assert ran.code == 0 and ran.facts["diseases"][0]["worth"] == 0
    assert any("nearest entries: dermatofibroma (df)" in note for note in ran.facts["notes"])


def test_several_diseases(run: Any, exemplar: Path, tmp_path: Path, release: Release) -> None:
    second, other = lesion(tmp_path / "second.png", 1), lesion(tmp_path / "other.png", 0, profile=8)
    words = ("--class", f"df={exemplar},{second}", "--class", f"rash={other}", "--text", "rash=red and flat")
    ran = run("synthesize", *words, *pinned(release), "--out", "m", "--json")
    assert ran.code == 0, ran.err
    assert ran.facts["labels"] == ["df", "rash"] and [d["exemplars"] for d in ran.facts["diseases"]] == [2, 1]


def test_with_own_patients(run: Any, tmp_path: Path, exemplar: Path, release: Release) -> None:
    """In a site's folder its newest release is taken, and its two patients with df count beside the exemplar."""
    bench = site_bench.make(tmp_path / "north")
    shutil.rmtree(bench.folder / "releases" / "0000")
    manifest = release.manifest.model_copy(update={"name": "0000", "federation": "derm", "fingerprint": bench.mark})
    write(bench.folder / "releases" / "0000", {n: release.folder / n for n in FILES}, manifest, bench.key)
    one = ("synthesize", "--exemplar", exemplar, "--disease", "df", "--out", tmp_path / "m", "--json")
    fails_json = run(*one, "--with-own-patients", *pinned(release))
    assert fails_json.code == 3 and "give --config site.yaml" in json.loads(fails_json.err)["error"]
    ran = run(*one, "--with-own-patients", "--config", bench.file)
    assert ran.code == 0, ran.err
    assert ran.facts["release"] == "0000" and ran.facts["diseases"][0]["own"] == 2
    assert "2 own patients of df, added exactly" in ran.facts["notes"]


@pytest.mark.parametrize("kind", ["cmyk", "turned"])
def test_odd_exemplars_are_the_same_picture(
    run: Any, tmp_path: Path, exemplar: Path, kind: str, release: Release
) -> None:
    """A CMYK copy, and one whose EXIF says how the camera lay, give the same answers as the plain one."""
    picture = Image.open(exemplar)
    if kind == "cmyk":
        picture.convert("CMYK").save(tmp_path / "odd.tif")
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "odd.tif", exif=exif)
    for name, path in (("a", exemplar), ("b", tmp_path / "odd.tif")):
        assert run("synthesize", "--exemplar", path, "--disease", "df", *pinned(release), "--out", name).code == 0
    a, b = (Classifier.load(tmp_path / n).state["classifier.weight"].numpy() for n in "ab")
    assert np.allclose(a, b, atol=1e-3 * np.abs(a).max())


@pytest.mark.parametrize("file", ["release.yaml", "bank.safetensors"])
def test_release_with_one_flipped_byte(run: Any, tmp_path: Path, exemplar: Path, file: str, release: Release) -> None:
    shutil.copytree(release.folder, tmp_path / "flipped")
    data = bytearray((tmp_path / "flipped" / file).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped" / file).write_bytes(data)
    words = ("--release", "flipped", "--sha256", release.sha256)
    fails(run("synthesize", "--exemplar", exemplar, "--disease", "df", *words, "--out", "m"), 4, f"flipped/{file}")
    assert not (tmp_path / "m").exists()


def test_kill_in_the_middle_leaves_nothing(run: Any, tmp_path: Path, exemplar: Path, release: Release) -> None:
    """Killed while the folder is being written: no model under its name, and the next run clears what lay beside it."""
    words = [
        "synthesize",
        "--exemplar",
        exemplar,
        "--disease",
        "df",
        *pinned(release),
        "--out",
        tmp_path / "kept" / "m",
    ]
    (tmp_path / "kept").mkdir()
    # The pause makes sure that the kill meets a half-written folder; it changes nothing else.
    slow = "import time, sgps.classifier as c; w = c.write_atomic; c.write_atomic = lambda *a, **k: (w(*a, **k), time.sleep(60))"
    code = f"{slow}; import sys; sys.argv = {['sgps-client', *map(str, words)]!r}; from sgps_client.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 300
        while not list((tmp_path / "kept").glob(".m.*/*")) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert process.poll() is None
        time.sleep(0.3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    torn = list((tmp_path / "kept").iterdir())
    assert len(torn) == 1 and torn[0].name.startswith(".m.") and stat.S_IMODE(torn[0].stat().st_mode) == 0o700
    assert run(*words).code == 0
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["m"]
    Classifier.load(tmp_path / "kept" / "m")
