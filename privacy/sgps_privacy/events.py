"""What the ledger stores of a mechanism: facts, never an epsilon."""

from __future__ import annotations

from dataclasses import dataclass

from sgps_privacy.errors import PrivacyError

SIGMAS = 1e-3, 1e9
"""Noise multipliers whose squares and inverse squares are ordinary floats."""
MAX_STEPS = 2**31 - 1
"""An untrusted statement may name any number; one beyond the floats would end whoever recomputes it."""


@dataclass(frozen=True)
class Event:
    """`steps` noised sums of one cohort.

    sigma: noise standard deviation over sensitivity, without unit. q: sampling rate in (0, 1], 1 is the full batch.
    Raises PrivacyError for anything else; NaN fails every comparison.
    """

    sigma: float
    q: float
    steps: int

    def __post_init__(self) -> None:
        if not SIGMAS[0] <= self.sigma <= SIGMAS[1]:
            raise PrivacyError(f"sigma {self.sigma!r}: must lie in [{SIGMAS[0]:g}, {SIGMAS[1]:g}]")
        if not 0 < self.q <= 1:
            raise PrivacyError(f"q {self.q!r}: must lie in (0, 1]")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= MAX_STEPS:
            raise PrivacyError(f"steps: must be a whole number from 1 to {MAX_STEPS}")
