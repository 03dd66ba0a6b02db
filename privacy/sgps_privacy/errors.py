"""The two ways to fail: a refusal, whose code may leave the site, and a misuse, which stays."""

from __future__ import annotations

# fmt: off
CODES = frozenset(
    {
        # the privacy terms against the site's limits
        "plan_terms", "plan_kind", "plan_clip", "plan_sigma", "plan_q", "plan_steps", "plan_denominator",
        "plan_names", "plan_groups", "plan_numbers", "plan_code", "plan_rate",
        # the rest of the plan, checked by the client before this package is asked
        "plan_size", "plan_signature", "plan_federation", "plan_site", "plan_time", "plan_round",
        "plan_encoder", "plan_classes", "plan_start", "plan_centre", "plan_signal",
        # the ledger
        "budget", "round_taken", "round_lost", "rolled_back", "damaged", "busy",
    }
)
# fmt: on
"""Every word that a refused round may answer with. A code may be used only where plan, site configuration, limits and ledger
decide, never a record: it leaves the site without noise."""


class PrivacyError(Exception):
    """Misuse of this package: a mistake of the caller or of the site's configuration. Its text never leaves the
    site."""


class MachineFailure(PrivacyError, OSError):
    """The disk does not take what has to be kept: nobody's mistake in the settings, and no answer about a record. An
    OSError to whoever waits for the disk and tries again."""


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
