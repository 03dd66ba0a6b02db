"""Whatever bytes come, readers give pictures or one line; nothing else escapes."""

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pydicom
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sgps.errors import InputError
from sgps_client.data.pictures import decode_picture
from sgps_client.data.sources import open_source
from sgps_client.data.table import read_table

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))


def encoded(kind: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    PICTURE.convert(mode).save(out, kind)
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("df/1.png", encoded("PNG"))
        file.writestr("nv/2.png", encoded("PNG"))
    return out.getvalue()


WHOLE = [
    *(encoded(kind) for kind in ("JPEG", "PNG", "TIFF", "BMP", "WEBP")),
    encoded("TIFF", "CMYK"),
    encoded("PNG", "P"),
    encoded("PNG", "I;16"),
    *((SAMPLES / name).read_bytes() for name in ("MR_small_RLE.dcm", "SC_rgb_small_odd.dcm", "examples_palette.dcm")),
]
ZIP = zipped()


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes changed, cut off or put in: most of them in the header, where they mean something."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.one_of(st.integers(0, min(400, len(data) - 1)), st.integers(0, len(data) - 1)))
        data[at] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del data[draw(st.integers(8, len(data))) :]
    return bytes(data)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(WHOLE).flatmap(damaged))
def test_damaged_pictures_become_pictures_or_one_line(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            picture = decode_picture(data, "x")
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert picture.mode == "RGB" and min(picture.size) >= 16


@settings(max_examples=100, deadline=None)
@given(data=damaged(ZIP))
def test_damaged_zips_are_read_or_refused_in_one_line(tmp_path_factory: object, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.zip"  # type: ignore[attr-defined]
    path.write_bytes(data)
    try:
        source = open_source(path)
        for name in source.names:
            assert not name.startswith("/") and ".." not in name.split("/")
            source.read(name)
    except InputError as error:
        assert "\n" not in str(error)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_any_bytes_are_a_table_or_one_line(data: bytes) -> None:
    for head in (b"", b"image_id,patient_id,dx\n"):
        try:
            table = read_table(head + data, "t.csv")
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert all(row.number > 1 for row in table.rows)
