"""Tables and class folders: what fits becomes records, what does not is named with its first rows."""

import io
import unicodedata
import zipfile
from pathlib import Path

import pydicom
import pytest
from PIL import Image

from sgps.errors import ConfigError, InputError
from sgps_client.config import Budget, Cohort
from sgps_client.data import Records, open_cohort, open_source, read_labelled
from sgps_client.data.table import read_table

IDS = ("mel", "bkl", "df")


def jpeg(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(out, "JPEG")
    return out.getvalue()


def folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
    return tmp_path / "pictures"


def cohort(tmp_path: Path, table: str | None = None, *, classes: dict[str, str] | None = None, **more: str) -> Records:
    """A table with rows `image_id,patient_id,lesion_id,dx` and files a to f, unless other columns are named."""
    if table is not None:
        (tmp_path / "table.csv").write_text(table)
    more = {"unit_column": "patient_id", **more}
    settings = Cohort(
        name="first",
        images="pictures",
        table=None if table is None else "table.csv",
        budget=Budget(epsilon=3, delta=1e-5),
        **more,
    )
    return open_cohort(settings, tmp_path, classes or {}, IDS)


@pytest.fixture
def six(tmp_path: Path) -> Path:
    folder(tmp_path, *(f"{n}.jpg" for n in "abcdef"))
    return tmp_path


HEAD = "image_id,patient_id,lesion_id,dx\n"


def test_patients_with_several_pictures_and_classes(six: Path) -> None:
    records = cohort(six, HEAD + "c,p2,l3,df\nb,p1,l2,Naevus\na,p1,l1,mel\n", classes={"Naevus": "bkl"})
    assert records.patients == ["p1", "p2"] and records.unit_column == "patient_id"
    assert not records.problems and records.notes == ["3 pictures without a row in the table: not used"]
    assert [label for label, _ in records.images("p1")] == ["mel", "bkl"]  # a.jpg before b.jpg
    assert records.classes() == {"bkl": 1, "df": 1, "mel": 1}
    assert records.images("p2")[0][1]().size == (20, 20)


def test_bad_picture_raises_only_when_it_is_read(six: Path) -> None:
    (six / "pictures" / "a.jpg").write_bytes(jpeg()[:300])
    records = cohort(six, HEAD + "a,p1,l1,mel\n")
    ((_, read),) = records.images("p1")
    with pytest.raises(InputError, match=r"pictures/a\.jpg: is damaged"):
        read()


def problem(six: Path, table: str, line: str, kept: list[str], **more: str) -> None:
    records = cohort(six, table, **more)
    assert records.problems == [line]
    assert records.patients == kept


def test_missing_patient_ids_are_grouped(six: Path) -> None:
    table = HEAD + "a,,l1,mel\nb,p1,l2,mel\nc, ,l3,mel\nd,,l4,mel\ne,,l5,mel\n"
    problem(six, table, "no patient_id: 4 rows (2, 4, 5, ...) - fill it in or remove the rows", ["p1"])


def test_no_column_with_patient_ids(six: Path) -> None:
    with pytest.raises(InputError, match=r"table\.csv: has no column 'patient_id' - unit_column: one of image_id, dx"):
        cohort(six, "image_id,dx\na,mel\n")
    with pytest.raises(InputError, match="has no column with patient ids"):
        read_table(b"image_id,dx\na,mel\n", "t.csv")


def test_unknown_classes(six: Path) -> None:
    records = cohort(six, HEAD + "a,p1,l1,mel\nb,p2,l2,zzz\nc,p3,l3,zzz\nd,p4,l4,yyy\n")
    assert records.problems == [
        "unknown class 'yyy': 1 picture (first row 5) - write `yyy: ID` under `classes:` (`sgps-client classes` lists ids), or `yyy: none` to leave it out",
        "unknown class 'zzz': 2 pictures (first row 3) - write `zzz: ID` under `classes:` (`sgps-client classes` lists ids), or `zzz: none` to leave it out",
    ]
    assert records.patients == ["p1"]


def test_repeated_rows(six: Path) -> None:
    table = HEAD + "a,p1,l1,mel\nb,p2,l2,mel\na,p1,l1,mel\n"
    problem(six, table, "the same picture again: 1 row (4) - remove the repeated rows", ["p1", "p2"])


def test_lesion_with_two_patients(six: Path) -> None:
    """Somebody would be in two records: both are left out."""
    table = HEAD + "a,p1,l1,mel\nb,p2,l1,mel\nc,p3,l2,mel\n"
    line = "two patients for one lesion: 2 rows (2, 3) - a lesion belongs to one patient; correct the ids"
    problem(six, table, line, ["p3"])


def test_two_diagnoses_for_one_picture(six: Path) -> None:
    table = HEAD + "a,p1,l1,mel\na.jpg,p1,l1,bkl\nb,p2,l2,mel\n"
    problem(six, table, "two diagnoses for one picture: 2 rows (2, 3) - keep the right one", ["p2"])


def test_two_patients_for_one_picture(six: Path) -> None:
    table = "image_id,patient_id,dx\na,p1,mel\na,p2,mel\nb,p2,mel\n"
    problem(six, table, "two values of patient_id for one picture: 2 rows (2, 3) - keep the right one", ["p2"])


def test_missing_pictures_and_diagnoses(six: Path) -> None:
    records = cohort(six, HEAD + "a,p1,l1,mel\nzz,p2,l2,mel\nb,p3,l3,\n")
    assert records.problems == [
        "no diagnosis: 1 row (4) - fill it in or remove the rows",
        "picture not found: 1 row (3) - add the files or remove the rows",
    ]


def test_same_name_in_two_folders_needs_a_path(tmp_path: Path) -> None:
    folder(tmp_path, "x/a.jpg", "y/a.jpg")
    table = HEAD + "a,p1,l1,mel\ny/a.jpg,p2,l2,mel\n"
    problem(tmp_path, table, "several pictures of that name: 1 row (2) - write the path in the table", ["p2"])


def test_a_letter_in_two_encodings_is_one_letter(tmp_path: Path) -> None:
    """macOS writes ä into names of files as two characters, spreadsheets and people write one."""
    one, two = (unicodedata.normalize(form, "Nävus") for form in ("NFC", "NFD"))
    folder(tmp_path, f"{two}/{two}.jpg", "mel/b.jpg")
    records = cohort(tmp_path, unit_column="file name", classes={one: "bkl"})
    assert not records.problems and records.classes() == {"bkl": 1, "mel": 1}
    records = cohort(tmp_path, HEAD + f"{one},p1,l1,{two}\nb,p2,l2,mel\n", classes={one: "bkl"})
    assert not records.problems and records.classes() == {"bkl": 1, "mel": 1}
    records.images("p1")[0][1]()


def test_the_last_number_of_a_dicom_name_is_no_suffix(tmp_path: Path) -> None:
    path = folder(tmp_path, "x.jpg").parent
    sample = Path(pydicom.__file__).parent / "data" / "test_files" / "examples_rgb_color.dcm"
    (path / "pictures" / "1.2.840.7").write_bytes(sample.read_bytes())
    problem(
        tmp_path,
        HEAD + "1.2.840,p1,l1,mel\nx,p2,l2,mel\n",
        "picture not found: 1 row (2) - add the files or remove the rows",
        ["p2"],
    )


def test_lesion_as_unit_says_so(six: Path) -> None:
    records = cohort(six, HEAD + "a,p1,l1,mel\nb,p1,l2,mel\n", unit_column="lesion_id")
    assert records.patients == ["l1", "l2"] and records.unit_column == "lesion_id"
    assert "a patient with several lesions has several records" in records.notes[0]


@pytest.mark.parametrize(
    "text", ["\ufeffisic_id;lesion_id;diagnosis\r\na;l1;mel\r\n", "isic_id\tlesion_id\tdiagnosis\na\tl1\tmel\n"]
)
def test_spreadsheet_habits(text: str) -> None:
    (row,) = read_table(text.encode(), "t.csv").rows
    assert (row.number, row.image, row.unit, row.label) == (2, "a", "l1", "mel")


def test_a_cell_of_two_lines_is_one_row() -> None:
    table = read_table(b'image_id,patient_id,dx,note\na,p1,mel,"two\nlines"\nb,p2\n', "t.csv")
    assert table.rows[0].number == 2 and table.problems == ("not 4 cells: 1 row (3) - correct the rows",)


def test_row_numbers_count_lines_and_short_rows_are_named() -> None:
    table = read_table(b'image_id,patient_id,dx\n\n"a",p1,mel\nb,p2\n', "t.csv")
    assert table.rows[0].number == 3 and table.problems == ("not 3 cells: 1 row (4) - correct the rows",)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'image_id,patient_id,dx\n"a,p1,mel\n', "not a CSV table"),
        (b"image_id,image_id,dx\n", "'image_id' twice"),
        (b"", "t.csv: is empty"),
        (b"image_id,patient_id,dx\n", "a header and no row"),
        (b"image_id,patient_id,dx\n" + b"a" * 200_000 + b",p,mel\n", "not a CSV table"),
    ],
)
def test_bad_tables(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_table(data, "t.csv")
    assert "\n" not in str(caught.value)


def test_class_folders_need_the_written_consent_that_each_picture_is_a_patient(tmp_path: Path) -> None:
    folder(tmp_path, "set/mel/1.jpg", "set/mel/2.jpg", "set/df/3.jpg")
    with pytest.raises(ConfigError, match="unit_column: file name"):
        cohort(tmp_path)
    records = cohort(tmp_path, unit_column="file name")
    assert records.patients == ["1.jpg", "2.jpg", "3.jpg"] and records.classes() == {"df": 1, "mel": 2}
    assert records.notes == ["no patient ids: each picture counts as one patient"]


def test_pictures_of_kinds_that_are_not_read_are_counted(tmp_path: Path) -> None:
    folder(tmp_path, "mel/1.jfif", "mel/2.heic", "df/3.HEIF", ".hidden/4.heic")
    line = "2 pictures of a kind that is not read (.heic, .heif): left out; save them as JPEG or PNG to use them"
    records = cohort(tmp_path, unit_column="file name")
    assert records.patients == ["1.jfif"] and records.notes == [
        "no patient ids: each picture counts as one patient",
        line,
    ]
    assert cohort(tmp_path, HEAD + "1,p1,l1,mel\n").notes == [line]
    (tmp_path / "pictures" / "mel" / "1.jfif").unlink()
    with pytest.raises(InputError, match="holds no picture; 2 pictures of a kind that is not read"):
        cohort(tmp_path, unit_column="file name")


def test_class_folders_with_loose_and_repeated_names(tmp_path: Path) -> None:
    folder(tmp_path, "0.jpg", "mel/1.jpg", "df/1.jpg", "df/2.jpg")
    records = cohort(tmp_path, unit_column="file name")
    assert records.patients == ["2.jpg"]
    assert [line.split(" (first")[0] for line in records.problems] == [
        "1 picture in no class folder - move into one",
        "1 file name in two folders",
    ]


def test_pictures_of_the_same_name_are_all_evaluated(tmp_path: Path) -> None:
    """Sets number their pictures anew in each class; nobody's privacy hangs on it when a classifier is evaluated."""
    labelled = read_labelled(open_source(folder(tmp_path, "mel/1.jpg", "df/1.jpg")))
    assert not labelled.problems and [p.unit for p in labelled.pictures] == ["df/1.jpg", "mel/1.jpg"]


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        cohort(tmp_path, unit_column="file name")


def test_zip_that_brings_its_table(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.writestr("meta.csv", "lesion_id,image_id,dx\nl1,a,mel\nl1,b,mel\n")
        for name in ("mel/a.jpg", "mel/b.jpg"):
            file.writestr(name, jpeg())
    labelled = read_labelled(open_source(tmp_path / "set.zip"), "meta.csv", folder=tmp_path)
    assert labelled.notes == (f"the table is {tmp_path / 'set.zip'}/meta.csv",)
    assert [(p.unit, p.name, p.label) for p in labelled.pictures] == [
        ("l1", "mel/a.jpg", "mel"),
        ("l1", "mel/b.jpg", "mel"),
    ]


def test_table_named_but_absent(six: Path) -> None:
    settings = Cohort(
        name="first", images="pictures", table="none.csv", unit_column="x", budget=Budget(epsilon=3, delta=1e-5)
    )
    with pytest.raises(InputError, match=r"none\.csv: does not exist - correct the path"):
        open_cohort(settings, six, {}, IDS)


def test_another_table_is_never_read_in_place_of_the_one_that_is_named(six: Path) -> None:
    """A wrong path must not lead to the table of that name beside the pictures: it may list other patients."""
    (six / "pictures" / "table.csv").write_text(HEAD + "a,p1,l1,mel\n")
    source = open_source(six / "pictures")
    with pytest.raises(InputError, match=r"wrong/table\.csv: does not exist - name it as table\.csv to use the one in"):
        read_labelled(source, "wrong/table.csv", folder=six)
    with pytest.raises(InputError, match="does not exist"):
        read_labelled(source, str(six / "elsewhere" / "table.csv"))
    assert len(read_labelled(source, "table.csv", folder=six).pictures) == 1


def test_a_table_that_nobody_named_is_told(tmp_path: Path) -> None:
    folder(tmp_path, "a.jpg")
    (tmp_path / "pictures" / "meta.csv").write_text(HEAD + "a,p1,l1,mel\n")
    with pytest.raises(InputError, match=r"no class folders - name the table that lies in it: meta\.csv"):
        read_labelled(open_source(tmp_path / "pictures"))
    folder(tmp_path, "mel/b.jpg")
    labelled = read_labelled(open_source(tmp_path / "pictures"))
    assert "meta.csv lies beside the pictures and is not used: no table is named" in labelled.notes


def test_a_label_can_be_left_out_and_an_unknown_one_is_told_with_its_id(six: Path) -> None:
    table = HEAD + "a,p1,l1,Naevus\nb,p1,l2,mel\nc,p2,l3,Naevus\nd,p3,l4,scar: old\n"
    assert (
        cohort(six, table, classes={"Naevus": "none"}).notes[-1]
        == "left out, as `classes:` says: 2 pictures of 'Naevus'"
    )
    records = cohort(six, table, classes={"Naevus": "none"})
    assert records.patients == ["p1"]  # p2 shows nothing else
    (line,) = records.problems
    assert "unknown class 'scar: old': 1 picture (first row 5) - write `'scar: old': ID` under `classes:`" in line
    assert "`Dermatofibroma: df`" in cohort(six, HEAD + "a,p1,l1,Dermatofibroma\n").problems[0]
    assert (
        "'Naevus' is no class: 'naevus' is no id of the release: 2 pictures (first row 2) - write `Naevus: ID`"
        in (cohort(six, table, classes={"Naevus": "naevus"}).problems[0])
    )


def test_public_lesions_are_read_as_their_table_says(shared_data: Path) -> None:
    source = open_source(shared_data / "ham10000_200x150.zip")
    labelled = read_labelled(source, "HAM10000_metadata.csv", unit_column="lesion_id")
    assert len(labelled.pictures) == 10_015 and len({p.unit for p in labelled.pictures}) == 7_470
    assert not labelled.problems
