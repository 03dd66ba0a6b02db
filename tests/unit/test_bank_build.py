"""A centre's own bank: one sample a patient, named by its hash, for one base network; what it may not hold is refused."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from sgps.bank import Bank
from sgps.cli import app
from sgps.encoders import ImageEncoder
from sgps.errors import InputError
from sgps.files import sha256_file
from sgps.images import read
from sgps.pretrain import bank as banks
from sgps.pretrain.pictures import listing
from sgps.release import BANK, FILES, MANIFEST, Provenance, Release, write
from sgps.synthesis import Synthesizer

Small = Callable[..., Release]


@pytest.fixture(scope="session")
def small(small_release: Small, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A small release that holds a class out."""
    old = small_release()
    target = tmp_path_factory.mktemp("held-out") / "release"
    held = Provenance(
        name="x", licence="CC0", source="x", images=1, classes=("nv",), left_out=("df",), used_for="base network"
    )
    write(target, {n: old.folder / n for n in FILES}, old.manifest.model_copy(update={"provenance": (held,)}), None)
    return Release.open(target, sha256=sha256_file(target / MANIFEST))


@pytest.fixture
def pictures(tmp_path: Path, drawn: Callable[..., list[Any]]) -> Path:
    """Two classes of five patients; two pictures of the first patient of `mel`."""
    folder = tmp_path / "open-set"
    for profile, kind in enumerate(("mel", "nv"), 40):
        (folder / kind).mkdir(parents=True)
        for n, image in enumerate(drawn(profile, 0, 6)):
            image.save(folder / kind / f"{kind}-{n}.png")
    (folder / "nv" / "nv-5.png").unlink()
    table(folder, {"mel-5": "mel-0"})
    return folder


def table(folder: Path, other: dict[str, str]) -> None:
    with (folder / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "patient_id"])
        for path in sorted(folder.rglob("*.png")):
            rows.writerow([path.stem, other.get(path.stem, path.stem)])


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_table_of_a_spreadsheet_names_the_patients(pictures: Path, delimiter: str) -> None:
    path = pictures / "table.csv"
    path.write_text("\ufeff" + path.read_text().replace(",", delimiter))
    lesion = dict(zip((found := listing(pictures)).name.tolist(), found.lesion.tolist(), strict=True))
    assert lesion["mel/mel-5.png"] == lesion["mel/mel-0.png"] == "mel-0"


def test_a_table_that_is_none_is_told(pictures: Path) -> None:
    (pictures / "table.csv").write_text(f"image_id,patient_id\n{'a' * 200_000},p\n")
    with pytest.raises(InputError, match=r"table\.csv: is not a CSV table"):
        listing(pictures)


def test_the_folder_of_a_site_is_not_published(small: Release, pictures: Path) -> None:
    (pictures / "site.yaml").write_text("site: north\n")
    with pytest.raises(InputError, match="whose pictures are private"):
        banks.make(small, pictures, "CC0-1.0", "the archive of X")


def test_one_sample_is_the_mean_of_a_patients_pictures(small: Release, pictures: Path, tmp_path: Path) -> None:
    made = banks.make(small, pictures, "CC0-1.0", "the archive of X")
    assert made.left_out == []
    assert [c.id for c in made.bank.classes] == ["mel", "nv"] and made.about.patients == {"mel": 5, "nv": 5}
    assert (made.about.pictures, made.about.encoder_sha256) == (11, small.manifest.encoder_sha256)
    both = [read(pictures / "mel" / f"mel-{n}.png") for n in (0, 5)]
    assert made.bank.features[0] == pytest.approx(ImageEncoder(small).features(both).mean(0), abs=1e-4)
    sha256 = made.write(tmp_path / "bank")
    again = banks.read_bank(tmp_path / "bank")
    assert sha256 == sha256_file(tmp_path / "bank") and again.about == made.about
    (pictures / "mel" / "phone.heic").write_bytes(b"")
    more = banks.make(small, pictures, "CC0-1.0", "the archive of X")
    assert (
        more.left_out[0].startswith("1 picture of a kind that is not read (.heic): left out")
        and more.about.pictures == 11
    )
    (pictures / "mel" / "phone.heic").unlink()
    assert banks.make(small, pictures, "CC0-1.0", "the archive of X").write(tmp_path / "again") == sha256


def test_a_release_takes_it_and_names_its_licence(
    small: Release, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgps.pretrain.process.prepare_process", lambda threads: None)
    words = [
        "bank",
        "build",
        "--data",
        str(pictures),
        "--release",
        str(small.folder),
        "--licence",
        "CC0-1.0",
        "--beside",
    ]
    found = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "bank")])
    assert found.exit_code == 0 and sha256_file(tmp_path / "bank") in found.output
    words = [
        "bank",
        "put",
        "--bank",
        str(tmp_path / "bank"),
        "--release",
        str(small.folder),
        "--out",
        str(tmp_path / "r"),
    ]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.exception
    release = Release.open(tmp_path / "r", sha256=sha256_file(tmp_path / "r" / MANIFEST))
    assert release.manifest.files[BANK] == sha256_file(tmp_path / "bank")
    assert "reference bank: CC0-1.0" in release.manifest.licence
    (entry,) = [p for p in release.manifest.provenance if p.name == "open-set"]
    assert (entry.licence, entry.classes, entry.images) == ("CC0-1.0", ("mel", "nv"), 11)
    old, new = Bank.of(small), Synthesizer(release).bank
    assert [c.id for c in new.classes] == [*(c.id for c in old.classes), "mel", "nv"]
    assert np.array_equal(new.features[: len(old.features)], old.features)
    assert release.manifest.encoder_sha256 == small.manifest.encoder_sha256


def test_a_class_that_is_given_anew_takes_the_old_ones_place(small: Release, pictures: Path, tmp_path: Path) -> None:
    first = banks.make(small, pictures, "CC0-1.0", beside=True)
    first.write(tmp_path / "bank")
    banks.put(small, tmp_path / "bank", tmp_path / "r")
    release = Release.open(tmp_path / "r", sha256=sha256_file(tmp_path / "r" / MANIFEST))
    second = banks.make(release, pictures, "CC0-1.0", beside=True)
    assert second.bank.classes == first.bank.classes and len(second.bank.features) == len(first.bank.features)


def spoil(kind: str, folder: Path) -> None:
    mel = folder / "mel"
    if kind == "held out":
        mel.rename(folder / "df")
    elif kind == "unknown":
        mel.rename(folder / "no such disease")
    elif kind == "few":
        for n in (1, 2):
            (mel / f"mel-{n}.png").unlink()
    elif kind == "two classes":
        table(folder, {"mel-1": "nv-1"})
    elif kind == "two patients":
        (mel / "mel-9.png").write_bytes((mel / "mel-1.png").read_bytes())
    elif kind == "one class twice":
        (folder / "Melanoma").mkdir()
        for n in range(4):
            (mel / f"mel-{n}.png").rename(folder / "Melanoma" / f"mel-{n}.png")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("held out", "df is held out"),
        ("unknown", "no such disease is no class"),
        ("few", "mel has 3 patients, needs 4"),
        ("two classes", "patient nv-1 has two classes"),
        ("two patients", "a picture of another patient, too"),
        ("one class twice", "are one class"),
    ],
)
def test_what_a_bank_may_not_hold(small: Release, pictures: Path, kind: str, says: str) -> None:
    spoil(kind, pictures)
    with pytest.raises(InputError, match=says):
        banks.make(small, pictures, "CC0-1.0")


def test_no_licence_no_bank(small: Release, pictures: Path) -> None:
    with pytest.raises(InputError, match="--licence: is empty"):
        banks.make(small, pictures, "  ")


def test_a_bank_of_another_base_or_of_none_is_not_taken(small: Release, pictures: Path, tmp_path: Path) -> None:
    made = banks.make(small, pictures, "CC0-1.0")
    banks.Made(made.bank, made.about.model_copy(update={"encoder_sha256": "a" * 64})).write(tmp_path / "other")
    with pytest.raises(InputError, match="belongs to base network aaaa"):
        banks.put(small, tmp_path / "other", tmp_path / "r")
    save_file(load_file(small.folder / BANK), tmp_path / "plain")
    with pytest.raises(InputError, match="is no bank"):
        banks.put(small, tmp_path / "plain", tmp_path / "r")
    assert not (tmp_path / "r").exists()
