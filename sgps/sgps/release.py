"""A release: a signed directory that holds the generator, its class memory, the reference bank and the catalogue.

    generator.safetensors   base, fixed factors, generator; the same bytes for the life of a federation
    memory.safetensors      public coordinates and the rows of the class memory
    bank.safetensors        the reference bank
    catalogue.yaml          classes with names and clinical texts
    release.yaml            the manifest: names and hashes of the above, provenance, statements, rounds
    release.sig             Ed25519 signature over the bytes of release.yaml, in hex

Opened without torch. The signature is checked before the manifest is parsed, every hash before a file is used.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sgps.errors import InputError, SgpsError, SignatureError
from sgps.files import new_folder, read_limited, sha256_file, write_atomic
from sgps.memory import Memory
from sgps.plan import ClassId, Hex, SiteName
from sgps.settings import Settings, dump, parse, problems
from sgps.signing import verify

GENERATOR, MEMORY, BANK, CATALOGUE = "generator.safetensors", "memory.safetensors", "bank.safetensors", "catalogue.yaml"
FILES = (GENERATOR, MEMORY, BANK, CATALOGUE)
MANIFEST, SIGNATURE = "release.yaml", "release.sig"
MANIFEST_LIMIT, FILE_LIMIT = 4 << 20, 512 << 20  # bytes


class Architecture(Settings):
    """What must be built before the tensors can be loaded. size: pixels of the square input; mean, std: per channel, 0..1."""

    base: str
    size: Annotated[int, Field(ge=32, le=1024)]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    views: Annotated[int, Field(ge=1, le=8)] = 8
    width: Annotated[int, Field(ge=8, le=1024)]
    depth: Annotated[int, Field(ge=1, le=12)]
    learned: Annotated[tuple[str, ...], Field(max_length=8)] = ()  # learned parts that are switched on: body, text, ...


class TextEncoder(Settings):
    """What read every text of the release, and must read those at a site. kind: `package` is the installed all-MiniLM-L6-v2; the others
    lie in a folder that the site has (`sgps.open_encoders`)."""

    name: str
    sha256: Hex
    kind: Literal["package", "open_clip", "transformers"] = "package"


class Provenance(Settings):
    """One image set that something in the release was trained on or computed from."""

    name: str
    licence: str
    source: str
    images: int
    classes: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    used_for: str
    sha256: str = "-"


class Round(Settings):
    """One round as it happened: who contributed, under which terms. centred: each site's records by its own noised mean."""

    round: int
    kind: str
    terms: dict[str, Any]
    sites: tuple[SiteName, ...]
    centred: bool = False


class Carry(Settings):
    """Rows that came from an older base network (`sgps.carry`). before, after: hashes of base network and coordinates. last: round up to
    which sums were sent in the old space. left: classes whose rows stayed behind, because the map has not seen their kind of pictures.
    figures: what the map loses, as its file says."""

    before: Hex
    after: Hex
    last: int
    left: tuple[ClassId, ...] = ()
    map_sha256: Hex
    figures: dict[str, Any]


class Manifest(Settings):
    """The content of release.yaml."""

    name: str
    federation: str
    fingerprint: Hex | None = None  # of the coordinator's key; none for the release that ships with the package
    architecture: Architecture
    text_encoder: TextEncoder
    encoder_sha256: Hex  # base network and coordinates: the space in which rows live
    classes: tuple[ClassId, ...]
    files: dict[str, Hex]
    licence: str
    intended_use: str
    provenance: tuple[Provenance, ...]
    rounds: tuple[Round, ...] = ()
    statements: dict[SiteName, tuple[dict[str, Any], ...]] = {}
    code_sha256: Hex
    figures: dict[str, Any] = {}
    carried: tuple[Carry, ...] | None = None  # oldest first; none in a federation that began with this base network


@dataclass(frozen=True)
class Release:
    """A verified release on disk. Construct with `Release.open`."""

    folder: Path
    manifest: Manifest
    sha256: str  # of release.yaml

    @classmethod
    def open(cls, folder: Path, key: Ed25519PublicKey | None = None, sha256: str | None = None) -> "Release":
        """Verify everything, then trust it. One of: the pinned key, or the pinned hash of release.yaml.

        Raises SignatureError when signature, hash or content do not fit; InputError when a file is missing.
        """
        if (key is None) == (sha256 is None):
            raise ValueError("a release is opened with a pinned key or a pinned hash")
        if not (folder / MANIFEST).is_file():
            raise InputError("holds no release", where=folder, do=f"name a folder with {MANIFEST}")
        data = read_limited(folder / MANIFEST, MANIFEST_LIMIT)
        found = hashlib.sha256(data).hexdigest()
        again = "get the release from the coordinator again"
        if key is not None:
            text = read_limited(folder / SIGNATURE, 1024)
            try:
                signature = bytes.fromhex(text.decode("ascii").strip())
            except ValueError as error:
                raise SignatureError("is not a signature", where=folder / SIGNATURE, do=again) from error
            verify(key, signature, data, folder / MANIFEST)
        elif found != sha256:
            raise SignatureError("is not the pinned release", where=folder / MANIFEST, do=again)
        manifest = parse_manifest(data, folder / MANIFEST)
        for name in FILES:
            path = folder / name
            if not path.is_file() or path.stat().st_size > FILE_LIMIT or sha256_file(path) != manifest.files.get(name):
                raise SignatureError("does not have the hash of the manifest", where=path, do=again)
        return cls(folder, manifest, found)

    def tensors(self, name: str, prefix: str = "") -> dict[str, np.ndarray[Any, Any]]:
        """NumPy arrays of one file whose names begin with `prefix`, which is taken off. Raises SignatureError."""
        try:
            with safe_open(self.folder / name, framework="np") as file:
                return {n.removeprefix(prefix): file.get_tensor(n) for n in file.keys() if n.startswith(prefix)}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise SignatureError(
                "is not a safetensors file", where=self.folder / name, do="fetch the release again"
            ) from error

    def memory(self) -> Memory:
        """The class memory. Raises SignatureError when it does not fit the manifest's classes."""
        try:
            return Memory.from_arrays(self.tensors(MEMORY), self.manifest.classes)
        except ValueError as error:
            raise SignatureError(str(error), where=self.folder / MEMORY, do="fetch the release again") from error


def vouched(folder: Path) -> Release:
    """A release of a folder that an operator names and thereby vouches for. Raises InputError when there is none."""
    if not (folder / MANIFEST).is_file():
        raise InputError("holds no release", where=folder, do=f"name a folder with {MANIFEST}")
    return Release.open(folder, sha256=sha256_file(folder / MANIFEST))


def parse_manifest(data: bytes, where: object) -> Manifest:
    """Bytes of a verified release.yaml -> manifest. Raises SignatureError when it is not one that this version knows."""
    try:
        return Manifest.model_validate(parse(data.decode(), where))
    except ValidationError as error:
        raise SignatureError("; ".join(problems(error)), where=where, do="update the program") from error
    except (SgpsError, UnicodeDecodeError) as error:
        raise SignatureError(str(error), where=where, do="update the program") from error


def manifest_bytes(manifest: Manifest) -> bytes:
    """release.yaml."""
    return dump(manifest.model_dump(mode="json", exclude_none=True)).encode()


def encoder_sha256(base: Mapping[str, np.ndarray[Any, Any]], architecture: Architecture, memory: Memory) -> str:
    """Hash of what makes a row: base tensors as stored, input size, mean, std, views, coordinates."""
    digest = hashlib.sha256()
    for name in sorted(base):
        digest.update(f"{name} {base[name].dtype.str} {base[name].shape}".encode())
        digest.update(np.ascontiguousarray(base[name]).tobytes())
    a = architecture
    digest.update(f"{a.base} {a.size} {a.mean} {a.std} {a.views} {memory.coordinates.sha256()}".encode())
    return digest.hexdigest()


def write(
    target: Path, contents: Mapping[str, bytes | Path], manifest: Manifest, key: Ed25519PrivateKey | None
) -> None:
    """Write a release folder whole or not at all; `files` of the manifest is filled in here.

    contents: for each of FILES its bytes, or a path whose content is copied. key: none leaves it unsigned (the release
    that ships with the package is pinned by hash). Raises InputError when `target` exists.
    """
    with new_folder(target) as work:
        for name in FILES:
            content = contents[name]
            write_atomic(work / name, content.read_bytes() if isinstance(content, Path) else content)
        files = {name: sha256_file(work / name) for name in FILES}
        data = manifest_bytes(manifest.model_copy(update={"files": files}))
        if len(data) > MANIFEST_LIMIT:
            raise InputError(
                f"its manifest would have {len(data):,} bytes, {MANIFEST_LIMIT:,} are read",
                where=target,
                do="begin a new federation: the statements of all rounds stand in every release",
            )
        parse_manifest(data, target / MANIFEST)
        write_atomic(work / MANIFEST, data)
        if key is not None:
            write_atomic(work / SIGNATURE, key.sign(data).hex().encode())


def memory_bytes(memory: Memory, more: Mapping[str, np.ndarray[Any, Any]] | None = None) -> bytes:
    """memory.safetensors. more: arrays of the maps that rows came through (`sgps.carry`). The same memory gives the same bytes."""
    arrays = {**memory.arrays(), **(more or {})}
    return bytes(save({n: np.ascontiguousarray(a) for n, a in sorted(arrays.items())}))
