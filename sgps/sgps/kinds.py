"""The kinds of rounds: what each carries. One entry here, one in `sgps_client.kinds`, one in `sgps_server.kinds`.

rows        noised sums of patients, one row for each class: the class memory (`sgps.memory`)
site_mean   noised mean of residuals to public class means, before `rows`: where the site's camera lies (`sgps.site_mean`)
episodes    noised gradients of small parts of the generator, through the episode loss (`sgps.tuning`)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sgps import site_mean, subset
from sgps.errors import InputError
from sgps.memory import COUNTS, ROWS
from sgps.plan import KindName
from sgps.release import Release

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Kind:
    """name: as it stands in plans. once: a cohort pays for it once in a federation. sampled: whether a step may draw its patients
    (q < 1). shapes: (release, names of the terms) -> name and shape of each array; a name that the kind does not know is left out,
    so that a comparison with the names of the terms shows it. bound: whether a record depends on more of the release than its encoder
    and classes (bank, texts, rows), so that a site needs the very release that the plan names. least_signal: N mu / sqrt(S d) below which a round is refused, because
    it would harm more than help (dp-utility note, section 6).
    """

    name: KindName
    once: bool
    sampled: bool
    shapes: Callable[[Release, Sequence[str]], Shapes]
    bound: bool = True
    least_signal: float = 0.0


def _rows(release: Release, names: Sequence[str]) -> Shapes:
    classes, k = len(release.manifest.classes), len(release.memory().coordinates.directions)
    return {ROWS: (classes, k), COUNTS: (classes,)}


def _site_mean(release: Release, names: Sequence[str]) -> Shapes:
    return {site_mean.SUM: (release.memory().coordinates.used,), site_mean.COUNT: (1,)}


def _episodes(release: Release, names: Sequence[str]) -> Shapes:
    known = subset.allowed(release)
    found = {n: known[n] for n in names if n in known}
    try:
        subset.learned(release, found)
    except InputError:  # no part would read what is trained
        return {}
    return found


KINDS: Final[Mapping[str, Kind]] = {
    "rows": Kind("rows", once=True, sampled=False, shapes=_rows, bound=False),
    "site_mean": Kind("site_mean", once=True, sampled=False, shapes=_site_mean),
    "episodes": Kind("episodes", once=False, sampled=True, shapes=_episodes, least_signal=20.0),
}
