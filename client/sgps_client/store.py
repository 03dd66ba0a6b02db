"""Releases of the federation on the site's disk: fetched in pieces, verified with the pinned key, whole or not there."""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sgps.errors import NetworkError, SgpsError, SignatureError
from sgps.files import naming, sha256_file, sync_folder, write_atomic
from sgps.release import FILE_LIMIT, FILES, MANIFEST, SIGNATURE, Manifest, Release, parse_manifest
from sgps.signing import verify
from sgps_client.config import Site
from sgps_client.coordinator import Coordinator, Interrupted, Named

TRIES, PAUSE = 4, 1.0  # without a byte in between, and the seconds between them


class Store:
    """The `releases` folder of a site."""

    def __init__(self, site: Site) -> None:
        self.folder, self.fingerprint = site.releases, site.config.federation.fingerprint
        self._site = site
        self._open: dict[str, Release] = {}

    def open(self, name: str) -> Release:
        """A release of this federation, verified. Raises SignatureError, InputError."""
        if name not in self._open:
            release = Release.open(self.folder / name, key=self._site.pinned_key())
            if release.manifest.fingerprint != self.fingerprint:
                raise SignatureError("belongs to another federation", where=release.folder, do="remove the folder")
            self._open[name] = release
        return self._open[name]

    def names(self) -> list[str]:
        """Oldest first: by length, then by letters, so that 10000 follows 9999."""
        if not self.folder.is_dir():
            return []
        found = (p.name for p in self.folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        return sorted(found, key=lambda name: (len(name), name))

    def newest(self) -> Release | None:
        """The newest release that verifies, or None. One that does not is passed over: it is fetched again."""
        for name in reversed(self.names()):
            try:
                return self.open(name)
            except SgpsError:
                continue
        return None

    def holds(self, wanted: Named) -> bool:
        """Whether this very release is here and verifies."""
        try:
            return (self.folder / wanted.name).is_dir() and self.open(wanted.name).sha256 == wanted.sha256
        except SgpsError:
            return False

    def fetch(self, coordinator: Coordinator, wanted: Named) -> Release:
        """The release on disk, fetched if it is not. Files that an older verified release holds already are not fetched again.

        What a broken line has brought stays in `.HASH.part`, named by the hash that the signed manifest demands, and the next fetch
        goes on behind it; a release that has changed asks for another hash and so begins anew. Raises SignatureError, NetworkError.
        A crash leaves nothing under the release's name.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if self.holds(wanted):
                return self.open(wanted.name)
            for torn in self.folder.glob(".*.tmp"):
                shutil.rmtree(torn, ignore_errors=True)
            data, signature, manifest = self._manifest(coordinator, wanted)
            work = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{wanted.name}.", suffix=".tmp"))
            try:
                for name in FILES:
                    self._file(work / name, manifest.files.get(name, ""), coordinator, wanted)
                write_atomic(work / MANIFEST, data)
                write_atomic(work / SIGNATURE, signature)
                Release.open(work, key=self._site.pinned_key())
                work.chmod(0o755)
                self._replace(work, self.folder / wanted.name)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
            for part in self.folder.glob(".*.part"):
                part.unlink()
        self._open.pop(wanted.name, None)
        return self.open(wanted.name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """`pull` by hand beside a running `start`: one waits for the other."""
        with (self.folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _manifest(self, coordinator: Coordinator, wanted: Named) -> tuple[bytes, bytes, Manifest]:
        """Verified before anything is asked for that it names."""
        data, signature = coordinator.inspect(wanted.name)
        where = f"{coordinator.url} release {wanted.name}"
        if hashlib.sha256(data).hexdigest() != wanted.sha256:
            raise NetworkError("the release changed while it was fetched", where=where, do="it is tried again")
        try:
            verify(self._site.pinned_key(), bytes.fromhex(signature.decode("ascii").strip()), data, where)
        except ValueError as error:
            raise SignatureError("is not a signature", where=where, do="tell the coordinator") from error
        manifest = parse_manifest(data, where)
        if manifest.fingerprint != self.fingerprint:
            raise SignatureError("belongs to another federation", where=where, do="tell the coordinator")
        return data, signature, manifest

    def _file(self, target: Path, sha256: str, coordinator: Coordinator, wanted: Named) -> None:
        for name in reversed(self.names()):
            try:
                older = self.open(name)
            except SgpsError:
                continue
            if older.manifest.files.get(target.name) == sha256:
                _linked(older.folder / target.name, target)
                return
        part = self.folder / f".{sha256}.part"
        self._pull(part, coordinator, wanted, target.name)
        if sha256_file(part) != sha256:
            part.unlink()
            raise SignatureError(
                "does not have the hash of the manifest",
                where=f"{coordinator.url} release {wanted.name} {target.name}",
                do="it is fetched anew; if this stays, tell the coordinator",
            )
        _linked(part, target)

    def _pull(self, part: Path, coordinator: Coordinator, wanted: Named, name: str) -> None:
        """All bytes, over as many lines as it takes while each brings some."""
        idle = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                self._append(part, coordinator, wanted, name)
                return
            except Interrupted:
                idle = 0 if part.exists() and part.stat().st_size > before else idle + 1
                if idle == TRIES:
                    raise
                time.sleep(PAUSE)

    def _append(self, part: Path, coordinator: Coordinator, wanted: Named, name: str) -> None:
        where = f"{coordinator.url} release {wanted.name} {name}"
        with naming(part), part.open("ab") as file:
            here, size = file.tell(), -1
            for size, data in coordinator.pull(wanted, name, here):
                if size > FILE_LIMIT or here + len(data) > size:
                    part.unlink()
                    raise NetworkError(
                        f"more than the {min(size, FILE_LIMIT):,} bytes it may have",
                        where=where,
                        do="tell the coordinator",
                    )
                file.write(data)
                here += len(data)
            file.flush()
            os.fsync(file.fileno())
        if here != size:
            raise Interrupted(f"the line was cut after {here:,} bytes", where=where, do="it is taken up again")

    def _replace(self, work: Path, target: Path) -> None:
        """`target` exists only when it did not verify."""
        if target.exists():
            shutil.rmtree(target)
        work.rename(target)
        sync_folder(self.folder)


def _linked(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system knows no links."""
    try:
        os.link(source, target)
    except OSError:
        with naming(target):
            shutil.copyfile(source, target)
