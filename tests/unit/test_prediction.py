"""From pictures to a CSV: what cannot be read is named and passed over, and nothing is half-written."""

import csv
import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import random_classifier

from sgps.classifier import Classifier
from sgps.errors import InputError
from sgps_client import prediction
from sgps_client.prediction import answer, gather, write_csv


@pytest.fixture(scope="module")
def model() -> Classifier:
    return random_classifier.make("df", rivals=("nv", "mel"))


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    Image.fromarray(pixels).resize((70, 80)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A picture alone, a folder with a damaged one, and a zip."""
    (tmp_path / "one.jpg").write_bytes(jpeg(0))
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "b.jpg").write_bytes(jpeg(1))
    (tmp_path / "folder" / "a.jpg").write_bytes(jpeg(2)[:400])
    (tmp_path / "folder" / "deep" / "c.png").write_bytes(jpeg(3))
    (tmp_path / "folder" / "notes.txt").write_text("no picture")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
        file.writestr("d.jpg", jpeg(4))
    return tmp_path


def test_everything_is_found_in_order(pictures: Path) -> None:
    items = gather([pictures / "z.zip", pictures / "folder", pictures / "one.jpg"])
    names = [Path(i.name).relative_to(pictures).as_posix() for i in items]
    assert names == ["z.zip/d.jpg", "folder/a.jpg", "folder/b.jpg", "folder/deep/c.png", "one.jpg"]


def test_a_jpeg_as_windows_names_it_is_read_and_kinds_that_are_not_are_counted(pictures: Path) -> None:
    (pictures / "folder" / "w.JFIF").write_bytes(jpeg(5))
    assert prediction.unread([pictures / "folder", pictures / "z.zip"]) == []
    for name in ("1.heic", "deep/2.HEIC", "3.gif"):
        (pictures / "folder" / name).write_bytes(b"")
    assert [i.name.rsplit("/", 1)[1] for i in gather([pictures / "folder"])] == ["a.jpg", "b.jpg", "c.png", "w.JFIF"]
    line = "3 pictures of a kind that is not read (.gif, .heic): left out; save them as JPEG or PNG to use them"
    assert prediction.unread([pictures / "folder", pictures / "one.jpg"]) == [f"{pictures / 'folder'}: {line}"]
    (pictures / "other").mkdir()
    (pictures / "other" / "4.avif").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"holds no picture; 1 picture of a kind that is not read \(\.avif\): left out"
    ):
        gather([pictures / "other"])


def test_dicom_is_a_picture_like_any_other(tmp_path: Path, model: Classifier) -> None:
    sample = Path(pydicom.__file__).parent / "data" / "test_files" / "examples_rgb_color.dcm"
    (tmp_path / "IM0001").write_bytes(sample.read_bytes())
    (found,) = answer(model, gather([tmp_path])).predictions.values()
    (again,) = answer(model, gather([sample])).predictions.values()
    assert found == again


def test_missing_and_empty_paths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jpg: does not exist"):
        gather([tmp_path / "none.jpg"])
    with pytest.raises(InputError, match="holds no picture"):
        gather([tmp_path])


def test_bad_picture_is_named_and_the_others_are_answered(pictures: Path, model: Classifier) -> None:
    items = gather([pictures / "folder", pictures / "z.zip"])
    seen: list[tuple[int, int]] = []
    answers = answer(model, items, progress=lambda done, total: seen.append((done, total)))
    assert sorted(answers.predictions) == [1, 2, 3] and seen[-1] == (4, 4)
    (line,) = answers.bad
    assert line.startswith(f"{pictures / 'folder' / 'a.jpg'}: is damaged") and "\n" not in line
    with pytest.raises(InputError, match=r"a\.jpg: is damaged"):
        answer(model, items, strict=True)


def test_answers_do_not_depend_on_batches(pictures: Path, model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    items = gather([pictures / "one.jpg", pictures / "folder", pictures / "z.zip"])
    together = answer(model, items).predictions
    monkeypatch.setattr(prediction, "BATCH_PIXELS", 1)
    alone = answer(model, items).predictions
    assert together.keys() == alone.keys() == {0, 2, 3, 4}
    assert all(together[i].score == pytest.approx(alone[i].score, abs=1e-4) for i in alone)


def test_csv(pictures: Path, model: Classifier) -> None:
    items = gather([pictures / "folder"])
    answers = answer(model, items)
    out = pictures / "out.csv"
    write_csv(out, model, items, answers)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(r["image"]).name for r in rows] == ["a.jpg", "b.jpg", "c.png"]
    assert rows[0]["fault"].startswith(f"{pictures / 'folder' / 'a.jpg'}: is damaged")
    assert not any(value for key, value in rows[0].items() if key not in {"image", "fault"})
    assert not any(row["fault"] for row in rows[1:])
    rows = rows[1:]
    first = answers.predictions[1]
    assert float(rows[0]["probability"]) == pytest.approx(first.probability, rel=1e-5)
    assert float(rows[0]["logit mel"]) == pytest.approx(first.scores["mel"], rel=1e-5)
    assert rows[0]["accepted"] == str(first.accepted).lower() and rows[0]["label"] == first.label
    assert os.stat(out).st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="exists already"):
        write_csv(out, model, items, answers)


def test_no_name_of_a_picture_is_a_formula(tmp_path: Path, model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spreadsheet computes a cell that begins with one of = + - @."""
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.jpg", "@a.jpg"]
    for name, data in zip(names, (jpeg(0), b"no picture"), strict=True):
        Path(name).write_bytes(data)
    items = gather([Path(name) for name in names])
    write_csv(Path("out.csv"), model, items, answer(model, items))
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["image"] for r in rows] == ["./=1+1.jpg", "./@a.jpg"] and rows[1]["fault"].startswith("./@a.jpg: is not")


def test_csv_of_a_picture_whose_name_is_no_text(pictures: Path, model: Classifier) -> None:
    path = pictures / os.fsdecode(b"n\xe4vus.jpg")
    path.write_bytes(jpeg(0))
    items = gather([path])
    write_csv(pictures / "out.csv", model, items, answer(model, items))
    assert "n\\udce4vus.jpg" in (pictures / "out.csv").read_text(encoding="utf-8")


def test_csv_is_whole_or_not_there(pictures: Path, model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    items = gather([pictures / "one.jpg"])
    answers = answer(model, items)
    before = set(pictures.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_csv(pictures / "out.csv", model, items, answers)
    assert set(pictures.iterdir()) == before
