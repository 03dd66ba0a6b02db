"""Verified plans that a site remembers, so that an old plan, or an echo that is too old, is told apart."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sgps.errors import StateError
from sgps.files import write_atomic
from sgps.plan import SignedPlan

PLANS = "plans.json"


@dataclass(frozen=True)
class Seen:
    """Verified plans that a site remembers: the last one, and when the plan of each charged round was issued."""

    last: SignedPlan | None
    charged: Mapping[str, float]

    @classmethod
    def read(cls, state: Path) -> "Seen":
        try:
            found = json.loads((state / PLANS).read_bytes())
            return cls(SignedPlan.model_validate(found["last"]), dict(found["charged"]))
        except FileNotFoundError:
            return cls(None, {})
        except (ValueError, KeyError, TypeError) as error:
            raise StateError("is damaged", where=state / PLANS, do="put it back from the backup") from error

    def write(self, state: Path) -> None:
        last = None if self.last is None else self.last.model_dump()
        write_atomic(state / PLANS, json.dumps({"last": last, "charged": dict(self.charged)}).encode(), 0o600)
