"""Who is enrolled: site name -> public key. Read anew whenever the file changes, so that an approval or a revocation needs no restart."""

import hashlib
import threading
import time
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from pydantic import ValidationError

from sgps.errors import InputError, StateError
from sgps.files import read_limited, write_atomic
from sgps.plan import Hex, SiteName
from sgps.settings import Settings, problems
from sgps_server.config import locked

_LIMIT = 64 << 20


class Site(Settings):
    """One enrolled site. key: its public key as PEM text, for TLS, Flower and statements alike. expires: end of its certificate."""

    key: str
    role: Literal["contribute", "receive"]
    approved: float
    expires: float


class Entries(Settings):
    """The content of registry.json. revoked: SHA-256 of keys that never come in again -> when. withdrawn: names whose contributions
    the next release leaves out -> when."""

    sites: dict[SiteName, Site] = {}
    revoked: dict[Hex, float] = {}
    withdrawn: dict[SiteName, float] = {}


def key_sha256(pem: str) -> str:
    """Hex SHA-256 of the key's SubjectPublicKeyInfo, as `openssl pkey -pubin -outform DER | sha256sum` gives it."""
    der = load_pem_public_key(pem.encode()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


class Registry:
    """The list on disk. Safe for several processes and threads."""

    def __init__(self, path: Path) -> None:
        self.path, self._seen, self._entries, self._lock = path, (0, 0), Entries(), threading.Lock()

    @staticmethod
    def make(path: Path) -> None:
        write_atomic(path, _dump(Entries()))

    def entries(self) -> Entries:
        """What the file says now. Raises StateError when it is damaged, InputError when it is missing."""
        with self._lock:
            try:
                found = self.path.stat()
            except OSError as error:
                raise InputError(
                    f"cannot be read: {error.strerror}", where=self.path, do="check its permissions"
                ) from error
            seen = (found.st_ino, found.st_mtime_ns)
            if seen != self._seen:
                self._entries, self._seen = self._read(), seen
            return self._entries

    def sites(self) -> dict[str, Site]:
        return self.entries().sites

    def key(self, name: str) -> str | None:
        """The public key of an enrolled site."""
        site = self.sites().get(name)
        return site.key if site else None

    def add(self, name: str, site: Site) -> bool:
        """Enrol a site. True when the same key was enrolled under the name before (a renewal).

        Raises InputError when the name is taken by another key or was withdrawn, or the key was revoked or belongs to another site.
        """
        with locked(self.path.with_name("registry.lock"), wait=True):
            now = self._read()
            if name in now.withdrawn:
                raise InputError(f"{name} was withdrawn", where=self.path, do="the site takes another name")
            if key_sha256(site.key) in now.revoked:
                raise InputError(
                    f"the key of {name} was revoked", where=self.path, do="the site makes a new key: sgps-client enroll"
                )
            if owner := next((n for n, s in now.sites.items() if s.key == site.key and n != name), None):
                raise InputError(f"the key belongs to {owner}", where=self.path, do="every site makes its own key")
            old = now.sites.get(name)
            if old is not None and old.key != site.key:
                raise InputError(
                    f"the name {name} is taken", where=self.path, do=f"choose another name, or revoke {name} first"
                )
            self._write(now.model_copy(update={"sites": {**now.sites, name: site}}))
            return old is not None

    def revoke(self, name: str) -> Site:
        """Lock a site out, now and under any name. Raises InputError when it is not enrolled."""
        with locked(self.path.with_name("registry.lock"), wait=True):
            now = self._read()
            sites = dict(now.sites)
            site = sites.pop(name, None)
            if site is None:
                raise InputError(f"no site {name} is enrolled", where=self.path, do="see `sgps-server sites list`")
            revoked = {**now.revoked, key_sha256(site.key): time.time()}
            self._write(now.model_copy(update={"sites": sites, "revoked": revoked}))
            return site

    def withdraw(self, name: str) -> None:
        """Leave the contributions of a site that is no longer enrolled out of the next release, for good."""
        with locked(self.path.with_name("registry.lock"), wait=True):
            now = self._read()
            if name in now.sites:
                raise InputError(f"{name} is still enrolled", where=self.path, do="revoke it first")
            self._write(now.model_copy(update={"withdrawn": {**now.withdrawn, name: time.time()}}))

    def _read(self) -> Entries:
        try:
            return Entries.model_validate_json(read_limited(self.path, _LIMIT))
        except ValidationError as error:
            raise StateError(
                "; ".join(problems(error)), where=self.path, do="restore the file from a backup"
            ) from error

    def _write(self, entries: Entries) -> None:
        write_atomic(self.path, _dump(entries))


def _dump(entries: Entries) -> bytes:
    return (entries.model_dump_json(indent=1) + "\n").encode()
