"""The coordinator as seen from a site: one port, mutual TLS 1.3, our own GETs. Flower's calls are in `flower_link`."""

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Annotated, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sgps.errors import ConfigError, InputError, NetworkError, SgpsError
from sgps.plan import Hex
from sgps.release import FILES, MANIFEST, SIGNATURE
from sgps_client.config import Site

JSON_LIMIT = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
ReleaseName = Annotated[str, Field(pattern=r"^[0-9a-z][0-9a-z-]{0,63}$")]


class Status(BaseModel):
    """What the coordinator says of itself. time: its clock, seconds since the epoch. Keys of later versions are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    federation: str
    fingerprint: Hex
    state: Literal["waiting", "running", "done"]
    round: int
    rounds: int
    release: str | None = None
    sites: Mapping[str, str] = {}
    waiting_for: tuple[str, ...] = ()
    time: float


class Latest(BaseModel):
    """Name of the newest release and SHA-256 of its manifest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: ReleaseName
    sha256: Hex


Model = TypeVar("Model", Status, Latest)


def tls_context(site: Site) -> ssl.SSLContext:
    """TLS 1.3 with the site's certificate and the federation's CA, nobody else's. Raises ConfigError when a file is missing."""
    for path in (site.ca, site.certificate, site.tls_key):
        if not path.is_file():
            raise ConfigError(
                "is missing", where=path, do=f"sgps-client enroll {site.name}, then enroll --kit {site.name}.kit"
            )
    try:
        context = ssl.create_default_context(cafile=str(site.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(site.certificate, site.tls_key)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"key and certificates do not fit together: {error}", where=site.keys, do="enroll again"
        ) from error
    return context


def explain(error: Exception, url: str) -> NetworkError:
    """A network error as one line that names the address, the cause and the next step."""
    text, do = (
        " ".join(str(error).split()) or type(error).__name__,
        "`sgps-client check` looks for the cause",
    )
    if isinstance(error, httpx.TimeoutException):
        text = "no answer in time"
    elif isinstance(error, httpx.ProxyError):
        text = f"the proxy refused: {text}"
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        text, do = (
            "the server is not the one that the kit names, or a proxy opens TLS",
            "ask the coordinator; exempt it from inspection",
        )
    elif "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        text = "the server does not speak TLS there: check the port"
    elif any(word in text.upper() for word in ("ALERT", "CERTIFICATE_REQUIRED")):
        text = f"the coordinator does not take this site's certificate ({text})"
    elif isinstance(error, httpx.HTTPStatusError):
        text = f"HTTP {error.response.status_code}"
    return NetworkError(text, where=url, do=do)


class Coordinator:
    """GETs of one site. Every method raises NetworkError when the coordinator cannot be reached or answers nonsense."""

    def __init__(self, site: Site) -> None:
        self.url = site.config.federation.url.rstrip("/")
        self._client = httpx.Client(verify=tls_context(site), timeout=TIMEOUT, follow_redirects=False)

    def status(self) -> Status:
        return self._json("/sgps/status", Status)

    def latest(self) -> Latest:
        return self._json("/sgps/releases/latest", Latest)

    def file(self, release: str, name: str, limit: int) -> bytes:
        """Bytes of one file of a release, at most `limit`."""
        if name not in (*FILES, MANIFEST, SIGNATURE):
            raise InputError("is not a file of a release", where=name)
        with self._get(f"/sgps/releases/{release}/{name}") as response:
            return self._body(response, limit)

    def _json(self, path: str, model: type[Model]) -> Model:
        with self._get(path) as response:
            body = self._body(response, JSON_LIMIT)
        try:
            return model.model_validate(json.loads(body))
        except (ValueError, RecursionError) as error:
            what = (
                "; ".join(e["msg"] for e in error.errors()) if isinstance(error, ValidationError) else "it is not JSON"
            )
            raise NetworkError(f"an answer of another kind than expected: {what}", where=self.url + path) from error

    @contextmanager
    def _get(self, path: str) -> Iterator[httpx.Response]:
        try:
            with self._client.stream("GET", self.url + path, headers={"accept-encoding": "identity"}) as response:
                response.raise_for_status()
                yield response
        except SgpsError:
            raise
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise explain(error, self.url + path) from error

    def _body(self, response: httpx.Response, limit: int) -> bytes:
        body = bytearray()
        for part in response.iter_raw():
            body += part
            if len(body) > limit:
                raise NetworkError(f"more than {limit:,} bytes", where=response.url)
        return bytes(body)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
