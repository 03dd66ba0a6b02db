"""Dark hair over a picture: found as long, thin, nearly straight lines, and filled from around.

After DullRazor (Lee, Ng, Gallagher, Coldman and McLean, Computers in Biology and Medicine 27, 1997): closing by line elements, a check
of shape, interpolation. Three things differ. It looks at the brightest channel, in which pigment and vessels are hardly dark, and asks
for a strong contrast, since a lesion that loses its structure costs more than a hair that stays. An element lies *across* each
direction, and what it closes must go on *along* that direction, which meshes of a pigment network, dots and streaks seldom do. Parts
grow together only over neighbouring directions, so that a mesh does not pass for one long bent hair. What is shorter than a sixth of
the picture's shorter side is no hair here, nor is light or faint hair, nor a dark hair over a dark lesion.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Array = NDArray[Any]
Offsets = tuple[tuple[int, int], ...]

# Lengths in pixels of a picture of SIDE; fixed on drawn classes and training lesions (docs/results/hair.md).
SIDE = 150  # the shorter side at which hair is looked for; up to a fifth more is left as it is
ACROSS, ALONG, LENGTH = 2, 7, 25  # reach of an element, of a straight piece to both sides, and least extent of a hair
# grey levels by which a line is darker than what is beside it: everywhere, and on most of a piece
WEAK, STRONG = 40, 80
STRAIGHT, MOSTLY = 0.9, 0.6  # shares of a piece
LEAST = 0.01  # share of the picture; less hair than that is left where it is
_SIGMA, _WIDE = 1.5, 25  # of the Gaussian, and side of the square, over which what fills a hair is averaged
_ANGLES = 8


def _line(angle: float, reach: int) -> Offsets:
    """Pixels (y, x) of a straight line through the origin, one for each step along its longer axis."""
    along = np.array([np.sin(angle), np.cos(angle)])
    longer = np.abs(along).max()
    steps = int(np.ceil(reach * longer - 1e-9))
    return tuple((round(t * along[0] / longer), round(t * along[1] / longer)) for t in range(-steps, steps + 1))


_PAIRS = tuple((_line(a + np.pi / 2, ACROSS), _line(a, ALONG)) for a in (np.arange(_ANGLES) * np.pi / _ANGLES).tolist())
_CROSS: Offsets = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


def _over(a: Array, offsets: Offsets, join: Callable[..., Any]) -> Array:
    """`join` of a [h, w] moved by every offset; the border repeats."""
    reach = max(max(abs(y), abs(x)) for y, x in offsets)
    wide, (height, width) = np.pad(a, reach, "edge"), a.shape
    moved: Iterable[Array] = (wide[reach + y :, reach + x :][:height, :width] for y, x in offsets)
    out = np.array(next(iter(moved)))
    for part in moved:
        join(out, part, out=out)
    return out


def _pieces(grey: Array, across: Offsets, along: Offsets) -> Array:
    """bool [h, w]: pixels of lines in one direction that are dark and straight enough. grey: uint8."""
    hat = _over(_over(grey, across, np.maximum), across, np.minimum) - grey  # a closing is never below
    thin = hat > WEAK
    weak, strong = (
        _over(_over(lines.view(np.uint8), _CROSS, np.maximum), along, np.add) for lines in (thin, hat > STRONG)
    )
    core = thin & (weak >= STRAIGHT * len(along)) & (strong >= MOSTLY * len(along))
    return thin & _over(_over(core, along, np.logical_or), _CROSS, np.logical_or)


def _extended(pieces: Array) -> Array:
    """bool [..., h, w] -> those of its connected parts that reach over `LENGTH`."""
    part, _ = ndimage.label(pieces, np.ones((3,) * pieces.ndim))
    boxes = (box[-2:] for box in ndimage.find_objects(part))
    long = [np.hypot(y.stop - y.start, x.stop - x.start) >= LENGTH for y, x in boxes]
    return np.asarray(np.array([False, *long])[part])


def found(pixels: Array) -> Array:
    """uint8 [h, w, 3], its shorter side about `SIDE` -> bool [h, w]: hair."""
    grey = pixels.max(2)
    pieces = np.stack([_pieces(grey, across, along) for across, along in _PAIRS])
    flat = _extended(np.asarray(pieces.any(0)))
    if flat.any():  # directions part it further
        (box,) = ndimage.find_objects(flat.view(np.uint8))
        inside = pieces[(slice(None), *box)]
        flat[box] = _extended(np.concatenate([inside, inside[:1]])).any(0)  # half a turn is no turn
    return flat


def _filled(pixels: Array, hair: Array) -> Array:
    """Hair replaced by the mean of what is around it, weighted by a Gaussian of the distance; deep inside by that of a wider square or of
    the whole picture."""
    weight = (~hair).astype(np.float32)
    seen = np.stack([*(pixels[..., c] * weight for c in range(3)), weight])
    near, wide = ndimage.gaussian_filter(seen, (0, _SIGMA, _SIGMA)), ndimage.uniform_filter(seen, (0, _WIDE, _WIDE))
    mean = near + np.float32(1e-3) * wide + np.float32(1e-6) * seen.mean((1, 2), keepdims=True)
    out = pixels.copy()
    out[hair] = (mean[:3, hair] / np.maximum(mean[3, hair], np.float32(1e-9))).T.clip(0, 255).round()
    return out


def without(image: Image.Image) -> Image.Image:
    """An RGB picture of any size -> the same without hair; the very picture that was given where less than `LEAST` of it is hair.

    Only pixels of hair and those beside it change.
    """
    image = image.convert("RGB") if image.mode != "RGB" else image
    side = min(image.size)
    small = image
    if side > 1.2 * SIDE:
        size = (round(image.width * SIDE / side), round(image.height * SIDE / side))
        small = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    pixels = np.asarray(small)
    hair = found(pixels)
    if hair.mean() < LEAST:
        return image
    hair = ndimage.binary_dilation(hair, np.ones((3, 3)))
    clean = Image.fromarray(_filled(pixels, hair))
    if small is image:
        return clean
    mask = Image.fromarray(hair).convert("L").resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(clean.resize(image.size, Image.Resampling.BICUBIC), image, mask)
