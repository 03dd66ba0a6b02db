"""From settings and state to a signed plan."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sgps.code import contributor_code
from sgps.errors import ConfigError
from sgps.memory import COUNTS, ROWS, Array
from sgps.plan import Plan, SignedPlan, arrays_sha256
from sgps.release import Manifest
from sgps.signing import fingerprint
from sgps_privacy import accountant
from sgps_privacy.errors import PrivacyError
from sgps_privacy.terms import Terms
from sgps_server.config import Federation


def rows_terms(settings: Federation) -> dict[str, Any]:
    """Mechanism facts of a `rows` round: one noised sum of records of norm at most 1, full batch, so that the arrays that come back
    are the sum itself. Raises ConfigError when epsilon and delta promise nothing.
    """
    try:
        sigma = accountant.calibrate(settings.epsilon, settings.delta, steps=1)
    except PrivacyError as error:
        raise ConfigError(str(error), where="federation.yaml epsilon", do="choose a smaller epsilon") from error
    terms = Terms(settings.kind, sigma, q=1.0, steps=1, clips=(1.0,), groups=((ROWS, COUNTS),), denominator=1, rate=1.0)
    return terms.to_mapping()


def accepted_code(settings: Federation) -> tuple[str, ...]:
    """Hashes of site code that plans accept: that of this installation and those of the settings."""
    return tuple(sorted({contributor_code(), *settings.code}))


def start_arrays(classes: int, width: int) -> dict[str, Array]:
    """A `rows` round starts at zero: rows [classes, width], counts [classes], float32."""
    return {ROWS: np.zeros((classes, width), np.float32), COUNTS: np.zeros(classes, np.float32)}


class PlanOffice:
    """Makes the plans of one federation. The space of its rows (`encoder`, classes) is that of its releases, for life."""

    def __init__(self, settings: Federation, manifest: Manifest, width: int, key: Ed25519PrivateKey) -> None:
        self._settings, self._manifest, self._key = settings, manifest, key
        self._federation = fingerprint(key.public_key())
        self.start = start_arrays(len(manifest.classes), width)

    def plan(
        self,
        round: int,
        attempt: int,
        terms: Mapping[str, Any],
        code: Sequence[str],
        sites: Sequence[str],
        echo: Mapping[str, str],
    ) -> tuple[Plan, SignedPlan]:
        """A plan that begins now. echo: last receipt of each site; only that of participants travels."""
        now = time.time()
        plan = Plan(
            kind=self._settings.kind,
            federation=self._federation,
            round=round,
            attempt=attempt,
            encoder=self._manifest.encoder_sha256,
            classes=self._manifest.classes,
            start=arrays_sha256(self.start),
            terms=dict(terms),
            code=tuple(code),
            sites=tuple(sorted(sites)),
            echo={site: receipt for site, receipt in echo.items() if site in sites},
            issued=now,
            answer_at=now + self._settings.answer_after,
            deadline=now + self._settings.deadline_after,
        )
        return plan, plan.sign(self._key)
