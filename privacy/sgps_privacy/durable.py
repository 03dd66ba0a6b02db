"""Files that are whole or not there, also after a crash."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from sgps_privacy.errors import MachineFailure

ROOM = 16 << 20  # bytes, many times a payload


def sync_folder(folder: Path) -> None:
    """Makes creations, renames and removals in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """A folder of mode 0700, durable in its parent. Parents are made too, one by one."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700)
        sync_folder(folder.parent)


def write_whole(path: Path, data: bytes) -> None:
    """`data` under `path`, mode 0600: temporary name in the same folder, fsync, rename, fsync of the folder."""
    torn = path.with_suffix(".tmp")
    handle = os.open(torn, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(torn, path)
    sync_folder(path.parent)


def unwritable(folder: Path, error: OSError) -> MachineFailure:
    """What to say of an error of the disk in `folder`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space" if full else "make folder and disk writable for this account"
    return MachineFailure(f"{folder} cannot be written ({error.strerror}): {remedy}")


def check_room(folder: Path) -> None:
    """Raises MachineFailure when the disk is nearly full: a payload that cannot be kept is a charge lost."""
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < ROOM:
        raise MachineFailure(
            f"less than {ROOM >> 20} MiB are free beside the ledger: free some space; nothing was charged"
        )


def remove_torn(folder: Path) -> None:
    """Removes temporary files that a crash left in `folder`."""
    for torn in folder.glob("*.tmp"):
        torn.unlink()
    sync_folder(folder)
