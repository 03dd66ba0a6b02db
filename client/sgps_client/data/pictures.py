"""Which files are pictures, and how each becomes RGB."""

from pathlib import Path, PurePosixPath

from PIL import Image

from sgps.files import read_limited
from sgps.images import BYTES_LIMIT, SUFFIXES, decode
from sgps_client.data.dicom import decode_dicom, is_dicom
from sgps_client.data.sources import Source

_DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic"})


def decode_picture(data: bytes, where: object) -> Image.Image:
    """Bytes of a picture file or of a DICOM object -> RGB. Raises InputError, one line."""
    return decode_dicom(data, where) if is_dicom(data) else decode(data, where)


def open_picture(path: Path) -> Image.Image:
    """The picture in one file. Raises InputError that names it."""
    return decode_picture(read_limited(path, BYTES_LIMIT), path)


def read_picture(source: Source, name: str) -> Image.Image:
    """One picture of a source. Raises InputError that names it."""
    return decode_picture(source.read(name), source.where(name))


def picture_names(source: Source) -> list[str]:
    """Names of the pictures of a source, sorted: by suffix, and files without one when they are DICOM."""
    return [name for name in source.names if _is_picture(source, name)]


def _is_picture(source: Source, name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in SUFFIXES or suffix in _DICOM_SUFFIXES:
        return True
    # Archives write DICOM names such as IM0001 or 1.2.840.113619.
    return (not suffix or suffix[1:].isdecimal()) and is_dicom(source.head(name, 132))
