"""Verified plans that a site remembers, so that an old plan, or an echo that is too old, is told apart; and which sums were late."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sgps.errors import StateError
from sgps.files import write_atomic
from sgps.plan import SignedPlan
from sgps_client.config import Site


def _file(site: Site) -> Path:
    """One for each federation: site folders that share a ledger, so that a budget holds over all of them, share `state`."""
    return site.state / f"plans-{site.config.federation.fingerprint[:16]}.json"


@dataclass(frozen=True)
class Seen:
    """Verified plans that a site remembers: the last one, and when the plan of each charged round was issued. held: rounds whose sum
    missed the `answer_at` of its attempt -> the moment before which it does not leave."""

    last: SignedPlan | None
    charged: Mapping[str, float]
    held: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, site: Site) -> "Seen":
        try:
            found = json.loads(_file(site).read_bytes())
            return cls(SignedPlan.model_validate(found["last"]), dict(found["charged"]), dict(found.get("held", {})))
        except FileNotFoundError:
            return cls(None, {})
        except (ValueError, KeyError, TypeError) as error:
            raise StateError("is damaged", where=_file(site), do="put it back from the backup") from error

    def write(self, site: Site) -> None:
        last = None if self.last is None else self.last.model_dump()
        found = {"last": last, "charged": dict(self.charged), "held": dict(self.held)}
        write_atomic(_file(site), json.dumps(found).encode(), 0o600)
