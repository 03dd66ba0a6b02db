"""What the coordinator does for each kind of round: its terms, what it starts from, and what the replies make of the release.

The kinds and their arrays are those of `sgps.kinds`; what a site computes is in `sgps_client.kinds`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from sgps import carry, subset
from sgps.errors import ConfigError
from sgps.kinds import KINDS
from sgps.memory import COUNTS, ROWS, Array, Contribution, pool
from sgps.release import GENERATOR, MEMORY, Release, memory_bytes
from sgps.site_mean import COUNT, SHARE, SUM
from sgps_privacy import accountant
from sgps_privacy.errors import PrivacyError
from sgps_privacy.terms import Terms
from sgps_server.config import Federation

Arrays = dict[str, Array]


@dataclass(frozen=True)
class Sent:
    """One accepted reply: the terms of its plan, and the arrays as they came, float32."""

    terms: Terms
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class Result:
    """What a closed round gives. arrays: for whoever drives the strategy. files: of the next release that differ from the last one's.
    learned: the generator's parts that are on; None where that does not change."""

    arrays: Mapping[str, Array]
    files: Mapping[str, bytes] = field(default_factory=dict)
    learned: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Conduct:
    """terms: (settings, share of the price's mu^2) -> mechanism facts; raises PrivacyError when they promise nothing. start: what
    travels with the plan. result: (release, every accepted reply of this kind by round and site, those of this round), in the order
    of round and site."""

    terms: Callable[[Federation, float], Terms]
    start: Callable[[Release, Terms], Arrays]
    result: Callable[[Release, Mapping[tuple[int, str], Sent], Sequence[Sent]], Result]


def _once(kind: str, groups: tuple[tuple[str, ...], ...]) -> Callable[[Federation, float], Terms]:
    """One noised sum of records of norm at most 1, full batch, rate and denominator 1: what comes back is the sum itself."""

    def terms(settings: Federation, share: float) -> Terms:
        sigma = accountant.split(settings.epsilon, settings.delta, (share,))[0]
        return Terms(kind, sigma, q=1.0, steps=1, clips=(1.0,), groups=groups, denominator=1, rate=1.0)

    return terms


def _zeros(release: Release, terms: Terms) -> Arrays:
    return {n: np.zeros(shape, np.float32) for n, shape in KINDS[terms.kind].shapes(release, terms.names).items()}


def _pooled(release: Release, every: Mapping[tuple[int, str], Sent], now: Sequence[Sent]) -> Result:
    """The class memory, from the contributions of all rounds; those that an older base network made, through the release's maps."""
    memory, maps, steps = release.memory(), carry.maps(release), release.manifest.carried or ()
    parts = [
        carry.brought(steps, maps, round, Contribution(s.arrays[ROWS], s.arrays[COUNTS], s.terms.sigma), memory.ids)
        for (round, _), s in every.items()
    ]
    after = pool(memory.coordinates, memory.ids, parts)
    return Result(after.arrays(), {MEMORY: memory_bytes(after, carry.arrays(maps))})


def _kept(release: Release, every: Mapping[tuple[int, str], Sent], now: Sequence[Sent]) -> Result:
    """A site's mean is for that site's next round; in the release nothing changes but the statements."""
    return Result(release.memory().arrays())


def _episodes(settings: Federation, share: float) -> Terms:
    e = settings.episodes
    if e is None:
        raise ConfigError("episodes: is missing", where="federation.yaml", do="name the parameters to train")
    sigma = accountant.calibrate(settings.epsilon, settings.delta, steps=e.steps, q=e.sampling)
    return Terms("episodes", sigma, e.sampling, e.steps, e.clips, e.groups, e.denominator, e.rate)


def _parameters(release: Release, terms: Terms) -> Arrays:
    subset.learned(release, terms.names)
    return dict(subset.start(release, terms.names))


def _trained(release: Release, every: Mapping[tuple[int, str], Sent], now: Sequence[Sent]) -> Result:
    """The mean of the sites' changes: every site adds its noise in full and weighs the same, whatever it holds."""
    names = now[0].terms.names
    change = {n: np.mean([s.arrays[n].astype(np.float64) for s in now], axis=0) for n in names}
    after = {n: start + change[n] for n, start in subset.start(release, names).items()}
    return Result(after, {GENERATOR: subset.generator_bytes(release, change)}, subset.learned(release, names))


CONDUCT: Final[Mapping[str, Conduct]] = {
    "rows": Conduct(_once("rows", ((ROWS, COUNTS),)), _zeros, _pooled),
    "site_mean": Conduct(_once("site_mean", ((SUM, COUNT),)), _zeros, _kept),
    "episodes": Conduct(_episodes, _parameters, _trained),
}
"""One entry for each of `sgps.kinds.KINDS`."""


def kinds_of(settings: Federation) -> tuple[str, ...]:
    """Kinds of the rounds that these settings run, for the sites' own limits."""
    return ("site_mean", "rows") if settings.centre_sites else (settings.kind,)


def kind_before(terms: Mapping[int, Mapping[str, Any]], number: int) -> str | None:
    """Kind of the round before `number`, from the terms of all rounds."""
    return str(terms[number - 1]["kind"]) if number - 1 in terms else None


def kind_of(settings: Federation, number: int, before: str | None) -> str:
    """Kind of round `number`; before: kind of the round before it. With `centre_sites` every `rows` round follows a `site_mean` round.

    Raises ConfigError when a site's mean would be paid for and never used.
    """
    if not settings.centre_sites or before == "site_mean":
        return settings.kind
    if number == settings.rounds:
        raise ConfigError(
            f"round {number} would take the means of the sites, and no round would use them",
            where="federation.yaml rounds",
            do="write one more: with centre_sites rounds come in pairs",
        )
    return "site_mean"


def terms_of(settings: Federation, kind: str, before: str | None, release: Release) -> Terms:
    """Mechanism facts of a round. A `site_mean` round and the `rows` round after it cost epsilon together. Raises ConfigError when they promise nothing, name what may not be trained, or when the round would
    harm more than help at a quorum of sites."""
    pair = SHARE if kind == "site_mean" else 1 - SHARE if before == "site_mean" else 1.0
    try:
        terms = CONDUCT[kind].terms(settings, pair)
    except PrivacyError as error:
        raise ConfigError(str(error), where="federation.yaml epsilon", do="choose another epsilon") from error
    numbers = sum(math.prod(a.shape) for a in CONDUCT[kind].start(release, terms).values())
    found, least = terms.signal(numbers, settings.quorum), KINDS[kind].least_signal
    if found < least:
        raise ConfigError(
            f"N mu / sqrt(S d) is {found:.1f} with {numbers} numbers and a quorum of {settings.quorum} sites: below {least:g} the round "
            "would harm more than help",
            where="federation.yaml episodes",
            do="train fewer numbers, ask for more patients (denominator) or sites (quorum), or spend more epsilon",
        )
    return terms


def result(release: Release, number: int, sent: Mapping[tuple[int, str], Sent]) -> Result | None:
    """What round `number` gives. sent: (round, site) -> every accepted reply. None when this round has none."""
    order = sorted(sent)
    now = [sent[k] for k in order if k[0] == number]
    if not now:
        return None
    kind = now[0].terms.kind
    return CONDUCT[kind].result(release, {k: sent[k] for k in order if sent[k].terms.kind == kind}, now)


def separable(terms: Mapping[str, Any]) -> bool:
    """Whether one site's part of a round can be taken out again. Sums can; a change of the generator cannot: later rounds start from it."""
    return bool(terms["kind"] != "episodes")
