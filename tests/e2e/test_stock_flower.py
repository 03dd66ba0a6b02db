"""deploy/flower-app on a stock Flower federation: a SuperLink and SuperNodes as they come, started with `flwr run`."""

import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1] / "simulators")]
import site_bench
from federation import ROOT, environment, free_port
from safetensors.numpy import load_file

from bench.stock import Processes
from sgps.files import sha256_file
from sgps.release import MANIFEST, MEMORY, Release
from sgps.settings import dump
from sgps.signing import load_public
from sgps_client import enrolment as joining
from sgps_client.public import PUBLIC
from sgps_server import enrolment
from sgps_server.config import Folder
from sgps_server.registry import Registry, Site

APP = ROOT / "deploy" / "flower-app"


class Stock(Processes):
    """A federation folder, and processes that end with the test."""

    def __init__(self, work: Path) -> None:
        super().__init__(work, environment())
        self.port = free_port()
        source = site_bench.make_release(work / "source", None)
        enrolment.init(
            work / "centre",
            "derm",
            "https://localhost:8443",
            Release.open(source, sha256=sha256_file(source / MANIFEST)),
        )
        self.folder = Folder(work / "centre")
        settings = self.folder.settings().model_dump(mode="json", exclude_none=True)
        self.folder.config.write_text(dump({**settings, "answer_after": 120.0, "deadline_after": 240.0}))
        self.sites = [self.site(name, place) for place, name in enumerate(("north", "south"))]
        self.connection(f"127.0.0.1:{self.port}", "insecure = true")

    @property
    def federation(self) -> str:
        """Of a run's settings."""
        return f'federation="{self.folder.config}"'

    public = 'public="drawn by a test"'

    def site(self, name: str, place: int) -> Path:
        """Enrolled by its key alone; not declared public yet."""
        folder = self.work / name
        request = enrolment.read_request(joining.request(folder, name))
        key = enrolment.key_pem(request.key)
        Registry(self.folder.registry).add(name, Site(key=key, role="contribute", approved=0, expires=2**40))
        shutil.copyfile(self.folder.keys / "plan.pub", folder / "keys" / "plan.pub")
        release = self.folder.releases / "0000"
        mark = Release.open(release, key=load_public(self.folder.keys / "plan.pub")).manifest.fingerprint
        content: dict[str, Any] = site_bench.settings(str(mark), site=name, releases=str(self.folder.releases))
        (folder / "site.yaml").write_text(dump(content))
        site_bench.draw_patients(folder, first=100 * place)
        return folder / "site.yaml"

    def order(self, done: Callable[[str], bool], *changes: str, tries: int = 3) -> None:
        """Runs with these settings, each followed to its end, until `done` of their logs: nodes may come in late, lines get lost."""
        log = ""
        for _ in range(tries):
            found = self.flwr("run", APP, "stock", "--run-config", " ".join(changes))
            if (run := re.search(r"started run (\d+)", found)) is None:
                raise AssertionError(found)
            log += " ".join(self.flwr("log", run[1], "stock").split())
            if done(log):
                return
        raise AssertionError(f"{log}\n{self.said('link', 'north', 'south')[-6000:]}")

    def said(self, *homes: str) -> str:
        files = [self.work / f"{home}.log" for home in homes]
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def listen(self, seconds: float = 120) -> None:
        """Until the SuperLink takes calls."""
        end = time.monotonic() + seconds
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[Stock]:
    found = Stock(tmp_path)
    try:
        found.start("flower-superlink", "link", "--insecure", "--host", "127.0.0.1", "--port", found.port)
        found.listen()
        yield found
    finally:
        found.close()


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_run_that_states_no_licence_is_refused_with_the_reason(stock: Stock) -> None:
    stock.order(lambda log: "does not say that all pictures are public" in log, stock.federation)


@pytest.mark.slow
@pytest.mark.enable_socket
def test_stock_supernodes_pool_public_pictures_and_refuse_any_others(stock: Stock) -> None:
    for file in stock.sites:
        stock.start(
            "flower-supernode", file.parent.name, "--insecure", "--superlink", f"127.0.0.1:{stock.port}", "--port", free_port(),
            "--node-config", f'site="{file}"',
        )  # fmt: skip
    words = "nothing says that these pictures are public"
    stock.order(lambda _: all(words in stock.said(f.parent.name) for f in stock.sites), stock.federation, stock.public)
    assert not (stock.folder.state / MEMORY).exists()
    for file in stock.sites:
        (file.parent / PUBLIC).write_text(dump({"licence": "CC0-1.0", "source": "numbers of a test"}))
    stock.order(lambda _: (stock.folder.state / MEMORY).exists(), stock.federation, stock.public)
    assert load_file(stock.folder.state / MEMORY)["memory.count"].any()
