"""Untrusted pictures: each bad input gets one line, each odd one the right pixels."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgps import images
from sgps.errors import InputError

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)).resize((80, 60), Image.Resampling.NEAREST)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def refused(data: bytes, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        images.decode(data, "exemplar.jpg")
    line = str(caught.value)
    assert line.startswith("exemplar.jpg: ") and "\n" not in line
    assert all(word in line for word in words), line


def test_plain_picture_keeps_its_pixels() -> None:
    back = images.decode(encoded(PICTURE), "x")
    assert back.mode == "RGB"
    assert np.array_equal(np.asarray(back), np.asarray(PICTURE))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jpg: cannot be read"):
        images.read(tmp_path / "none.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_truncated(kind: str) -> None:
    data = encoded(PICTURE, kind)
    refused(data[: len(data) * 2 // 3], "damaged")


@pytest.mark.parametrize("data", [b"", b"hello", b"GIF89a" + bytes(64), b"%PDF-1.4"])
def test_no_picture(data: bytes) -> None:
    refused(data, "is not a picture", "JPEG")


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    """81, 144 and 3,600 megapixels in a few kilobytes; the compressed data are never touched."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    refused(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"not even zlib") + chunk(b"IEND", b""), "pixels", "smaller")


def test_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BYTES_LIMIT", 1000)
    refused(bytes(1001), "1,000 bytes")


def test_tiny() -> None:
    refused(encoded(Image.new("RGB", (15, 400))), "15x400")


def test_several_pictures_in_one_file() -> None:
    refused(encoded(PICTURE, "TIFF", save_all=True, append_images=[PICTURE]), "several pictures")


def test_second_eye_of_a_camera_is_left_out() -> None:
    """MPO files of cameras hold further frames; the first is the picture."""
    out = io.BytesIO()
    PICTURE.save(out, "MPO", save_all=True, append_images=[Image.new("RGB", (80, 60))], quality=95)
    assert np.asarray(images.decode(out.getvalue(), "x")).std() > 30


def test_cmyk() -> None:
    red = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        pixels = np.asarray(images.decode(encoded(red, kind), "x")).reshape(-1, 3)
        assert pixels[:, 0].min() > 250 and pixels[:, 1:].max() < 5


def test_palette_and_transparency() -> None:
    flat = Image.new("RGB", (40, 40), (200, 30, 60))
    assert images.decode(encoded(flat.quantize(4)), "x").getpixel((5, 5)) == (200, 30, 60)
    half = flat.convert("RGBA")
    half.putalpha(0)
    half.paste((200, 30, 60, 255), (0, 0, 20, 40))
    for picture in (half, half.quantize(4)):
        back = images.decode(encoded(picture), "x")
        assert back.getpixel((30, 20)) == (255, 255, 255)
        assert np.allclose(back.getpixel((5, 20)), (200, 30, 60), atol=3)


@pytest.mark.parametrize(("top", "expected"), [(4095, 127), (65535, 127), (255, 127)])
def test_deep_grey(top: int, expected: int) -> None:
    """Half of the full range is middle grey, for 12 bit detectors as for 16 bit ones."""
    grey = np.full((40, 40), top // 2, np.uint16)
    grey[0, 0] = top
    back = images.decode(encoded(Image.fromarray(grey)), "x")
    assert back.mode == "RGB" and back.getpixel((0, 0)) == (255, 255, 255)
    assert back.getpixel((20, 20)) == (expected,) * 3


def test_fractions() -> None:
    refused(encoded(Image.fromarray(np.zeros((40, 40), np.float32)), "TIFF"), "fractions")


def test_exif_rotation() -> None:
    """Orientation 6: the camera lay on its side; the first row of the file is the right edge of the scene."""
    exif = Image.Exif()
    exif[0x0112], exif[0x9286] = 6, "name of a patient"
    back = images.decode(encoded(PICTURE, "JPEG", exif=exif, quality=95), "x")
    assert back.size == (60, 80)
    turned = np.asarray(PICTURE.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(np.asarray(back).astype(int) - turned).mean() < 20
    assert not back.info and not back.getexif()


def test_batch_is_the_evaluation_view_of_training() -> None:
    """The formula of training, written out: values in -1..1, middle square, bicubic with antialias, clipped."""
    pixels = np.asarray(PICTURE)
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    x = torch.nn.functional.interpolate(x[:, :, :, 10:70], (32, 32), mode="bicubic", antialias=True).clamp(-1, 1)
    got = images.batch([PICTURE, PICTURE], 32, (0.5,) * 3, (0.5,) * 3)
    assert got.shape == (2, 3, 32, 32) and got.dtype == torch.float32
    assert torch.allclose(got[1:], x, atol=1e-5)


def test_batch_normalises_each_channel_and_takes_any_sizes() -> None:
    got = images.batch([Image.new("RGB", (33, 90), (255, 0, 51)), PICTURE], 16, (0.5, 0.0, 0.2), (0.5, 0.25, 0.1))
    assert torch.allclose(got[0].mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]), atol=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        images.batch([], 16, (0.5,) * 3, (0.5,) * 3)


def test_eight_views_are_all_different_and_begin_with_the_picture() -> None:
    x = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).float()
    eight = images.views(x)
    assert eight.shape == (8, 2, 3, 4, 4) and torch.equal(eight[0], x)
    assert len({v.numpy().tobytes() for v in eight}) == 8
    assert torch.equal(images.views(x, 1), x[None])
    with pytest.raises(ValueError, match="square"):
        images.views(torch.zeros(1, 3, 4, 5))


def test_import_needs_no_torch() -> None:
    code = "import sys, sgps.images; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False).returncode
        == 0
    )
