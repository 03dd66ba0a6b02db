"""DICOM objects made here, and those that pydicom brings along."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from sgps.errors import InputError
from sgps_client.data.dicom import is_dicom
from sgps_client.data.pictures import decode_picture, picture_names
from sgps_client.data.sources import open_source

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


def dicom(pixels: np.ndarray[Any, Any], kind: str, syntax: str = ExplicitVRLittleEndian, **more: object) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    item = FileDataset("", Dataset(), file_meta=meta, preamble=bytes(128))
    item.SOPClassUID, item.SOPInstanceUID, item.PatientName = (
        SecondaryCaptureImageStorage,
        meta.MediaStorageSOPInstanceUID,
        "Doe^J",
    )
    item.Rows, item.Columns = pixels.shape[:2]
    item.SamplesPerPixel, item.PhotometricInterpretation = (3 if pixels.ndim == 3 else 1), kind
    if pixels.ndim == 3:
        item.PlanarConfiguration = 0
    item.BitsAllocated = item.BitsStored = 8 * pixels.itemsize
    item.HighBit, item.PixelRepresentation = item.BitsStored - 1, int(pixels.dtype.kind == "i")
    item.PixelData = pixels.tobytes()
    for name, value in more.items():
        setattr(item, name, value)
    out = io.BytesIO()
    item.save_as(out, enforce_file_format=True)
    return out.getvalue()


def refused(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        decode_picture(data, "scan.dcm")
    assert str(caught.value).startswith("scan.dcm: ") and "\n" not in str(caught.value)


RAMP = np.tile(np.linspace(0, 100, 32).astype(np.uint8), (32, 1))


def test_grey_of_8_bit_stays_as_it_is_and_monochrome1_is_turned_over() -> None:
    shown = np.asarray(decode_picture(dicom(RAMP, "MONOCHROME2"), "x"))
    assert shown.shape == (32, 32, 3) and np.array_equal(shown[..., 1], RAMP)
    assert np.array_equal(np.asarray(decode_picture(dicom(RAMP, "MONOCHROME1"), "x"))[..., 0], 255 - RAMP)


def test_window_of_the_object() -> None:
    """Hounsfield units -1000..1000 with window 0 +- 100: PS3.3 C.11.2.1.2 clips outside it."""
    units = np.tile(np.linspace(-1000, 1000, 41).astype(np.int16), (32, 1))
    data = dicom(units, "MONOCHROME2", WindowCenter="0", WindowWidth="200", RescaleSlope="1", RescaleIntercept="0")
    row = np.asarray(decode_picture(data, "x"))[0, :, 0]
    assert (row[:18] == 0).all() and (row[23:] == 255).all() and 120 <= row[20] <= 136


def test_grey_without_window_is_stretched_beside_its_padding() -> None:
    grey = np.tile(np.linspace(100, 300, 32).astype(np.int16), (32, 1))
    grey[0] = -2000
    shown = np.asarray(decode_picture(dicom(grey, "MONOCHROME2", PixelPaddingValue=-2000), "x"))[..., 0]
    assert shown[5, 0] == 0 and shown[5, -1] == 255 and (shown[0] == 0).all()


def test_colour() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[...] = (200, 30, 60)
    assert decode_picture(dicom(pixels, "RGB"), "x").getpixel((3, 3)) == (200, 30, 60)


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_rle.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm"],
)
def test_colour_of_other_encodings_is_the_same_chart(name: str) -> None:
    chart = decode_picture((SAMPLES / name).read_bytes(), name)
    assert np.allclose(chart.getpixel((50, 5)), (255, 0, 0), atol=3)
    assert np.allclose(chart.getpixel((50, 95)), (255, 255, 255), atol=3)


@pytest.mark.parametrize("name", ["examples_palette.dcm", "MR_small_RLE.dcm", "examples_jpeg2k.dcm", "CT_small.dcm"])
def test_samples_that_are_read(name: str) -> None:
    assert np.asarray(decode_picture((SAMPLES / name).read_bytes(), name)).std() > 20


def test_bad_objects() -> None:
    refused(
        dicom(np.zeros((4, 32, 32), np.uint8)[0], "MONOCHROME2", NumberOfFrames=4, PixelData=bytes(4096)),
        "several frames",
    )
    refused(dicom(RAMP, "CMYK"), "photometric interpretation 'CMYK'")
    refused(dicom(RAMP, "MONOCHROME2", Rows=60_000, Columns=60_000), "pixels")
    refused(dicom(RAMP, "MONOCHROME2")[:-200], "cannot be decoded")
    refused(dicom(RAMP, "MONOCHROME2")[:200], "DICOM|no picture")
    refused(dicom(RAMP, "MONOCHROME2", syntax=DeflatedExplicitVRLittleEndian), "deflated")
    refused((SAMPLES / "JPEGLSNearLossless_08.dcm").read_bytes(), "JPEG-LS.*uncompressed")
    refused((SAMPLES / "rtplan.dcm").read_bytes(), "no picture")
    refused(bytes(128) + b"DICM" + bytes(range(256)), "DICOM|no picture")


def test_the_index_of_a_medium_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert picture_names(open_source(tmp_path)) == []


def test_dicom_is_found_without_a_suffix(tmp_path: Path) -> None:
    data = dicom(RAMP, "MONOCHROME2")
    assert is_dicom(data) and not is_dicom(b"\xff\xd8\xff")
    for name, content in {
        "IM0001": data,
        "1.2.840.5": data,
        "a.dcm": data,
        "README": b"x" * 200,
        "b.txt": data,
        "c.JPG": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
    assert picture_names(open_source(tmp_path)) == ["1.2.840.5", "IM0001", "a.dcm", "c.JPG"]
