"""The bytes that a charge was spent for, kept so that a retry sends the same ones.

A file is named by the hash of its CHARGE entry, which holds a random nonce: a file whose name the ledger does not
hold shows that the ledger is an older copy."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from sgps_privacy.durable import make_folder, remove_torn, write_whole
from sgps_privacy.errors import MachineFailure, Refused


class Outbox:
    """A folder of payloads. Each file starts with the SHA-256 of the rest."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self.folder = folder
        remove_torn(folder)

    def path(self, charge: str) -> Path:
        """Where the payload of the CHARGE entry of this hash lies or will lie."""
        return self.folder / f"{charge}.out"

    def charges(self) -> set[str]:
        """Hashes of all CHARGE entries that have a file."""
        return {path.stem for path in self.folder.glob("*.out")}

    def write(self, charge: str, payload: bytes) -> None:
        """Durable and whole when it returns. Raises MachineFailure when the disk does not take it: the charge is spent."""
        try:
            write_whole(self.path(charge), hashlib.sha256(payload).digest() + payload)
        except OSError as error:
            with suppress(OSError):  # a disk that has become read-only keeps it until the next start
                remove_torn(self.folder)
            why = f"what was charged for cannot be kept ({error.strerror})"
            raise MachineFailure(f"{why}: mend the disk; the round is lost until the officer forgives it") from error

    def read(self, charge: str) -> bytes | None:
        """The payload, or None when there is no file. Raises Refused("damaged") when its digest does not hold."""
        try:
            data = self.path(charge).read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            raise Refused("damaged", f"{self.path(charge).name} in the outbox does not match its digest: put it back")
        return data[32:]
