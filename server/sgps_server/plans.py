"""From settings and state to a signed plan."""

import time
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sgps.code import contributor_code
from sgps.memory import Array
from sgps.plan import Plan, SignedPlan, arrays_sha256
from sgps.release import Manifest
from sgps.signing import fingerprint
from sgps_privacy.terms import Terms
from sgps_server.config import Federation


def accepted_code(settings: Federation) -> tuple[str, ...]:
    """Hashes of site code that plans accept: that of this installation and those of the settings."""
    return tuple(sorted({contributor_code(), *settings.code}))


class PlanOffice:
    """Makes the plans of one federation. The space of its rows (`encoder`, classes) is that of its releases, for life."""

    def __init__(self, settings: Federation, manifest: Manifest, key: Ed25519PrivateKey) -> None:
        self._settings, self._manifest, self._key = settings, manifest, key
        self._federation = fingerprint(key.public_key())

    def plan(
        self,
        round: int,
        attempt: int,
        terms: Terms,
        start: Mapping[str, Array],
        code: Sequence[str],
        sites: Sequence[str],
        echo: Mapping[str, str],
        *,
        centres: Mapping[str, str],
        quorum: int,
    ) -> tuple[Plan, SignedPlan]:
        """A plan that begins now. echo: last receipt of each site; only that of participants travels. centres: of all sites, because
        they belong to the plan's identity, which no attempt changes."""
        now = time.time()
        plan = Plan(
            kind=terms.kind,
            federation=self._federation,
            round=round,
            attempt=attempt,
            encoder=self._manifest.encoder_sha256,
            classes=self._manifest.classes,
            start=arrays_sha256(dict(start)),
            terms=terms.to_mapping(),
            code=tuple(code),
            sites=tuple(sorted(sites)),
            echo={site: receipt for site, receipt in echo.items() if site in sites},
            centres=dict(centres),
            quorum=quorum,
            issued=now,
            answer_at=now + self._settings.answer_after,
            deadline=now + self._settings.deadline_after,
        )
        return plan, plan.sign(self._key)
