"""Pictures from untrusted bytes, and the tensors that the base network was trained on.

Importing this module imports no torch; `batch` and `views` do.
"""

import hashlib
import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sgps.errors import InputError
from sgps.files import read_limited

if TYPE_CHECKING:
    import torch

BYTES_LIMIT = 64 << 20  # of one file
PIXELS_LIMIT = 64_000_000  # 192 MB once decoded; below Pillow's own limit
LEAST_SIDE = 16  # pixels; less than that shows nothing of a disease
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp"})
UNREAD = frozenset(  # pictures of kinds that are not read; of every other file nothing is said
    {
        ".heic",
        ".heif",
        ".avif",
        ".gif",
        ".svg",
        ".jp2",
        ".jxl",
        ".psd",
        ".raw",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".orf",
        ".rw2",
        ".raf",
    }
)
_DEEP = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_DEPTHS = (8, 12, 16)  # bits that detectors and cameras have


def decode(data: bytes, where: object) -> Image.Image:
    """Bytes of one picture -> RGB, 8 bit, upright as its EXIF says, without metadata.

    Bytes and pixels are limited before anything is decoded. Transparent parts become white. Grey levels beyond 8 bit are
    scaled from 12 or 16 bit, whichever holds the brightest pixel. CMYK is converted without its colour profile.
    where: named in the error. Raises InputError, one line.
    """
    if len(data) > BYTES_LIMIT:
        raise InputError(
            f"is larger than {BYTES_LIMIT:,} bytes", where=where, do="export the picture in a smaller size"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns of is either refused below or harmless
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_header(image, where)
                image.load()
                return _rgb(ImageOps.exif_transpose(image), where)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(where) from error
    except UnidentifiedImageError as error:
        raise InputError("is not a picture", where=where, do=f"give one of {', '.join(FORMATS)}") from error
    except MemoryError as error:
        raise InputError("does not fit into memory", where=where, do="export the picture in a smaller size") from error
    except Exception as error:  # Pillow's decoders raise whatever broken bytes make them raise
        raise InputError("is damaged or cut off", where=where, do="export or copy the picture again") from error


def read(path: Path) -> Image.Image:
    """The picture in one file. Raises InputError when it is missing, too large or not a picture."""
    return decode(read_limited(path, BYTES_LIMIT), path)


def left_out(names: Iterable[str]) -> list[str]:
    """One line when there are pictures of kinds that are not read among these files, none otherwise."""
    suffixes = [s for name in names if (s := PurePosixPath(name).suffix.lower()) in UNREAD]
    if not suffixes:
        return []
    what = f"{len(suffixes)} picture{'s' * (len(suffixes) != 1)} of a kind that is not read ({', '.join(sorted({*suffixes}))})"
    return [f"{what}: left out; save them as JPEG or PNG to use them"]


def pixels_sha256(image: Image.Image) -> str:
    """Hash of size and pixels: the same for two files of one picture."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def from_array(pixels: np.ndarray, where: object) -> Image.Image:
    """uint8 [h, w, 3] -> picture under the same limits. Raises InputError."""
    image = Image.fromarray(pixels)
    _check_header(image, where)
    return _rgb(image, where)


def _too_many_pixels(where: object) -> InputError:
    return InputError(f"has more than {PIXELS_LIMIT:,} pixels", where=where, do="export the picture in a smaller size")


def _check_header(image: Image.Image, where: object) -> None:
    width, height = image.size
    if width * height > PIXELS_LIMIT:
        raise _too_many_pixels(where)
    if min(width, height) < LEAST_SIDE:
        raise InputError(
            f"is {width}x{height} pixels, the least is {LEAST_SIDE} a side", where=where, do="give the whole picture"
        )
    # The further frames of a camera's MPO file are previews or a second eye; those of a TIFF could be anything.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InputError("holds several pictures", where=where, do="give each picture as a file of its own")


def _rgb(image: Image.Image, where: object) -> Image.Image:
    if image.mode in _DEEP:
        image = _eight_bit(image, where)
    elif image.mode == "F":
        raise InputError("holds fractions, not grey levels", where=where, do="export it with 8 or 16 bit")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info.clear()
    return image


def _eight_bit(image: Image.Image, where: object) -> Image.Image:
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() >= 1 << _DEPTHS[-1]:
        raise InputError("holds grey levels beyond 16 bit", where=where, do="export it with 8 or 16 bit")
    top = next((1 << bits) - 1 for bits in _DEPTHS if grey.max() < 1 << bits)
    return Image.fromarray((grey * 255 // top).astype(np.uint8))


def batch(images: Sequence[Image.Image], size: int, mean: Sequence[float], std: Sequence[float]) -> "torch.Tensor":
    """RGB pictures of any size -> float32 [n, 3, size, size], (x - mean) / std per channel, x in 0..1.

    The middle square, resized bicubic with antialiasing in float and clipped to 0..1: the evaluation view of the base network's
    training. Raises ValueError when there is no picture.
    """
    import torch
    from torch.nn.functional import interpolate

    if not images:
        raise ValueError("a batch needs at least one picture")
    squares = torch.empty(len(images), 3, size, size)
    for place, image in enumerate(images):
        pixels = np.array(image.convert("RGB"))
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = torch.from_numpy(pixels[top : top + side, left : left + side]).permute(2, 0, 1)[None].float() / 255
        squares[place] = interpolate(square, (size, size), mode="bicubic", antialias=True, align_corners=False)[0]
    middle, spread = (torch.tensor(tuple(v), dtype=torch.float32).view(1, 3, 1, 1) for v in (mean, std))
    return (squares.clamp_(0, 1) - middle) / spread


def views(x: "torch.Tensor", count: int = 8) -> "torch.Tensor":
    """[n, 3, s, s] -> [count, n, 3, s, s]: the quarter turns, then their mirror images; the first is x itself.

    Raises ValueError unless count is 1 to 8 and the pictures are square.
    """
    import torch

    if not 1 <= count <= 8 or x.shape[-1] != x.shape[-2]:
        raise ValueError("there are one to eight views of a square picture")
    turned = (torch.rot90(x, view % 4, (2, 3)) for view in range(count))
    return torch.stack([t.flip(3) if view >= 4 else t for view, t in enumerate(turned)])
