"""`sgps demo` as a newcomer runs it, with fewer exemplars."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sgps.release import Release

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.timeout(1200)
def test_the_demo_tells_its_story(tmp_path: Path, release: Release) -> None:
    command = [sys.executable, "-m", "sgps.cli", "demo", "--out", "demo", "--exemplars", "10"]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"NO_PROXY": "*"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "demo" / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "the page loads nothing"
    assert page.count("data:image/") >= 11
    for word in ("Act one", "Act two", "What each site has spent", "What left the sites", "ROC"):
        assert word in page
    gains = re.findall(r"after it, with privacy.*?\(([+-][\d.]+) ±", done.stdout)
    assert gains and float(gains[0]) > 0, "a disease that other sites hold gains"
    assert "3.000 of 3" in done.stdout or re.search(r"epsilon 2\.9\d+ of 3", done.stdout)
    left = [p for p in (tmp_path / "demo").rglob("*.out") if p.parent.name == "outbox"]
    assert len(left) == 6, "three sites, two rounds"
    model = tmp_path / "demo" / "west" / "model-after"
    assert model.stat().st_mode & 0o777 == 0o700
