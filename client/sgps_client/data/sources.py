"""A folder or a zip of files, read in place. Names are relative and use `/`; nothing outside the folder or zip is reached."""

import os
import stat
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath

from sgps.errors import InputError
from sgps.files import read_limited
from sgps.images import BYTES_LIMIT

FILES_LIMIT = 1_000_000
FILE_LIMIT = 256 << 20  # bytes of one member, tables included
_ENCRYPTED, _UTF8 = 0x1, 0x800  # bits of a zip member's flags
_NOISE = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini", "DICOMDIR"})


class Source(ABC):
    """Files by name. `names` is sorted; hidden files, the litter of desktop systems and the index of a DICOM medium are left out."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self.path = path
        self.names = sorted(names)

    @abstractmethod
    def read(self, name: str, limit: int = BYTES_LIMIT) -> bytes:
        """The bytes of one file of at most `limit` bytes. Raises InputError."""

    @abstractmethod
    def head(self, name: str, count: int) -> bytes:
        """The first `count` bytes, or fewer. Raises InputError."""

    def where(self, name: str) -> str:
        """How an error names one of the files."""
        return f"{self.path}/{name}"


def open_source(path: Path) -> Source:
    """Raises InputError when `path` is neither a folder nor a sound zip, or when a name in it climbs out or is a link."""
    if path.is_dir():
        return _Folder(path)
    if not path.is_file():
        raise InputError("does not exist", where=path, do="give a folder or a zip of pictures")
    if not zipfile.is_zipfile(path):
        raise InputError("is neither a folder nor a zip", where=path, do="give a folder or a zip of pictures")
    return _Zip(path)


def escaped(name: str) -> str:
    r"""The name of a file as text: a byte that is not UTF-8 becomes `\udc` and its two hex digits."""
    return name.encode("utf-8", "backslashreplace").decode()


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part in _NOISE for part in name.split("/"))


class _Folder(Source):
    def __init__(self, path: Path) -> None:
        root, names = path.resolve(), []
        for folder, folders, files in os.walk(path, onerror=_unreadable):
            for name in (*folders, *files):
                entry = Path(folder, name)
                if entry.is_symlink() and not entry.resolve().is_relative_to(root):
                    raise InputError(
                        "is a link that leaves the folder", where=entry, do="copy the file into the folder"
                    )
            names += [Path(folder, name).relative_to(path).as_posix() for name in files]
            if len(names) > FILES_LIMIT:
                raise InputError(
                    f"holds more than {FILES_LIMIT:,} files", where=path, do="check that this is the right folder"
                )
        names = [name for name in names if _visible(name) and (path / name).is_file()]
        for name in names:  # what is written of it, a CSV or a ledger, is UTF-8
            if (shown := escaped(name)) != name:
                raise InputError("has a name that is not UTF-8", where=path / shown, do="rename it")
        super().__init__(path, names)

    def read(self, name: str, limit: int = BYTES_LIMIT) -> bytes:
        return read_limited(self.path / name, limit)

    def head(self, name: str, count: int) -> bytes:
        try:
            with (self.path / name).open("rb") as file:
                return file.read(count)
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}",
                where=self.where(name),
                do="check that it is there and its permissions",
            ) from error


def _unreadable(error: OSError) -> None:
    raise InputError(f"cannot be read: {error.strerror}", where=error.filename, do="check the permissions") from error


class _Zip(Source):
    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise InputError("is a damaged zip", where=path, do="copy or make it again") from error
        members = self._zip.infolist()
        if len(members) > FILES_LIMIT:
            raise InputError(
                f"holds more than {FILES_LIMIT:,} files", where=path, do="check that this is the right zip"
            )
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            fault, name = _fault(member), _name(member)
            if name in self._members:
                fault = "is in the zip twice"
            if fault:
                raise InputError(
                    f"{member.filename!r} {fault}", where=path, do="make the zip again; nothing of it was used"
                )
            if not member.is_dir() and _visible(name):
                self._members[name] = member
        super().__init__(path, list(self._members))

    def read(self, name: str, limit: int = BYTES_LIMIT) -> bytes:
        data = self.head(name, limit + 1)
        if len(data) > limit or self._members[name].file_size > limit:
            raise InputError(
                f"is larger than {limit:,} bytes", where=self.where(name), do="check that it is the right file"
            )
        return data

    def head(self, name: str, count: int) -> bytes:
        if name not in self._members:
            raise InputError("is not in the zip", where=self.where(name), do="check the zip")
        try:
            with self._zip.open(self._members[name]) as file:
                return file.read(count)
        except Exception as error:  # besides BadZipFile, zlib, bz2 and lzma each have their own
            raise InputError("is damaged in the zip", where=self.where(name), do="make the zip again") from error


def _name(member: zipfile.ZipInfo) -> str:
    """Macs write names in UTF-8 without saying so, which zipfile takes for code page 437."""
    if member.flag_bits & _UTF8:
        return member.filename
    try:
        return member.filename.encode("cp437").decode()
    except UnicodeError:
        return member.filename


def _fault(member: zipfile.ZipInfo) -> str:
    """Why a member is not to be trusted; empty when it is. `orig_filename`: what stood in the file before zipfile tidied it."""
    for name in (member.filename, member.orig_filename):
        if "\\" in name or "\0" in name or name[1:2] == ":" or PurePosixPath(name).is_absolute():
            return "is an absolute or foreign path"
        if ".." in name.split("/"):
            return "climbs out of the zip"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if not member.is_dir() and member.file_size > FILE_LIMIT:
        return f"unpacks to more than {FILE_LIMIT:,} bytes"
    return ""
