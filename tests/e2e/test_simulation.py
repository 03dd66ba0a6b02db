"""`bench.simulation` in Flower's engine on Ray: every virtual site contributes once and pays for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra `simulation`")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
from federation import ROOT, environment

from sgps_client.config import Site
from sgps_client.round import open_ledger

DISEASES = "drawn-sable-radiatoma,drawn-motley-polychroma"


@pytest.mark.slow
@pytest.mark.usefixtures("release")
def test_virtual_sites_contribute_once_each_with_a_ledger_of_their_own(tmp_path: Path) -> None:
    variables = environment()
    variables["PYTHONPATH"] = os.pathsep.join([variables["PYTHONPATH"], str(ROOT)])
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "bench.simulation", "--out", str(out), "--sites", "3", "--patients", "2", "--tested", "2",
        "--diseases", DISEASES,
    ]  # fmt: skip
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((out / "simulation.json").read_text())
    assert found["run"]["contributions"] == 3
    assert [d["disease"] for d in found["diseases"]] == DISEASES.split(",")
    assert sum(d["patients"] for d in found["diseases"]) == found["run"]["patients"] == 6
    assert not (out / "sites" / "site-0000" / "keys" / "site.crt").exists()
    payloads = set()
    for place in range(3):
        with open_ledger(Site.load(out / "sites" / f"site-{place:04d}" / "site.yaml")) as ledger:
            payloads |= {e["payload"] for e in ledger.history() if e["kind"] == "COMMIT"}
    assert len(payloads) == 3


def test_more_sites_than_a_round_can_have_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.simulation import main

    assert main(["--out", str(tmp_path / "out"), "--sites", "401"]) == 2
    assert capsys.readouterr().err.startswith("--sites: 401 is none of 1 to 400") and not (tmp_path / "out").exists()
