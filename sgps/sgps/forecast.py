"""What is kept of a row's gain under noise, from public numbers alone.

r is the signal of one row over its noise: a site of n patients of the disease that spends mu gives r = n mu / sqrt(k), k coordinates that
a record fills; weights are counts (`sgps.memory.pool`), so r^2 adds over sites, and S equal sites have r = n mu / sqrt(S k), n all patients
together. What is kept of the gain that the same patients bring without privacy lies near one curve of r (docs/results/federated.md: seven
skin classes, each in turn the disease that only others hold; 63 combinations of patients, sites, rounds and epsilon).

NumPy only: both programs use it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgps.memory import USED

ENOUGH = 2.2  # r at which about 80 % is kept
HOPELESS = 1.0  # r below which a row mostly passes for noise and is not used
NOTHING = 0.2  # r of one site below which it adds nothing to what others bring
_R = (0.0, 0.32, 0.68, 1.26, 1.72, 2.27, 3.17, 4.54, 6.58, 17.6)
_KEPT = (0, 2, 7, 45, 73, 82, 90, 96, 98, 99)  # per cent, mean of the combinations
_LOW = (0, 0, -3, 18, 63, 73, 83, 93, 95, 97)  # lowest and highest combination
_HIGH = (0, 10, 32, 58, 84, 93, 95, 100, 100, 101)
_PATIENTS = (0, 10, 20, 40, 80, 160)
_GAIN = (0.0, 8.7, 10.1, 10.0, 10.6, 11.8)  # points of AUROC of one exemplar against all other classes, without noise


@dataclass(frozen=True)
class Kept:
    """Per cent of the gain: mean of the measured combinations near this r, the lowest and the highest."""

    mean: float
    low: float
    high: float


def signal(patients: Sequence[float], mu: float) -> float:
    """r of sites that hold so many patients of one disease and spend mu each."""
    return math.hypot(*patients) * mu / math.sqrt(USED)


def kept(r: float) -> Kept:
    return Kept(*(float(np.interp(r, _R, column)) for column in (_KEPT, _LOW, _HIGH)))


def gain(patients: int) -> float:
    """Points of AUROC that so many patients of one disease bring without noise."""
    return float(np.interp(patients, _PATIENTS, _GAIN))
