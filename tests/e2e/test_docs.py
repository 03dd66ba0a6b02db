"""Every command block in the documents is run as it stands, or stands in NOT_RUN with a reason."""

import csv
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from sgps.draw import PRESETS, draw_patient
from sgps.release import Release
from sgps.settings import dump, parse

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NOT_RUN = {  # first line of a block -> why it is not run here
    "make demo      # a coordinator and three sites on this machine, two private rounds, classifiers, a report": (
        "these two are what CI and people run; the demo is run by test_demo.py"
    ),
    "sgps pretrain base --data images --out base \\": "wants weights that cannot be had here; test_open_pipeline.py runs the path",
    "sgps pretrain base --data images --out base --encoders open_clip:biomedclip \\": (
        "wants weights that cannot be had here; test_open_pipeline.py runs the path"
    ),
    "sgps-client synthesize --exemplar exemplar.jpg --disease dermatofibroma --encoders open_clip:biomedclip --out model": (
        "wants weights that cannot be had here; test_open_pipeline.py runs the path"
    ),
    "sgps-client export --model model --onnx model.onnx": "run by test_export.py, with the reader of the file",
    "sgps pretrain base --data images --out base --device cuda": "wants an accelerator; test_accelerator.py runs it where there is one",
    "python -m pytest -m accelerator": "wants an accelerator",
    "python -m bench.throughput --out throughput": "takes a minute; test_device.py runs its measure",
    "sgps-client serve --models classifiers": "serves until it is stopped; run by test_serve.py",
}
_FENCE = re.compile(r"(?:<!-- test: (\w+) -->\n)?```(\w*)\n(.*?)```", re.DOTALL)


def blocks(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, language, text) of each fenced block."""
    yield from _FENCE.findall(path.read_text(encoding="utf-8"))


def lines(place: str) -> list[str]:
    """Commands of the README's blocks for one place, joined over line ends."""
    out = []
    for where, language, text in blocks(ROOT / "README.md"):
        if language == "sh" and where == place:
            out += [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return out


def test_every_command_block_is_run_or_excused() -> None:
    unknown = [
        f"{path.relative_to(ROOT)}: {text.splitlines()[0]}"
        for path in DOCUMENTS
        for place, language, text in blocks(path)
        if language in {"sh", "bash", "console"}
        and place not in {"site", "centre"}
        and text.splitlines()[0] not in NOT_RUN
    ]
    assert not unknown
    elsewhere = [p for p in DOCUMENTS if p.name != "README.md" and any(b[0] for b in blocks(p))]
    assert not elsewhere, "only the README's blocks are run below"
    known = {text.splitlines()[0] for path in DOCUMENTS for _, _, text in blocks(path)}
    assert set(NOT_RUN) <= known


class Place:
    """A folder and its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def argv(self, line: str) -> list[str]:
        program, *rest = shlex.split(line, comments=True)
        module = {"sgps-client": "sgps_client.cli", "sgps-server": "sgps_server.cli"}[program]
        return [sys.executable, "-m", module, *rest]

    @property
    def environment(self) -> dict[str, str]:
        paths = os.pathsep.join(str(ROOT / p) for p in ("sgps", "privacy", "client", "server"))
        return {**os.environ, "PYTHONPATH": paths, "NO_PROXY": "*", "OMP_WAIT_POLICY": "PASSIVE"}

    def run(self, line: str) -> str:
        done = subprocess.run(
            self.argv(line),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def running(self, line: str) -> Iterator[None]:
        with (self.folder / "out.txt").open("w") as out:
            process = subprocess.Popen(self.argv(line), cwd=self.folder, env=self.environment, stdout=out, stderr=out)
            try:
                end = time.monotonic() + 60
                while "listens at" not in (self.folder / "out.txt").read_text():
                    assert process.poll() is None and time.monotonic() < end, (self.folder / "out.txt").read_text()
                    time.sleep(0.2)
                yield
            finally:
                process.terminate()
                process.wait(120)


def picture(disease: str, number: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(draw_patient(PRESETS[disease], number)[0]).save(data, "JPEG", quality=92)
    return data.getvalue()


def fill(site: Path) -> None:
    """Patients of the site, its exemplar, and pictures to judge."""
    for name in ("images", "new-images"):
        (site / name).mkdir()
    with (site / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image_id", "patient_id", "diagnosis"))
        for number in range(6):
            (site / "images" / f"p{number}.jpg").write_bytes(picture("drawn-azure-lacunoma", number))
            table.writerow((f"p{number}", f"patient-{number}", "drawn-azure-lacunoma"))
    (site / "exemplar.jpg").write_bytes(picture("drawn-pearl-cicatroma", 0))
    for disease, label in (("drawn-pearl-cicatroma", "dermatofibroma"), ("drawn-azure-lacunoma", "other")):
        (site / "labelled" / label).mkdir(parents=True)
        for number in range(10, 16):
            (site / "labelled" / label / f"{number}.jpg").write_bytes(picture(disease, number))
            (site / "new-images" / f"{label}-{number}.jpg").write_bytes(picture(disease, number))


@pytest.mark.slow
@pytest.mark.enable_socket
def test_the_readme_works_as_it_stands(tmp_path: Path, release: Release) -> None:
    centre, site = Place(tmp_path / "centre"), Place(tmp_path / "site")
    at_centre, at_site = lines("centre"), lines("site")
    done: set[str] = set()

    def centre_runs(beginning: str) -> str:
        (line,) = [x for x in at_centre if x.startswith(beginning)]
        done.add(line)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port.append(probe.getsockname()[1])
        return centre.run(line.replace("8443", str(port[0])))

    port: list[int] = []
    centre_runs("sgps-server init")
    settings = centre.folder / "derm" / "federation.yaml"
    quick = {"quorum": "1", "wait_for": "1", "answer_after": "4", "deadline_after": "60"}
    settings.write_text(dump(parse(settings.read_text(), settings) | quick))
    fill(site.folder)

    site_lines = iter(at_site)
    site.run(next(site_lines))
    shutil.copy(site.folder / "north.csr", centre.folder)
    centre_runs("sgps-server sites approve")
    shutil.copy(centre.folder / "north.kit", site.folder)
    site.run(next(site_lines))
    (cohorts,) = [text for _, language, text in blocks(ROOT / "README.md") if language == "yaml"]
    file = site.folder / "site.yaml"
    file.write_text(dump(parse(file.read_text(), file) | parse(cohorts, "README.md")))

    (serve,) = [x for x in at_centre if x.startswith("sgps-server --config")]
    with centre.running(serve):
        done.add(serve)
        printed = {}
        for line in site_lines:
            printed[line.split()[1]] = site.run(line)
            if line.startswith("sgps-client inspect"):
                break
        centre_runs("sgps-server sites list")
        assert "north" in centre_runs("sgps-server releases list")
        centre_runs("sgps-server status")
    assert "of the gain" in centre_runs("sgps-server forecast")
    assert "epsilon 2.99" in printed["ledger"] or "entries" in printed["ledger"]
    for line in site_lines:
        site.run(line)
    assert (site.folder / "model").stat().st_mode & 0o777 == 0o700
    assert len((site.folder / "results.csv").read_text().splitlines()) == 13
    assert (site.folder / "evaluation").is_dir()
    assert done == set(at_centre), "every line for the centre was run"
