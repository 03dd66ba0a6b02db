"""DICOM objects of one frame as RGB pictures (PS3.3 C.7.6.3: photometric interpretation; C.11: modality and VOI tables)."""

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sgps.errors import InputError
from sgps.images import BYTES_LIMIT, PIXELS_LIMIT, from_array

if TYPE_CHECKING:
    from pydicom import Dataset

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PALETTE = "PALETTE COLOR"
_DEFLATED = "1.2.840.10008.1.2.1.99"


def is_dicom(data: bytes) -> bool:
    """Does it begin as a DICOM file does: 128 free bytes, then DICM (PS3.10 section 7.1)?"""
    return data[128:132] == b"DICM"


def decode_dicom(data: bytes, where: object) -> Image.Image:
    """One DICOM object of one frame -> RGB, 8 bit.

    Grey: modality rescale, then the object's own window or VOI table, stretched to 0..255 (8 bit without any of these stays as it
    is); MONOCHROME1 is turned over. Colour: to RGB. Nothing but pixels is kept. Raises InputError, one line.
    """
    if len(data) > BYTES_LIMIT:
        raise InputError(f"is larger than {BYTES_LIMIT:,} bytes", where=where, do="export a single frame")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of every value that is not by the book
            return from_array(_pixels(data, where), where)
    except (InputError, ImportError):
        raise
    except MemoryError as error:
        raise InputError("does not fit into memory", where=where, do="export it in a smaller size") from error
    except Exception as error:  # pydicom and its decoders raise whatever broken bytes make them raise
        raise InputError(
            "is a DICOM file that cannot be decoded", where=where, do="export it again, uncompressed"
        ) from error


def _pixels(data: bytes, where: object) -> NDArray[np.uint8]:
    from pydicom import dcmread
    from pydicom.filereader import read_dataset

    file = io.BytesIO(data)
    file.seek(132)
    meta = read_dataset(
        file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag.group != 2
    )
    if meta.get("TransferSyntaxUID") == _DEFLATED:  # pydicom would unpack it without a limit
        raise InputError("is deflated as a whole", where=where, do="export it as Explicit VR Little Endian")
    dataset = dcmread(io.BytesIO(data))
    _check(dataset, where)
    kind = str(dataset.PhotometricInterpretation)
    raw = _raw(dataset, where)
    if kind in _GREY:
        grey = _grey(raw, dataset)
        return 255 - grey if kind == "MONOCHROME1" else grey
    if kind == _PALETTE:
        from pydicom.pixels.processing import apply_color_lut

        raw = apply_color_lut(raw, dataset)[..., :3]
        return _eight_bit(raw, 8 * raw.itemsize)
    return _eight_bit(raw, int(dataset.BitsStored))


def _check(dataset: "Dataset", where: object) -> None:
    if "PixelData" not in dataset:
        raise InputError("holds no picture", where=where, do="leave out reports, structures and waveforms")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise InputError("holds several frames", where=where, do="export the frame that matters")
    if int(dataset.Rows) * int(dataset.Columns) > PIXELS_LIMIT:
        raise InputError(f"has more than {PIXELS_LIMIT:,} pixels", where=where, do="export it in a smaller size")
    kind = str(dataset.get("PhotometricInterpretation", "missing"))
    if kind not in (*_GREY, *_COLOUR, _PALETTE):
        raise InputError(
            f"has the photometric interpretation {kind[:20]!r}", where=where, do="export it as RGB or MONOCHROME2"
        )
    if int(dataset.BitsAllocated) not in (8, 16):
        raise InputError(f"has {dataset.BitsAllocated} bits a sample", where=where, do="export it with 8 or 16")


def _raw(dataset: "Dataset", where: object) -> NDArray[Any]:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        raise InputError(
            f"is compressed as {syntax.name}, which is not read here",
            where=where,
            do="export it uncompressed or as JPEG",
        )
    return np.asarray(pixel_array(dataset))


def _eight_bit(samples: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return (samples.astype(np.int64) * 255 // ((1 << bits) - 1)).clip(0, 255).astype(np.uint8)


def _grey(raw: NDArray[Any], dataset: "Dataset") -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    tables = ("WindowCenter", "VOILUTSequence", "ModalityLUTSequence", "RescaleSlope")
    if (
        int(dataset.BitsStored) == 8
        and not int(dataset.get("PixelRepresentation", 0))
        and not any(t in dataset for t in tables)
    ):
        return raw.astype(np.uint8)
    shown = raw != dataset.PixelPaddingValue if "PixelPaddingValue" in dataset else np.ones(raw.shape, bool)
    values = np.asarray(apply_voi_lut(apply_modality_lut(raw, dataset), dataset), dtype=np.float64)
    if not shown.any() or not np.isfinite(values).all():
        raise ValueError("no pixel can be shown")
    low, high = float(values[shown].min()), float(values[shown].max())
    return np.asarray(((values - low) / max(high - low, 1e-9)).clip(0, 1) * 255).round().astype(np.uint8)
