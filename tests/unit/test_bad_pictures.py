"""Every odd and every broken picture, through every reader: the right pixels, or one line that names the file and what to do."""

import io
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench

from sgps import images
from sgps.errors import InputError
from sgps_client import check_cohorts, making, prediction
from sgps_client.data import cohort, open_source, pictures, read_labelled, read_picture
from sgps_client.records import encoded

RED = Image.new("RGB", (40, 30), (200, 30, 60))
GREY = np.tile(np.linspace(0, 250, 40).astype(np.uint8), (30, 1))


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bomb(side: int = 20_000) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def dicom(pixels: np.ndarray[Any, Any], kind: str, syntax: str = ExplicitVRLittleEndian, **more: Any) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    item = FileDataset("", Dataset(), file_meta=meta, preamble=bytes(128))
    item.SOPClassUID, item.SOPInstanceUID = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID
    item.Rows, item.Columns = pixels.shape[:2]
    item.SamplesPerPixel, item.PhotometricInterpretation = (3 if pixels.ndim == 3 else 1), kind
    if pixels.ndim == 3:
        item.PlanarConfiguration = 0
    item.BitsAllocated = item.BitsStored = 8 * pixels.itemsize
    item.HighBit, item.PixelRepresentation = item.BitsStored - 1, 0
    item.PixelData = pixels.tobytes()
    for name, value in more.items():
        if value is None:
            delattr(item, name)
        else:
            setattr(item, name, value)
    out = io.BytesIO()
    item.save_as(out, enforce_file_format=True)
    return out.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(RED, "JPEG", exif=exif, quality=95)


# name -> bytes, and the size and the mean colour that a reader must give
GOOD: dict[str, tuple[bytes, tuple[int, int], tuple[int, int, int]]] = {
    "plain.png": (file(RED), (40, 30), (200, 30, 60)),
    "palette.png": (file(RED.quantize(4)), (40, 30), (200, 30, 60)),
    "transparent.png": (file(Image.new("RGBA", (40, 30), (0, 0, 0, 0))), (40, 30), (255, 255, 255)),
    "one-bit.png": (file(Image.new("1", (40, 30), 1)), (40, 30), (255, 255, 255)),
    "deep.png": (file(Image.fromarray(np.full((30, 40), 65535, np.uint16))), (40, 30), (255, 255, 255)),
    "deep.tif": (file(Image.fromarray(np.full((30, 40), 65535, np.uint16)), "TIFF"), (40, 30), (255, 255, 255)),
    "cmyk.jpg": (file(Image.new("CMYK", (40, 30), (0, 0, 0, 255)), "JPEG"), (40, 30), (0, 0, 0)),
    "turned.jpg": (turned(), (30, 40), (200, 30, 60)),
    "grey.dcm": (dicom(GREY, "MONOCHROME2"), (40, 30), (125, 125, 125)),
    "inverted.dcm": (dicom(255 - GREY, "MONOCHROME1"), (40, 30), (125, 125, 125)),
    "deep.dcm": (dicom(GREY.astype(np.uint16) * 257, "MONOCHROME2"), (40, 30), (128, 128, 128)),
    "colour.dcm": (dicom(np.asarray(RED), "RGB"), (40, 30), (200, 30, 60)),
}
BAD: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "is not a picture"),
    "text.jpg": (b"patient Doe", "is not a picture"),
    "animation.png": (file(RED, "GIF"), "is not a picture"),
    "one-pixel.png": (file(Image.new("RGB", (1, 1))), "is 1x1 pixels"),
    "line.png": (file(Image.new("RGB", (4000, 1))), "is 4000x1 pixels"),
    "cut.jpg": (file(RED, "JPEG")[:300], "is damaged or cut off"),
    "cut.png": (file(RED)[:-40], "is damaged or cut off"),
    "bomb.png": (bomb(), "has more than 64,000,000 pixels"),
    "several.tif": (file(RED, "TIFF", save_all=True, append_images=[RED]), "holds several pictures"),
    "fractions.tif": (file(Image.fromarray(np.zeros((30, 40), np.float32)), "TIFF"), "holds fractions"),
    "cut.dcm": (dicom(GREY, "MONOCHROME2")[:-300], "cannot be decoded"),
    "head.dcm": (dicom(GREY, "MONOCHROME2")[:150], "holds no picture"),
    "report.dcm": (dicom(GREY, "MONOCHROME2", PixelData=None), "holds no picture"),
    "film.dcm": (dicom(GREY, "MONOCHROME2", NumberOfFrames=9), "holds several frames"),
    "bomb.dcm": (dicom(GREY, "MONOCHROME2", Rows=60_000, Columns=60_000), "has more than 64,000,000 pixels"),
    "one-pixel.dcm": (dicom(GREY[:1, :1].copy(), "MONOCHROME2"), "is 1x1 pixels"),
    "deflated.dcm": (dicom(GREY, "MONOCHROME2", DeflatedExplicitVRLittleEndian), "is deflated as a whole"),
    "strange.dcm": (dicom(GREY, "HSV"), "photometric interpretation"),
}
Reader = Callable[[Path, str, bytes], Image.Image]


def as_exemplar(folder: Path, name: str, data: bytes) -> Image.Image:
    (folder / name).write_bytes(data)
    (pictures,) = making.asked([folder / name], "df", [], []).exemplars.values()
    return pictures[0]


def as_asked_file(folder: Path, name: str, data: bytes) -> Image.Image:
    (folder / name).write_bytes(data)
    (item,) = prediction.gather([folder / name])
    return item.load()


def as_asked_folder(folder: Path, name: str, data: bytes) -> Image.Image:
    (folder / name).write_bytes(data)
    (item,) = prediction.gather([folder])
    return item.load()


def as_labelled(folder: Path, name: str, data: bytes) -> Image.Image:
    (folder / "df").mkdir()
    (folder / "df" / name).write_bytes(data)
    source = open_source(folder)
    (picture,) = read_labelled(source).pictures
    return read_picture(source, picture.name)


def as_member_of_a_zip(folder: Path, name: str, data: bytes) -> Image.Image:
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(f"df/{name}", data)
    source = open_source(folder / "set.zip")
    (picture,) = read_labelled(source).pictures
    return read_picture(source, picture.name)


READERS: tuple[Reader, ...] = (as_exemplar, as_asked_file, as_asked_folder, as_labelled, as_member_of_a_zip)


@pytest.mark.parametrize("read", READERS)
def test_odd_pictures_have_the_same_pixels_in_every_reader(tmp_path: Path, read: Reader) -> None:
    for name, (data, size, colour) in GOOD.items():
        (tmp_path / name).mkdir()
        found = read(tmp_path / name, name, data)
        assert (found.mode, found.size) == ("RGB", size), name
        assert np.allclose(np.asarray(found).mean((0, 1)), colour, atol=3), name


@pytest.mark.parametrize("read", READERS)
def test_broken_pictures_are_one_line_in_every_reader(tmp_path: Path, read: Reader) -> None:
    for name, (data, words) in BAD.items():
        (tmp_path / name).mkdir()
        with pytest.raises(InputError) as caught:
            read(tmp_path / name, name, data)
        line = str(caught.value)
        assert words in line and f"/{name}: " in line and "\n" not in line, line
        assert caught.value.do, f"{line}: says nothing of what to do"


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (images, pictures):
        monkeypatch.setattr(module, "BYTES_LIMIT", 1000)
    for read in (as_exemplar, as_asked_file):
        (tmp_path / read.__name__).mkdir()
        with pytest.raises(InputError, match="is larger than 1,000 bytes"):
            read(tmp_path / read.__name__, "large.png", bytes(2000))


def test_a_patient_with_a_broken_picture_is_an_empty_record_and_check_names_the_picture(tmp_path: Path) -> None:
    """Whatever is wrong with one patient's picture, the others' records are the same to the bit and nothing is raised."""
    bench = site_bench.make(tmp_path / "north", slots=len(BAD) + site_bench.PATIENTS, seconds_per_patient=60)
    whole = _records(bench)
    with (bench.folder / "table.csv").open("a") as table:
        for number, (name, (data, _)) in enumerate(BAD.items()):
            (bench.folder / "images" / name).write_bytes(data)
            table.write(f"{name},zz {number:02d},df\n")
    found = _records(bench)
    assert found[len(whole) :] == [None] * len(BAD)
    for before, after in zip(whole, found, strict=False):
        assert before is not None and after is not None
        assert before.labels == after.labels and np.array_equal(before.features, after.features)
    told = [f.what for f in check_cohorts.cohorts(bench.site, bench.release) if f.area == "cohort" and f.bad]
    assert len(told) == 6 and f"and {len(BAD) - 5} pictures more" in told[-1]


def test_a_patient_who_does_not_fit_into_memory_is_an_empty_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = site_bench.make(tmp_path / "north", seconds_per_patient=60)

    def too_large(source: Any, name: str) -> Image.Image:
        if name == "p2-0.png":
            raise MemoryError
        return read_picture(source, name)

    monkeypatch.setattr(cohort, "read_picture", too_large)
    assert [record is None for record in _records(bench)] == [False, False, True, False, False]


def _records(bench: site_bench.Bench) -> list[Any]:
    from sgps.encoders import ImageEncoder
    from sgps_client.records import cohort_of

    site, release = bench.site, bench.release
    return encoded(cohort_of(site, "first", release.manifest.classes), ImageEncoder(release), release, site)


def test_a_picture_that_does_not_fit_into_memory_is_told_so(tmp_path: Path) -> None:
    """49 megapixels of one colour: a small file, decoded where the machine has no room for it."""
    Image.new("RGB", (7000, 7000)).save(tmp_path / "wide.png", compress_level=1)
    code = (
        "import resource, sys; from pathlib import Path; from sgps import images; from sgps.errors import InputError\n"
        "from PIL import Image; Image.init()\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)\n"
        "try: images.read(Path(sys.argv[1]))\n"
        "except InputError as error: sys.exit(str(error))\n"
    )
    paths = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "wide.png")], env=paths, capture_output=True, text=True, check=False
    )
    assert "wide.png: does not fit into memory - export the picture in a smaller size" in done.stderr
