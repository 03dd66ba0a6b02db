"""What the coordinator gives a site at enrolment. It holds no secret: the site's private key never left the site."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from sgps.errors import InputError
from sgps.files import read_limited
from sgps.plan import Hex, SiteName
from sgps.settings import Settings, problems

LIMIT = 1 << 20  # bytes


class Kit(Settings):
    """One JSON file. Certificates and keys are PEM text.

    fingerprint: of the plan key, which signs plans and releases. certificate: of the site's own TLS key, whose common name is the
    site. site_yaml: a template that the site completes.
    """

    format: Literal["sgps-kit-1"] = "sgps-kit-1"
    site: SiteName
    federation: str
    fingerprint: Hex
    url: Annotated[str, Field(pattern=r"^https://[^/\s]+$")]
    plan_key: str
    ca: str
    certificate: str
    site_yaml: str

    @classmethod
    def read(cls, path: Path) -> "Kit":
        """Raises InputError when the file is not a kit."""
        try:
            return cls.model_validate_json(read_limited(path, LIMIT))
        except ValidationError as error:
            raise InputError(
                f"is not a kit: {'; '.join(problems(error))}", where=path, do="ask the coordinator for it again"
            ) from error
