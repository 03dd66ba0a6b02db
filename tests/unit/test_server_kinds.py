"""The coordinator's side of each kind: which round comes next, its terms, its start, and what the replies make of the release."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import tiny_release

from sgps import subset
from sgps.errors import ConfigError, InputError
from sgps.files import sha256_file
from sgps.memory import COUNTS, ROWS, Contribution, pool
from sgps.release import GENERATOR, MANIFEST, MEMORY, Release, memory_bytes
from sgps.site_mean import COUNT, SUM
from sgps_privacy import accountant
from sgps_privacy.events import Event
from sgps_privacy.terms import Terms
from sgps_server.config import Federation
from sgps_server.kinds import CONDUCT, Sent, kind_of, kinds_of, result, terms_of
from sgps_server.replies import norm_bound

GATE, BIAS = "generator.gate.weight", "generator.gate.bias"
EPISODES = {"groups": [[GATE, BIAS]], "clips": [1.0], "steps": 10, "denominator": 128}


def settings(**changes: Any) -> Federation:
    return Federation.model_validate(
        {
            "name": "derm", "url": "https://localhost:8443", "listen": {"host": "127.0.0.1", "port": 8443}, "rounds": 4,
            "epsilon": 3.0, "delta": 1e-5, "quorum": 6, **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tiny_release.make(tmp_path_factory.mktemp("r") / "0000")
    return Release.open(folder, sha256=sha256_file(folder / MANIFEST))


def events(*terms: Terms) -> list[Event]:
    return [Event(t.sigma, t.q, t.steps) for t in terms]


def test_with_centred_sites_rounds_come_in_pairs_that_cost_epsilon_together(tiny: Release) -> None:
    s, kinds = settings(centre_sites=True), [None]
    for number in range(1, 5):
        kinds.append(kind_of(s, number, kinds[-1]))
    assert kinds[1:] == ["site_mean", "rows", "site_mean", "rows"]
    first, second = terms_of(s, "site_mean", None, tiny), terms_of(s, "rows", "site_mean", tiny)
    assert 2.99 < accountant.epsilon(events(first, second), 1e-5) <= 3.0
    assert second.sigma / first.sigma == pytest.approx(0.5, abs=1e-3)  # mu^2 in shares of .2 and .8
    assert (first.names, second.names) == ((SUM, COUNT), (ROWS, COUNTS))
    assert kinds_of(s) == ("site_mean", "rows") and kinds_of(settings()) == ("rows",)


def test_without_them_every_round_is_of_the_kind_that_is_written_and_costs_epsilon(tiny: Release) -> None:
    assert {kind_of(settings(), n, "rows") for n in range(1, 5)} == {"rows"}
    assert 2.99 < accountant.epsilon(events(terms_of(settings(), "rows", "rows", tiny)), 1e-5) <= 3.0


def test_rows_after_a_mean_cost_their_share_although_centring_was_switched_off_between(tiny: Release) -> None:
    paid = terms_of(settings(), "rows", "site_mean", tiny)
    assert paid.sigma == terms_of(settings(centre_sites=True), "rows", "site_mean", tiny).sigma


def test_a_mean_that_no_round_would_use_is_not_taken() -> None:
    with pytest.raises(ConfigError, match="rounds: round 3 would take the means"):
        kind_of(settings(centre_sites=True, rounds=3), 3, "rows")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "episodes"}, "episodes"),
        ({"kind": "episodes", "episodes": EPISODES, "centre_sites": True}, "centre_sites"),
        ({"episodes": {**EPISODES, "clips": [0.5, 0.5]}}, "clips"),
        ({"episodes": {**EPISODES, "sampling": 0}}, "sampling"),
        ({"kind": "site_mean"}, "kind"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        settings(**changes)


def test_episodes_spend_the_epsilon_of_the_settings_in_all_their_steps(release: Release) -> None:
    for sampling in (1.0, 0.25):
        s = settings(kind="episodes", episodes={**EPISODES, "sampling": sampling, "denominator": 512})
        terms = terms_of(s, "episodes", None, release)
        assert (terms.steps, terms.q, terms.clips) == (10, sampling, (1.0,))
        assert 2.98 < accountant.epsilon(events(terms), 1e-5) <= 3.0
        start = CONDUCT["episodes"].start(release, terms)
        assert {n: a.shape for n, a in start.items()} == {n: subset.allowed(release)[n] for n in (GATE, BIAS)}


def test_episodes_whose_signal_is_too_small_are_refused_with_what_would_help(release: Release) -> None:
    s = settings(kind="episodes", episodes=EPISODES, quorum=1)
    with pytest.raises(
        ConfigError, match=r"N mu / sqrt\(S d\) is 6.6 with 195 numbers and a quorum of 1 sites: below 20"
    ):
        terms_of(s, "episodes", None, release)


def test_episodes_of_what_may_not_be_trained_are_refused(release: Release) -> None:
    for names, says in (["base.conv_stem.weight"], "may not be trained"), (["generator.shots"], "no learned part"):
        with pytest.raises(InputError, match=says):
            terms_of(settings(kind="episodes", episodes={**EPISODES, "groups": [names]}), "episodes", None, release)


def replies(terms: Terms, start: dict[str, np.ndarray[Any, Any]], number: int) -> dict[tuple[int, str], Sent]:
    rng = np.random.default_rng(number)
    return {
        (number, site): Sent(terms, {n: rng.normal(size=a.shape).astype(np.float32) for n, a in start.items()})
        for site in ("north", "south")
    }


def test_rows_are_pooled_over_all_rounds_and_means_change_nothing_in_the_release(tiny: Release) -> None:
    s = settings(centre_sites=True)
    sent: dict[tuple[int, str], Sent] = {}
    for number, (kind, before) in enumerate([("site_mean", None), ("rows", "site_mean")] * 2, 1):
        terms = terms_of(s, kind, before, tiny)
        sent |= replies(terms, CONDUCT[kind].start(tiny, terms), number)
    means, rows = result(tiny, 3, sent), result(tiny, 4, sent)
    assert means is not None and (means.files, means.learned) == ({}, None)
    assert rows is not None and list(rows.files) == [MEMORY]
    order = [sent[k] for k in sorted(sent) if k[0] in (2, 4)]
    memory = tiny.memory()
    parts = [Contribution(r.arrays[ROWS], r.arrays[COUNTS], r.terms.sigma) for r in order]
    assert rows.files[MEMORY] == memory_bytes(pool(memory.coordinates, memory.ids, parts))
    assert result(tiny, 5, sent) is None


def test_episodes_move_the_generator_by_the_mean_change_and_leave_the_rest(release: Release) -> None:
    terms = Terms("episodes", 5.0, 1.0, 10, (1.0,), ((GATE, BIAS),), 128)
    sent = replies(terms, CONDUCT["episodes"].start(release, terms), 1)
    found = result(release, 1, sent)
    assert found is not None and list(found.files) == [GENERATOR]
    assert found.learned == ("head", "text")
    mean = np.mean([s.arrays[GATE] for s in sent.values()], axis=0)
    assert found.arrays[GATE] == pytest.approx(subset.start(release, [GATE])[GATE] + mean, abs=1e-6)
    assert found.files[GENERATOR] == subset.generator_bytes(
        release, {n: np.mean([s.arrays[n].astype(np.float64) for s in sent.values()], axis=0) for n in (GATE, BIAS)}
    )


def test_the_largest_plausible_reply_of_several_steps() -> None:
    """Noise adds as squares, signal as it is; rate and denominator scale both."""
    one, four = (Terms("episodes", 3.0, 1.0, t, (2.0,), (("w",),), 64, 0.5) for t in (1, 4))
    noise = 2.0 * 3.0 * (math.sqrt(100) + 8) * 0.5 / 64
    assert norm_bound(one, 100, 0) == pytest.approx(noise)
    assert norm_bound(four, 100, 0) == pytest.approx(2 * noise)
    assert norm_bound(four, 100, 50) - norm_bound(four, 100, 0) == pytest.approx(4 * 2.0 * 50 * 0.5 / 64)
