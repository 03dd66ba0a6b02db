"""Gaussian noise without floating point: whole numbers on a grid, from a cryptographic source.

The sum of clipped gradients is rounded to whole multiples of a step `gamma`; discrete Gaussian noise of standard
deviation exactly 2^24 steps is added in integers; only then the result becomes a float again, which is
post-processing.

* Sampler: Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy" (2020), algorithms 1 to 3,
  vectorised. With a power of two as standard deviation every probability is a ratio of 64-bit integers: no float, no
  exp(). Its running time depends on rejections, not on the data.
* Source: AES-256-CTR under a fresh key from os.urandom for every vector. No state: nothing to seed, fork, save or
  reuse.
* Floats would tell sums apart by their low bits (Mironov, "On Significance of the Least Significant Bits", CCS 2012).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from sgps_privacy.errors import PrivacyError

Ints = NDArray[np.int64]
SCALE_BITS = 24  # noise of 2^24 grid steps: fine enough that the grid costs nothing, small enough for 64-bit squares
MIN_ROOM = 2**10  # least number of grid steps that the sensitivity must span


class SecureBits:
    """A key stream that is used for one vector and then dropped."""

    def __init__(self) -> None:
        self._stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """`count` uniform 64-bit words."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)

    def below(self, bound: int, count: int) -> Ints:
        """`count` uniform whole numbers in [0, bound), bound < 2^62. Exact: words in the last, partial block are
        redrawn."""
        limit = np.uint64((2**64 // bound) * bound - 1)
        words = self.words(count).copy()
        while (bad := words > limit).any():
            words[bad] = self.words(int(bad.sum()))
        below: Ints = (words % np.uint64(bound)).astype(np.int64)
        return below


def _bernoulli_exp(bits: SecureBits, numerator: Ints, log2_denominator: int) -> NDArray[np.bool_]:
    """One coin of probability exp(-numerator / 2^log2_denominator) for each entry, 0 <= ratio <= 1 (algorithm 1)."""
    result = np.zeros(numerator.size, dtype=np.bool_)
    alive, k = np.arange(numerator.size), 1
    while alive.size:
        go_on = bits.below(k << log2_denominator, alive.size) < numerator[alive]
        result[alive[~go_on]] = k % 2 == 1
        alive, k = alive[go_on], k + 1
    return result


def _discrete_laplace(bits: SecureBits, count: int, scale_bits: int) -> Ints:
    """At most `count` draws of the discrete Laplace law of scale 2^scale_bits; rejected lanes are left out (algorithm
    2)."""
    low = bits.below(1 << scale_bits, count)
    low = low[_bernoulli_exp(bits, low, scale_bits)]
    high, alive = np.zeros(low.size, dtype=np.int64), np.arange(low.size)
    while alive.size:
        alive = alive[_bernoulli_exp(bits, np.ones(alive.size, dtype=np.int64), 0)]
        high[alive] += 1
    size, negative = low + (high << scale_bits), bits.below(2, low.size) == 1
    # the cap keeps squares in 64 bits; the Gaussian beyond it holds less than e^-1900
    keep: NDArray[np.bool_] = ~(negative & (size == 0)) & (high < 64)
    draws: Ints = np.where(negative, -size, size)[keep]
    return draws


def discrete_gaussian(count: int, scale_bits: int = SCALE_BITS) -> Ints:
    """`count` independent draws of the discrete Gaussian with sigma = 2^scale_bits (algorithm 3 with t = sigma)."""
    bits, sigma, parts, have = SecureBits(), 1 << scale_bits, [np.empty(0, dtype=np.int64)], 0
    while have < count:
        draws = _discrete_laplace(bits, 3 * (count - have) + 64, scale_bits)
        square = (np.abs(draws) - sigma) ** 2  # accept with exp(-square / (2 sigma^2))
        whole, part = square >> (2 * scale_bits + 1), square & ((1 << (2 * scale_bits + 1)) - 1)
        alive, turn = np.arange(draws.size), 0
        while alive.size and (whole[alive] > turn).any():  # exp(-whole): that many coins of exp(-1) in a row
            due = whole[alive] > turn
            coins = _bernoulli_exp(bits, np.ones(int(due.sum()), dtype=np.int64), 0)
            alive = np.sort(np.concatenate([alive[~due], alive[due][coins]]))
            turn += 1
        accepted = draws[alive[_bernoulli_exp(bits, part[alive], 2 * scale_bits + 1)]]
        parts.append(accepted)
        have += accepted.size
    return np.concatenate(parts)[:count]


def sampler_distance(numbers: int, scale_bits: int = SCALE_BITS) -> float:
    """Total variation between `numbers` discrete Gaussian draws and as many ROUNDED Gaussian draws.

    Whole numbers plus a rounded Gaussian are a rounded (whole numbers plus Gaussian): post-processing of the Gaussian
    mechanism, so its exact accounting holds. The Kullback-Leibler divergence of the two laws is 1 / (576 sigma^4) for
    one draw, adds up over draws, and Pinsker's inequality gives the root of half of it."""
    return math.ldexp(math.sqrt(numbers / 1152), -2 * scale_bits)


def grid_room(sigma: float, size: int) -> bool:
    """Whether a sum of `size` numbers leaves the grid fine enough for noise multiplier `sigma`."""
    return bool(2**SCALE_BITS / sigma - 1.001 * math.sqrt(size) >= MIN_ROOM)


@dataclass(frozen=True)
class Grid:
    """Rounding of sums of `size` numbers so that `sigma` is kept exactly although rounding adds to the sensitivity.

    clip: L2 bound of one record, gradient units. sigma: noise multiplier. slack: relative error of float64 clipping and
    adding, at most n^2 2^-52 < 1e-6 for the 60,000 records that `unit.MAX_SLOTS` allows.
    Neighbouring float sums differ by at most clip (1 + slack). Rounding both moves each number by up to one more step
    (and 2^-13 for the float division), so whole-number sums differ by at most clip (1 + slack) / gamma + 1.001
    sqrt(size). Raises PrivacyError when sigma is so large that the grid would be coarse."""

    clip: float
    sigma: float
    size: int
    slack: float = 1e-6

    def __post_init__(self) -> None:
        if not (self.size > 0 and 0 < self.clip < math.inf and self.sigma > 0 and grid_room(self.sigma, self.size)):
            raise PrivacyError(f"clip {self.clip}, sigma {self.sigma}, {self.size} numbers: no sound grid")

    @property
    def gamma(self) -> float:
        """Grid step in gradient units: solves 2^24 = sigma * (clip (1 + slack) / gamma + 1.001 sqrt(size))."""
        room = 2.0**SCALE_BITS / self.sigma - 1.001 * math.sqrt(self.size)
        return self.clip * (1 + self.slack) / room

    @property
    def std(self) -> float:
        """Noise standard deviation in gradient units: sigma * clip and about 1e-5 more."""
        return self.gamma * 2.0**SCALE_BITS

    def quantise(self, values: NDArray[np.float64]) -> Ints:
        """(size,) float64 -> nearest whole numbers of steps. Raises PrivacyError for another shape, another type,
        numbers that are not finite or leave the exact range; clipped sums of up to 60,000 records never do."""
        if values.shape != (self.size,) or values.dtype != np.float64:
            raise PrivacyError(f"expected {self.size} float64 numbers, found {values.shape} {values.dtype}")
        steps = np.rint(values / self.gamma)
        if not (np.abs(steps) < 2.0**51).all():  # also false for NaN
            raise PrivacyError("the sum is outside the grid")
        return steps.astype(np.int64)
