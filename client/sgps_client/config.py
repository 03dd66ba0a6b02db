"""site.yaml: what a hospital decides for itself. Privacy has no default: a budget is written for every cohort.

Paths are relative to the folder of site.yaml.
"""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, ValidationError, field_validator, model_validator

from sgps.errors import InputError, SgpsError, SignatureError
from sgps.files import read_limited
from sgps.plan import ClassId, Hex, KindName, SiteName
from sgps.settings import LIMIT, Settings, load, parse
from sgps.signing import fingerprint, load_public
from sgps.wire import next_port

FILE_NAME = "site.yaml"
Url = Annotated[str, Field(pattern=r"^https://[^/\s]+$", examples=["https://coordinator.example.org:8443"])]


class Budget(Settings):
    """What one cohort may spend in all, over all federations and for ever: (epsilon, delta) under zero-out."""

    epsilon: Annotated[float, Field(gt=0, le=20, examples=["3.0"])]
    delta: Annotated[float, Field(gt=0, lt=0.01, examples=["1.0e-5"])]


class Cohort(Settings):
    """A closed list of patients that share one budget.

    images: folder of class folders, zip of class folders, or folder or zip of pictures when `table` is given. table: CSV with one
    line for each image. unit_column: the column that names the patient, or `file name` where each image counts as a patient.
    """

    name: Annotated[str, Field(max_length=80, examples=["first"])]
    images: Annotated[str, Field(examples=["images"])]
    table: str | None = None
    # It stands in the statement, which allows no other text.
    unit_column: Annotated[str, Field(pattern=r"^\w[\w .:-]{0,63}$", examples=["patient_id"])]
    image_column: str | None = None
    label_column: str | None = None
    budget: Annotated[Budget, Field(examples=["{epsilon: 3.0, delta: 1.0e-5}"])]


class KindLimits(Settings):
    """Hard limits for one kind of plan; a plan outside is refused before a record is read. Units: `sgps_privacy.terms.Terms`."""

    least_sigma: Annotated[float, Field(ge=0.3)] = 0.6
    most_clip: Annotated[float, Field(gt=0, le=1.0)] = 1.0
    most_steps: Annotated[int, Field(ge=1, le=1)] = 1
    most_q: Annotated[float, Field(ge=1.0, le=1.0)] = 1.0
    denominator: Annotated[int, Field(ge=1, le=1)] = 1


class SiteMeanLimits(KindLimits):
    """A fifth of the budget's mu^2 goes into it, so its noise is more than twice that of the `rows` that follow."""

    least_sigma: Annotated[float, Field(ge=0.3)] = 1.2


class EpisodesLimits(KindLimits):
    """denominator: public number of patients for each step, the same at all sites. most_numbers: in one noised sum. parameters: of
    the generator that may be trained; all that the release allows where none are named."""

    least_sigma: Annotated[float, Field(ge=0.3)] = 2.0
    most_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    most_q: Annotated[float, Field(gt=0, le=1.0)] = 1.0
    denominator: Annotated[int, Field(ge=1, le=60_000)] = 64
    most_numbers: Annotated[int, Field(ge=1, le=1_000_000)] = 5000
    parameters: tuple[str, ...] = ()


class SiteLimits(KindLimits):
    """kinds: that this site takes part in. The keys beside it are those of `rows`."""

    kinds: tuple[KindName, ...] = ("rows",)
    site_mean: SiteMeanLimits = SiteMeanLimits()
    episodes: EpisodesLimits = EpisodesLimits()

    def of(self, kind: KindName) -> KindLimits:
        return {"rows": self, "site_mean": self.site_mean, "episodes": self.episodes}[kind]


class FederationAddress(Settings):
    """url: of the coordinator. releases_url: of its release service; without it, the port after that of `url`. fingerprint: hex
    SHA-256 of the key that signs plans and releases.
    """

    name: str
    url: Url
    releases_url: Url | None = None
    fingerprint: Hex


class SiteConfig(Settings):
    """The content of site.yaml.

    slots: public number of record slots; patients beyond it do not fit. images_per_patient, seconds_per_patient: public caps; of
    a patient with more images the first are taken, one that takes longer is the zero record. classes: local label -> catalogue id, or
    `none` to leave its pictures out.
    approve: `manual` puts every plan that passes the rules to a person before a record is read. encoders: the folder of the text
    encoder, for releases that do not read texts with the installed one. device: where classifiers are synthesized; rounds are always
    computed on the processor.
    """

    site: Annotated[SiteName, Field(examples=["north"])]
    role: Annotated[Literal["contribute", "receive"], Field(examples=["contribute"])]
    federation: FederationAddress
    keys: str = "keys"
    state: str = "state"
    releases: str = "releases"
    slots: Annotated[int | None, Field(ge=1, le=60_000, examples=[200])] = None
    images_per_patient: Annotated[int, Field(ge=1, le=1000, examples=[20])] = 20
    seconds_per_patient: Annotated[float, Field(gt=0, le=3600, examples=[30])] = 30.0
    limits: SiteLimits = SiteLimits()
    approve: Literal["automatic", "manual"] = "automatic"
    encoders: Annotated[
        str | None, Field(pattern=r"^(open_clip|transformers):.", examples=["open_clip:encoders/biomedclip"])
    ] = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    classes: dict[str, ClassId] = {}
    cohorts: tuple[Cohort, ...] = ()

    @field_validator("classes")
    @classmethod
    def _composed(cls, classes: dict[str, str]) -> dict[str, str]:
        """As labels are read (`data.table.composed`)."""
        return {unicodedata.normalize("NFC", label): entry for label, entry in classes.items()}

    @model_validator(mode="after")
    def _complete(self) -> "SiteConfig":
        if self.role == "contribute":
            if self.slots is None:
                raise ValueError("slots: a contributing site states its public number of record slots")
            if not self.cohorts:
                raise ValueError(
                    "cohorts: a contributing site lists at least one cohort with a budget; else use role: receive"
                )
        names = [cohort.name for cohort in self.cohorts]
        if len(set(names)) != len(names):
            raise ValueError("cohorts: a name appears twice")
        return self


def _leave_out(data: dict[str, Any], places: set[tuple[int | str, ...]]) -> None:
    """Takes the keys at fault out of unchecked settings; of cohorts only those at fault."""
    cohorts = data.get("cohorts")
    faulty = {place[1] for place in places if place[:1] == ("cohorts",) and len(place) > 1}
    if faulty and isinstance(cohorts, list):
        data["cohorts"] = [cohort for number, cohort in enumerate(cohorts) if number not in faulty]
    for place in places:
        if place and (place[0] != "cohorts" or not faulty):
            data.pop(str(place[0]), None)
    if () in places or data.get("role") not in ("contribute", "receive"):  # incomplete for a contributing site
        data.setdefault("slots", 60_000)
        data["role"] = "contribute" if data.get("cohorts") and data.get("role") != "receive" else "receive"


@dataclass(frozen=True)
class Site:
    """A site folder: the settings and where everything lies."""

    config: SiteConfig
    file: Path

    @classmethod
    def load(cls, file: Path) -> "Site":
        """Raises ConfigError that names every key that does not fit, InputError when the file is missing."""
        if not file.exists():
            raise InputError(
                "no such file",
                where=file,
                do="go to the site's folder or name it with --config; `sgps-client enroll` makes one",
            )
        return cls(load(file, SiteConfig), file.resolve())

    @classmethod
    def salvaged(cls, file: Path) -> "Site | None":
        """What is left of settings with faults, to look further at; None when too little is left. For `check` only."""
        try:
            data = parse(read_limited(file, LIMIT).decode("utf-8"), file)
        except (SgpsError, UnicodeDecodeError):
            return None
        for _ in range(3):  # what was hidden by the first faults, and what their removal makes incomplete
            try:
                return cls(SiteConfig.model_validate(data), file.resolve())
            except ValidationError as error:
                if not isinstance(data, dict):
                    return None
                _leave_out(data, {error["loc"][:2] for error in error.errors()})
        return None

    @property
    def name(self) -> str:
        return self.config.site

    @property
    def folder(self) -> Path:
        return self.file.parent

    @property
    def keys(self) -> Path:
        return self.folder / self.config.keys

    @property
    def state(self) -> Path:
        return self.folder / self.config.state

    @property
    def releases(self) -> Path:
        return self.folder / self.config.releases

    @property
    def releases_url(self) -> str:
        """Where the coordinator's release service is."""
        federation = self.config.federation
        return (federation.releases_url or next_port(federation.url)).rstrip("/")

    @property
    def log(self) -> Path:
        return self.folder / "log" / "client.jsonl"

    @property
    def tls_key(self) -> Path:
        return self.keys / "site.key"

    @property
    def certificate(self) -> Path:
        return self.keys / "site.crt"

    @property
    def ca(self) -> Path:
        return self.keys / "ca.crt"

    @property
    def plan_key(self) -> Path:
        return self.keys / "plan.pub"

    def pinned_key(self) -> Ed25519PublicKey:
        """The key that signs plans and releases. Raises SignatureError when the file does not hold the one that site.yaml names:
        a plan's own word for its federation is no proof."""
        key = load_public(self.plan_key)
        if fingerprint(key) != self.config.federation.fingerprint:
            raise SignatureError(
                "is not the key of the federation in the settings", where=self.plan_key, do="install the kit again"
            )
        return key
