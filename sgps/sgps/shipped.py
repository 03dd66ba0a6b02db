"""The release that ships with the package, pinned by the hash of its manifest."""

from pathlib import Path

from sgps.errors import StateError
from sgps.files import read_limited
from sgps.release import Release

FOLDER = Path(__file__).with_name("assets") / "release"
PIN = Path(__file__).with_name("assets") / "release.sha256"


def shipped_release() -> Release:
    """Verified. Raises StateError when the package was built without it, SignatureError when it is not the pinned one."""
    if not FOLDER.is_dir() or not PIN.is_file():
        raise StateError("this installation holds no release", where=FOLDER, do="install the complete package")
    return Release.open(FOLDER, sha256=read_limited(PIN, 1024).decode("ascii").strip())
