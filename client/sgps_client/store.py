"""Releases of the federation on the site's disk: fetched over the coordinator's port, verified with the pinned key, whole or not there."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from sgps.errors import NetworkError, SgpsError, SignatureError
from sgps.files import sync_folder, write_atomic
from sgps.release import FILE_LIMIT, FILES, MANIFEST, MANIFEST_LIMIT, SIGNATURE, Release, parse_manifest
from sgps.signing import verify
from sgps_client.config import Site
from sgps_client.coordinator import Coordinator, Latest

SIGNATURE_LIMIT = 1024  # bytes


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

    def holds(self, latest: Latest) -> bool:
        """Whether this very release is here and verifies."""
        try:
            return (self.folder / latest.name).is_dir() and self.open(latest.name).sha256 == latest.sha256
        except SgpsError:
            return False

    def fetch(self, coordinator: Coordinator, latest: Latest) -> Release:
        """The release on disk, fetched if it is not. Files that an older verified release holds already are not fetched again.

        Raises SignatureError, NetworkError. A crash leaves nothing under the release's name.
        """
        if self.holds(latest):
            return self.open(latest.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        for torn in self.folder.glob(".*.tmp"):
            shutil.rmtree(torn, ignore_errors=True)
        work = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{latest.name}.", suffix=".tmp"))
        try:
            self._fill(work, coordinator, latest)
            work.chmod(0o755)
            self._replace(work, self.folder / latest.name)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        self._open.pop(latest.name, None)
        return self.open(latest.name)

    def _fill(self, work: Path, coordinator: Coordinator, latest: Latest) -> None:
        data = coordinator.file(latest.name, MANIFEST, MANIFEST_LIMIT)
        signature = coordinator.file(latest.name, SIGNATURE, SIGNATURE_LIMIT)
        where = f"{coordinator.url} release {latest.name}"
        if hashlib.sha256(data).hexdigest() != latest.sha256:
            raise NetworkError("the release changed while it was fetched", where=where, do="it is tried again")
        try:
            verify(self._site.pinned_key(), bytes.fromhex(signature.decode("ascii").strip()), data, where)
        except ValueError as error:
            raise SignatureError("is not a signature", where=where, do="tell the coordinator") from error
        manifest = parse_manifest(data, where)
        if manifest.fingerprint != self.fingerprint:
            raise SignatureError("belongs to another federation", where=where, do="tell the coordinator")
        for name in FILES:
            self._file(work / name, manifest.files.get(name, ""), coordinator, latest)
        write_atomic(work / MANIFEST, data)
        write_atomic(work / SIGNATURE, signature)
        Release.open(work, key=self._site.pinned_key())

    def _file(self, target: Path, sha256: str, coordinator: Coordinator, latest: Latest) -> None:
        for name in reversed(self.names()):
            try:
                older = self.open(name)
            except SgpsError:
                continue
            if older.manifest.files.get(target.name) == sha256:
                os.link(older.folder / target.name, target)
                return
        write_atomic(target, coordinator.file(latest.name, target.name, FILE_LIMIT))

    def _replace(self, work: Path, target: Path) -> None:
        """`target` exists only when it did not verify."""
        if target.exists():
            shutil.rmtree(target)
        work.rename(target)
        sync_folder(self.folder)
