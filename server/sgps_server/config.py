"""federation.yaml, and where things lie in a federation folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from sgps.errors import InputError, StateError
from sgps.plan import Hex, SiteName
from sgps.settings import Settings, load
from sgps.wire import next_port

MOST_SITES = 400  # in one round: a release holds the statements of so many, however long
Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]


class Listen(Settings):
    """The address that the coordinator opens for rounds."""

    host: Annotated[str, Field(pattern=r"^[0-9A-Za-z._:%-]+$")]
    port: Annotated[int, Field(ge=1, le=65535, examples=[8443])]


class Episodes(Settings):
    """What an `episodes` round trains. groups: names of the generator's parameters (`sgps.subset`), in groups that are clipped apart;
    clips: one L2 bound for all, or one for each group. steps: noised sums at a site in one round. sampling: rate at which each
    patient enters a step; 1 is all of them, exact and cheapest in privacy. denominator: patients of a site times sampling, a public
    number that all sites' limits name. rate: of the local steps."""

    groups: Annotated[tuple[tuple[str, ...], ...], Field(min_length=1, max_length=100)]
    clips: Annotated[tuple[Annotated[float, Field(gt=0, le=100)], ...], Field(min_length=1, max_length=100)]
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    sampling: Annotated[float, Field(gt=0, le=1)] = 1.0
    denominator: Annotated[int, Field(ge=1, le=60_000)] = 64
    rate: Annotated[float, Field(gt=0, le=1000)] = 1.0

    @model_validator(mode="after")
    def _fits(self) -> "Episodes":
        if len(self.clips) not in (1, len(self.groups)):
            raise ValueError("clips: one for all groups, or one for each")
        return self


class ReleasesPort(Settings):
    """The port of the release service, on the host of `listen`, and where sites find it."""

    port: Annotated[int, Field(ge=1, le=65535, examples=[8444])]
    url: Annotated[str, Field(pattern=r"^https://[^/\s@]+$", examples=["https://coordinator.example.org:8444"])]


class Federation(Settings):
    """The content of federation.yaml.

    releases: without it, the port after `listen.port`, and the address whose port is the one after that of `url`.
    epsilon, delta: what one round costs a patient; the noise multiplier follows from them. kind: of the rounds that follow; it may
    change between two runs. centre_sites: where cameras differ; every `rows` round follows a `site_mean` round, and epsilon is the
    price of both. episodes: what rounds of that kind train. quorum: least number of replies that
    make a round. wait_for: sites to be online before a round starts; after `patience` seconds `quorum` sites are enough, and a site
    lost within a round is waited for as long. answer_after, deadline_after: seconds from the start of an attempt. attempts: of one
    round in one run of the program. most_patients: a reply that this many patients could hardly make is refused. code: hashes of
    site code that are accepted besides the coordinator's own installation.
    """

    name: SiteName
    url: Annotated[str, Field(pattern=r"^https://[^/\s@]+$", examples=["https://coordinator.example.org:8443"])]
    listen: Listen
    releases: ReleasesPort | None = None
    rounds: Annotated[int, Field(ge=1, le=10_000, examples=[1])]
    kind: Literal["rows", "episodes"] = "rows"
    centre_sites: bool = False
    episodes: Episodes | None = None
    epsilon: Annotated[float, Field(gt=0, le=100, examples=["3.0"])]
    delta: Annotated[float, Field(gt=0, lt=1, examples=["1.0e-5"])]
    quorum: Annotated[int, Field(ge=1, le=MOST_SITES, examples=[2])]
    wait_for: Annotated[int, Field(ge=1, le=MOST_SITES)] | None = None
    patience: Seconds = 60.0
    answer_after: Annotated[float, Field(gt=0, le=7 * 86400)] = 60.0  # a site waits for no more than that
    deadline_after: Seconds = 600.0
    attempts: Annotated[int, Field(ge=1, le=1000)] = 5
    most_patients: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    code: Annotated[tuple[Hex, ...], Field(max_length=99)] = ()

    @model_validator(mode="after")
    def _fits(self) -> "Federation":
        if self.answer_after >= self.deadline_after:
            raise ValueError("answer_after must be less than deadline_after")
        if self.wait_for is not None and self.wait_for < self.quorum:
            raise ValueError("wait_for must not be less than quorum")
        if self.kind == "episodes" and (self.episodes is None or self.centre_sites):
            raise ValueError("kind: episodes needs `episodes:` and no `centre_sites`, which belongs to rows")
        host_of(self.url)
        if self.releases is None and self.listen.port == 65535:
            raise ValueError("no port is left after listen.port: write `releases:` with one")
        host_of(self.releases_url)
        if self.releases_listen.port == self.listen.port:
            raise ValueError("releases.port must be another one than listen.port")
        return self

    @property
    def releases_listen(self) -> Listen:
        """The address that the release service opens."""
        return Listen(host=self.listen.host, port=self.releases.port if self.releases else self.listen.port + 1)

    @property
    def releases_url(self) -> str:
        """Where sites find the release service."""
        return self.releases.url if self.releases else next_port(self.url)

    @property
    def wanted(self) -> int:
        """Sites that a round waits for before it starts."""
        return self.wait_for or self.quorum


def host_of(url: str) -> str:
    """Host name or address of an https address. Raises ValueError when it has none, or a bad port or letters that no certificate holds."""
    parts = urlsplit(url)
    if not parts.hostname or parts.port == 0:
        raise ValueError("url must look like https://host:8443")
    if not parts.hostname.isascii():
        raise ValueError("url must name its host in ASCII letters, as xn--...")
    return parts.hostname


@dataclass(frozen=True)
class Folder:
    """A federation folder. Names of what lies in it; nothing is opened here."""

    root: Path

    @classmethod
    def of(cls, config: Path) -> "Folder":
        """The folder that holds this federation.yaml. Raises InputError when there is none."""
        if not config.is_file():
            raise InputError(
                "no such file", where=config, do="make a federation with `sgps-server init` or name one with --config"
            )
        if config.name != "federation.yaml":
            raise InputError("is not a federation.yaml", where=config, do="each federation folder has one of that name")
        return cls(config.resolve().parent)

    @property
    def config(self) -> Path:
        return self.root / "federation.yaml"

    @property
    def ca(self) -> Path:
        return self.root / "ca"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def registry(self) -> Path:
        return self.root / "sites" / "registry.json"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def audit(self) -> Path:
        return self.state / "audit.jsonl"

    def settings(self) -> Federation:
        return load(self.config, Federation)


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file. Raises StateError when another process holds it, unless `wait`."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise StateError(
                "another process runs this federation", where=path.parent.parent, do="stop it first"
            ) from error
        yield
