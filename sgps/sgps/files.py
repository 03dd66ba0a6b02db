"""Files that are written whole or not at all, and read only up to a size."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sgps.errors import InputError


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """After this returns a crash leaves the new file; before, the old one or none. Never half of either.

    Raises OSError that names `path`, whatever step failed.
    """
    with naming(path):
        _write(path, data, mode)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of the block names `path`: those of `write` and `fsync` name nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write(path: Path, data: bytes, mode: int) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path, mode: int = 0o755) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; it is renamed to `path` when the block ends well, else removed.

    Raises InputError when `path` exists already: nothing is overwritten; OSError that names `path` where its files do not become durable, or
    where that of the block names nothing.
    """
    if path.exists():
        raise InputError("exists already", where=path, do="choose another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield work
        with naming(path):
            for part in (*work.rglob("*"), work):
                handle = os.open(part, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
            work.chmod(mode)
            work.rename(path)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:
            with naming(path):
                raise
        raise
    with naming(path):
        sync_folder(path.parent)


def torn(path: Path) -> list[Path]:
    """What a killed `new_folder` of this very path left beside it; that of `path.v2` has another name."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")  # as tempfile makes them
    return [p for p in path.parent.iterdir() if name.fullmatch(p.name)] if path.parent.is_dir() else []


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of a file of at most `limit` bytes. Raises InputError when it is missing, unreadable or larger."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", where=path, do="check the path and its permissions"
        ) from error
    if len(data) > limit:
        raise InputError(f"is larger than {limit:,} bytes", where=path, do="check that this is the right file")
    return data


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
