"""Every kind of round over real sockets, one after the other in one federation: means, centred rows, sampled episodes."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import site_bench
from test_federation import Federation, client, entries, work  # noqa: F401  a fixture

from sgps import subset
from sgps.memory import COUNTS, ROWS, Contribution, pool
from sgps.release import GENERATOR, MEMORY, Release
from sgps.signing import load_public
from sgps.site_mean import COUNT, SUM
from sgps_client.config import Site
from sgps_client.round import open_ledger
from sgps_privacy import egress

pytestmark = [pytest.mark.enable_socket, pytest.mark.slow, pytest.mark.timeout(1200)]
NAMES = ["generator.gate.weight", "generator.gate.bias"]
LIMITS = {
    "kinds": ["site_mean", "rows", "episodes"],
    "episodes": {"least_sigma": 1.0, "denominator": 1024, "parameters": NAMES},
}


def left(site: Site) -> dict[int, egress.Reply]:
    """Round -> what left the site, from its outbox."""
    with open_ledger(site) as ledger:
        charges = {e["round"]: e["hash"] for e in ledger.history() if e["kind"] == "CHARGE"}
    return {n: egress.decode((site.state / "outbox" / f"{h}.out").read_bytes()[32:]) for n, h in charges.items()}


def ended(f: Federation, sites: list[Site]) -> None:
    running = [f.run(site) for site in sites]
    f.wait(lambda: all(p.poll() is not None for p in running), 500)
    assert [p.returncode for p in running] == [0, 0]


def test_every_kind_goes_one_way_and_changes_what_it_should(
    work: Path,  # noqa: F811
    release: Release,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(site_bench, "make_release", lambda target, _: Path(shutil.copytree(release.folder, target)))
    f = Federation(work, rounds=2, centre_sites=True, answer_after=12, deadline_after=40, attempts=40)
    cohort = {**site_bench.settings("")["cohorts"][0], "budget": {"epsilon": 20.0, "delta": 1e-5}}
    common = {"akiec": "nv", "df": "mel", "vasc": "bkl"}
    sites = [f.site(name, limits=LIMITS, classes=common, cohorts=[cohort]) for name in ("north", "south")]
    f.coordinate()
    ended(f, sites)
    f.serving[-1].terminate()
    f.serving[-1].wait()
    training = {"groups": [NAMES], "clips": [1.0], "steps": 2, "sampling": 0.5, "denominator": 1024}
    f.write_settings(rounds=4, centre_sites=False, kind="episodes", epsilon=1.0, episodes=training)
    f.tick()
    ended(f, sites)

    key = load_public(f.folder.keys / "plan.pub")
    releases = [Release.open(f.folder.releases / f"{n:04d}", key=key) for n in range(5)]
    last = releases[-1].manifest
    happened = [(r.kind, r.centred, r.sites) for r in last.rounds]
    both = ("north", "south")
    assert happened == [
        ("site_mean", False, both),
        ("rows", True, both),
        ("episodes", False, both),
        ("episodes", False, both),
    ]
    assert len({r.manifest.encoder_sha256 for r in releases}) == 1  # rows live on
    changed = [
        {n for n in (GENERATOR, MEMORY) if a.manifest.files[n] != b.manifest.files[n]}
        for a, b in itertools.pairwise(releases)
    ]
    assert changed == [set(), {MEMORY}, {GENERATOR}, {GENERATOR}]
    assert [r.manifest.architecture.learned for r in releases[2:]] == [("text",), ("head", "text"), ("head", "text")]

    sent = [left(site) for site in sites]
    assert [set(sent[0][n].arrays) for n in (1, 2, 3, 4)] == [{SUM, COUNT}, {ROWS, COUNTS}, set(NAMES), set(NAMES)]
    sigma = float(last.rounds[1].terms["sigma"])
    parts = [Contribution(s[2].arrays[ROWS], s[2].arrays[COUNTS], sigma) for s in sent]
    memory = releases[0].memory()
    assert np.array_equal(releases[2].memory().total, pool(memory.coordinates, memory.ids, parts).total)
    for n in (3, 4):
        change = {name: np.mean([s[n].arrays[name].astype(np.float64) for s in sent], axis=0) for name in NAMES}
        assert (releases[n].folder / GENERATOR).read_bytes() == subset.generator_bytes(releases[n - 1], change)

    for site in sites:
        assert entries(site) == ["COHORT", *["CHARGE", "COMMIT"] * 4]
        assert json.loads(client("ledger", "verify", "--config", site.file, "--json").stdout)["ok"]
    pair = sent[0][2].statement["epsilon"]
    assert 2.99 < pair <= 3.0 < sent[0][3].statement["epsilon"] < sent[0][4].statement["epsilon"] < 3.6
    found = json.loads(client("inspect", sites[0].releases / "0004", "--config", sites[0].file, "--json").stdout)
    assert found["problems"] == [] and len(found["privacy"]) == 8
