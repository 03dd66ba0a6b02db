"""From settings and state to a signed plan."""

import time
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sgps.code import contributor_code
from sgps.memory import Array
from sgps.plan import Plan, SignedPlan, arrays_sha256
from sgps.release import Release
from sgps.signing import fingerprint
from sgps_privacy.terms import Terms
from sgps_server.config import Federation


def accepted_code(settings: Federation) -> tuple[str, ...]:
    """Hashes of site code that plans accept: that of this installation and those of the settings."""
    return tuple(sorted({contributor_code(), *settings.code}))


class PlanOffice:
    """Makes the plans of one federation."""

    def __init__(self, settings: Federation, key: Ed25519PrivateKey) -> None:
        self._settings, self._key = settings, key
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
        release: Release,
        centres: Mapping[str, str],
        quorum: int,
    ) -> tuple[Plan, SignedPlan]:
        """A plan that begins now. release: the one that the round starts from. echo: last receipt of each site; only that of participants travels. centres: of all sites, because
        they belong to the plan's identity, which no attempt changes."""
        now = time.time()
        plan = Plan(
            kind=terms.kind,
            federation=self._federation,
            round=round,
            attempt=attempt,
            release=release.sha256,
            encoder=release.manifest.encoder_sha256,
            classes=release.manifest.classes,
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
