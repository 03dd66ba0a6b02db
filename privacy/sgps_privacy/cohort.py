"""Closed lists of patients. A budget belongs to a cohort, over all federations and for ever.

The key must be the patients, not a hash of the data files: one corrected file would give every patient a new budget.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgps_privacy.durable import write_whole
from sgps_privacy.errors import PrivacyError

SECRET_BYTES = 32


def normalised(patient_id: str) -> str:
    """One spelling of an id: Unicode NFC, without blanks at the ends. Raises PrivacyError for an empty one."""
    plain = unicodedata.normalize("NFC", str(patient_id)).strip()
    if not plain:
        raise PrivacyError("a patient id is empty: give every record the id of its patient")
    return plain


@dataclass(frozen=True)
class Cohort:
    """name: what the site calls it. members: HMAC-SHA256 of each normalised patient id under the site's secret, hex."""

    name: str
    members: frozenset[str]

    @classmethod
    def close(cls, name: str, patient_ids: Iterable[str], secret: bytes, earlier: Sequence[Cohort]) -> Cohort:
        """A new closed cohort.

        Raises PrivacyError for an empty or taken name, no patient, a patient listed twice, and a patient of an
        `earlier` cohort, whose budget is there already. The refusal is the site's own business and never shapes a
        reply."""
        plain = [normalised(patient) for patient in patient_ids]
        if not name.strip() or name in {old.name for old in earlier}:
            raise PrivacyError(f"cohort {name!r}: give it a name of its own")
        if not plain:
            raise PrivacyError(f"cohort {name!r} has no patient")
        if len(set(plain)) != len(plain):
            raise PrivacyError(
                f"cohort {name!r}: {len(plain) - len(set(plain))} patients appear twice; one patient is one record"
            )
        cohort = cls(name, frozenset(_keyed(patient, secret) for patient in plain))
        for old in earlier:
            if shared := len(cohort.members & old.members):
                raise PrivacyError(
                    f"cohort {name!r}: {shared} of its patients belong to cohort {old.name!r}; leave them out"
                )
        return cohort

    def difference(self, patient_ids: Iterable[str], secret: bytes) -> str:
        """How a list differs from this cohort, in words that name no patient; empty when it holds exactly its patients, each once:
        a patient under two spellings of one id would fill two record slots."""
        keyed = [_keyed(normalised(patient), secret) for patient in patient_ids]
        lost, new = len(self.members - set(keyed)), len(set(keyed) - self.members)
        twice = len(keyed) - len(set(keyed))
        if lost == len(self.members):
            return f"none of its {lost} patients is listed now; another column of ids, or another table?"
        parts = [
            f"{lost} of its {len(self.members)} patients are missing",
            f"{new} are new",
            f"{twice} are listed twice",
        ]
        return ", ".join(part for part, count in zip(parts, (lost, new, twice), strict=True) if count)


def rehearsed(lists: Mapping[str, Sequence[str]], secret: bytes, known: Sequence[Cohort]) -> dict[str, str]:
    """Cohort -> why its list would be refused, were the lists opened in this order beside the `known` cohorts. Nothing is written."""
    cohorts, found = {cohort.name: cohort for cohort in known}, {}
    for name, ids in lists.items():
        try:
            if name not in cohorts:
                cohorts[name] = Cohort.close(name, ids, secret, [*cohorts.values()])
            elif why := cohorts[name].difference(ids, secret):
                found[name] = f"the cohort is closed with other patients: {why}"
        except PrivacyError as error:
            found[name] = str(error)
    return found


def _keyed(patient: str, secret: bytes) -> str:
    return hmac.new(secret, b"patient\0" + patient.encode(), hashlib.sha256).hexdigest()


def fingerprint(secret: bytes) -> str:
    """Names the secret without revealing it, so that a lost one is noticed."""
    return hmac.new(secret, b"site secret", hashlib.sha256).hexdigest()


def site_secret(path: Path) -> bytes:
    """The site's 32 random bytes, made at the first call, mode 0600. Raises PrivacyError when others may read the
    file."""
    if not path.exists():
        write_whole(path, secrets.token_bytes(SECRET_BYTES))
    if path.stat().st_mode & 0o077:
        raise PrivacyError(f"{path.name} can be read by others: chmod 600")
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise PrivacyError(f"{path.name} is not {SECRET_BYTES} bytes: put it back from the backup")
    return secret
