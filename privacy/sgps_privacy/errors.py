"""The two ways to fail: a refusal, whose code may leave the site, and a misuse, which stays."""
from __future__ import annotations

CODES = frozenset(
    "plan_terms plan_kind plan_clip plan_sigma plan_q plan_steps plan_denominator plan_names plan_groups plan_numbers "
    "plan_code plan_rate plan_size plan_signature plan_federation plan_site plan_time plan_round plan_encoder plan_classes "
    "plan_start budget round_taken round_lost rolled_back damaged busy".split()
)
"""Every word that a refused round may answer with. All depend on plan, limits and ledger, never on a record."""


class PrivacyError(Exception):
    """Misuse of this package: a mistake of the caller or of the site's configuration. Its text never leaves the site."""


class Refused(Exception):
    """A round that is not carried out.

    code: one of `CODES`, the only part that may leave the site, and the whole of `str(refused)`.
    detail: one line for the site's own log.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        if code not in CODES:
            raise PrivacyError(f"{code!r} is not a code of refusal")
        super().__init__(code)
        self.code = code
        self.detail = detail
