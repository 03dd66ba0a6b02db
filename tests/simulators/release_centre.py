"""A coordinator's release service in this process, and sites that are enrolled there, for tests of both ends."""

import time
from pathlib import Path
from typing import Any

import tiny_release
from federation import free_port

from sgps.files import sha256_file
from sgps.release import MANIFEST, Release
from sgps.settings import dump, parse
from sgps.signing import load_private
from sgps_client import enrolment as joining
from sgps_client.config import Site
from sgps_server import enrolment
from sgps_server.audit import Audit, Heads
from sgps_server.config import Folder, Listen
from sgps_server.peers import Porter
from sgps_server.registry import Registry
from sgps_server.release_port import ReleasePort, caller
from sgps_server.release_service import ReleaseService


class Centre:
    """host: by which sites know it; it listens on 127.0.0.1. alive: what the health service is told of the rounds."""

    def __init__(self, work: Path, host: str = "127.0.0.1", release: Path | None = None) -> None:
        self.work, self.port, self.alive = work, free_port(), True
        source = release or tiny_release.make(work / "release")
        self.folder = Folder(work / "centre")
        first = Release.open(source, sha256=sha256_file(source / MANIFEST))
        enrolment.init(self.folder.root, "derm", f"https://{host}:{free_port()}", first, "127.0.0.1")
        settings = parse(self.folder.config.read_text(), self.folder.config)
        settings["releases"] = {"port": self.port, "url": f"https://{host}:{self.port}"}
        self.folder.config.write_text(dump(settings))
        self.reported: list[tuple[str, dict[str, Any]]] = []
        self.status = {
            "federation": "derm", "fingerprint": "0" * 64, "state": "waiting", "round": 0, "rounds": 1, "sites": {"north": "online"},
            "waiting_for": ["north"],
        }  # fmt: skip
        self.server: ReleasePort | None = None

    def start(self) -> None:
        key = load_private(self.folder.keys / "plan.key")
        self.porter = Porter(Registry(self.folder.registry), Audit(self.folder.audit), self.report)
        service = ReleaseService(
            self.folder.releases, Heads(self.folder.audit), key, lambda: self.status,
            may=lambda context: not self.porter.objection(caller(context)),
            fetched=lambda context, name: self.report("fetched", site=caller(context).site, release=name),  # type: ignore[union-attr]
        )  # fmt: skip
        listen = Listen(host="127.0.0.1", port=self.port)
        self.server = ReleasePort(service, self.porter, self.folder, listen, lambda: self.alive)

    def report(self, event: str, **fields: Any) -> None:
        self.reported.append((event, fields))

    def refusals(self) -> list[str]:
        return [str(fields["why"]) for event, fields in self.reported if event == "refused"]

    def site(self, name: str) -> Site:
        """An enrolled receiving site."""
        folder = self.work / name
        csr = joining.request(folder, name)
        enrolment.approve(self.folder, enrolment.read_request(csr), folder / "site.kit", "receive")
        site = Site.load(joining.install(folder, folder / "site.kit").settings)
        self.status["fingerprint"] = site.config.federation.fingerprint
        return site

    def close(self) -> None:
        if self.server is not None:
            self.server.close()


def wait(what: Any, seconds: float = 10) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            raise AssertionError("timed out")
        time.sleep(0.02)
    return found
