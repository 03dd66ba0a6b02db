"""Public image sets decoded once into uint8 arrays: zips of class folders, or folders of class folders, or drawn lesions."""

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from sgps.errors import InputError
from sgps.files import read_limited, sha256_file, write_atomic
from sgps.images import BYTES_LIMIT, decode
from sgps.pretrain.drawn import draw_images
from sgps.pretrain.recipe import ImageSet

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png")

Tick = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Images:
    """Decoded images of one set. `pixels` uint8 (n, height, width, 3), a read-only memory map; the rest text (n,)."""

    pixels: npt.NDArray[np.uint8]
    name: npt.NDArray[np.str_]
    label: npt.NDArray[np.str_]
    lesion: npt.NDArray[np.str_]
    site: npt.NDArray[np.str_]
    sha256: str  # of the zip, of the folder's names and bytes, or of a drawn set's pixels

    def __len__(self) -> int:
        return len(self.name)


class Source:
    """Named bytes of a zip or folder. Names are relative POSIX paths; `class/image.jpg` is an image of that class."""

    def __init__(self, data: Path, stem: str) -> None:
        """Raises InputError when there is neither `stem`.zip nor a folder `stem` under `data`."""
        self.folder, packed = data / stem, data / f"{stem}.zip"
        self.archive: zipfile.ZipFile | None = None
        if packed.is_file():
            try:
                self.archive = zipfile.ZipFile(packed)
            except zipfile.BadZipFile as error:
                raise InputError("is not a zip file", where=packed, do="copy it again") from error
            self.where, self.names = packed, sorted(self.archive.namelist())
        elif self.folder.is_dir():
            self.where = self.folder
            self.names = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        else:
            raise InputError(f"neither {stem}.zip nor a folder {stem} is there", where=data, do="name the data folder")

    def read(self, name: str) -> bytes:
        """Raises InputError when the file is too large or damaged."""
        if self.archive is None:
            return read_limited(self.folder / name, BYTES_LIMIT)
        if self.archive.getinfo(name).file_size > BYTES_LIMIT:
            raise InputError(f"is larger than {BYTES_LIMIT:,} bytes", where=f"{self.where} {name}")
        try:
            return self.archive.read(name)
        except Exception as error:  # besides BadZipFile, zlib, bz2 and lzma each have their own
            raise InputError("is damaged", where=f"{self.where} {name}", do="copy the zip again") from error

    def images(self) -> list[str]:
        return [n for n in self.names if n.lower().endswith(SUFFIXES) and len(PurePosixPath(n).parts) > 1]

    def sha256(self) -> str:
        """Of the zip's bytes; of names and bytes in order for a folder."""
        if self.archive is not None:
            return sha256_file(self.where)
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(f"{name}\0{hashlib.sha256(self.read(name)).hexdigest()}\n".encode())
        return digest.hexdigest()


def fit(data: bytes, frame: tuple[int, int], where: object) -> npt.NDArray[np.uint8]:
    """One image file as uint8 (height, width, 3): the middle with the frame's aspect, resized. Raises InputError."""
    image, (width, height) = decode(data, where), frame
    w = min(image.width, round(image.height * width / height))
    h = min(image.height, round(image.width * height / width))
    if (w, h) != image.size:
        left, top = (image.width - w) // 2, (image.height - h) // 2
        image = image.crop((left, top, left + w, top + h))
    if image.size != frame:
        image = image.resize(frame, Image.Resampling.BICUBIC)
    return np.asarray(image)


def _rows(source: Source, kind: ImageSet) -> Mapping[str, Mapping[str, str]]:
    """Metadata rows by image stem; empty without a table."""
    if kind.table is None:
        return {}
    member = next((n for n in source.names if PurePosixPath(n).name == kind.table.file), None)
    if member is None:
        raise InputError(f"{kind.table.file} is missing", where=source.where, do="use the set with its metadata")
    reader = csv.DictReader(io.StringIO(source.read(member).decode("utf-8")))
    columns = [c for c in (kind.table.image, kind.table.label, kind.table.lesion, kind.table.site) if c]
    if missing := [c for c in columns if c not in (reader.fieldnames or ())]:
        raise InputError(f"has no column {', '.join(missing)}", where=f"{source.where} {member}")
    return {row[kind.table.image]: row for row in reader}


def listing(source: Source, kind: ImageSet) -> Iterator[tuple[str, str, str, str]]:
    """(name, label, lesion, body site) of every image, sorted by name. Without a table an image is its own lesion."""
    rows = _rows(source, kind)
    for name in source.images():
        path = PurePosixPath(name)
        if kind.table is None:
            yield name, path.parent.name, name, ""
            continue
        row = rows.get(path.stem)
        if row is None:
            raise InputError(f"has no row in {kind.table.file}", where=f"{source.where} {name}")
        yield name, row[kind.table.label], row[kind.table.lesion], row[kind.table.site] if kind.table.site else ""


def read_images(data: Path, kind: ImageSet, cache: Path, tick: Tick | None = None) -> Images:
    """The images of a set, without the classes it leaves out, decoded into `cache` once.

    A cache of another file or of other settings is made again. Raises InputError that names the file.
    """
    cache.mkdir(parents=True, exist_ok=True)
    key: dict[str, object] = {"frame": list(kind.frame), "leave_out": list(kind.leave_out)}
    if kind.draw is not None:
        rows, load = draw_images(kind.draw, kind.frame[0])
        key |= {"draw": kind.draw.model_dump()}  # a run keeps its pictures, even when the renderer changes meanwhile
    else:
        source = Source(data, kind.file or "")
        rows = [r for r in listing(source, kind) if r[1] not in kind.leave_out]
        key |= {"sha256": source.sha256()}

        def load(place: int) -> npt.NDArray[np.uint8]:
            return fit(source.read(rows[place][0]), kind.frame, f"{source.where} {rows[place][0]}")

    if not rows:
        raise InputError("holds no image", where=kind.name, do="check the recipe's file and leave_out")
    key |= {"rows": len(rows)}
    pixels, index = cache / f"{kind.name}.npy", cache / f"{kind.name}.json"
    found = json.loads(index.read_text()) if index.is_file() and pixels.is_file() else {}
    if found.get("key") != key:
        index.unlink(missing_ok=True)
        part = cache / f"{kind.name}.part"
        shape = (len(rows), kind.frame[1], kind.frame[0], 3)
        array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        for place in range(len(rows)):
            array[place] = load(place)
            if tick is not None and (place % 50 == 0 or place == len(rows) - 1):
                tick(place + 1, len(rows))
        array.flush()
        part.replace(pixels)
        found = {"key": key, "sha256": key.get("sha256") or sha256_file(pixels)}
        write_atomic(index, json.dumps(found).encode())
    name, label, lesion, site = (np.array(column, dtype=np.str_) for column in zip(*rows, strict=True))
    return Images(np.load(pixels, mmap_mode="r"), name, label, lesion, site, str(found["sha256"]))


def read_named(data: Path, kind: ImageSet, names: list[str]) -> npt.NDArray[np.uint8]:
    """uint8 (n, height, width, 3) of the named images of a set. Raises InputError when one is missing."""
    source = Source(data, kind.file or "")
    if missing := sorted(set(names) - set(source.names)):
        raise InputError(f"{len(missing)} of {len(names)} images are missing, first {missing[0]}", where=source.where)
    return np.stack([fit(source.read(n), kind.frame, f"{source.where} {n}") for n in names])
