"""How a site reaches the coordinator: its TLS identity, the proxy, and what is said when a connection fails."""

import ssl
import urllib.request

import httpx

from sgps.errors import ConfigError, NetworkError
from sgps_client.config import Site

TIMEOUT = 30.0  # seconds without an answer


def tls_context(site: Site) -> ssl.SSLContext:
    """TLS 1.3 with the site's certificate and the federation's CA, nobody else's. Raises ConfigError when a file is missing, or
    key and certificates do not fit together."""
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


def proxy_for(host: str) -> str | None:
    """The proxy on the way to this host, as the environment (HTTPS_PROXY, NO_PROXY, in either case) names it."""
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get("https")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def shake_hands(url: str, context: ssl.SSLContext) -> None:
    """Any answer over this address shows that TLS works both ways. Raises NetworkError when there is none."""
    try:
        httpx.get(url, verify=context, timeout=TIMEOUT)
    except (httpx.HTTPError, OSError) as error:
        raise explain(error, url) from error


def explain(error: Exception, url: str) -> NetworkError:
    """A network error as one line that names the address, the cause and the next step."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, httpx.TimeoutException):
        text = "no answer in time"
    elif isinstance(error, httpx.ProxyError):
        text = f"the proxy refused: {text}"
    elif isinstance(error, httpx.HTTPStatusError):
        text = f"HTTP {error.response.status_code}"
    what, do = told(text)
    return NetworkError(what, where=url, do=do)


def told(text: str) -> tuple[str, str]:
    """What a library says of a broken connection -> what is wrong, what to do."""
    if "CERTIFICATE_VERIFY_FAILED" in text or "Hostname Verification Check failed" in text:
        return (
            "the server is not the one that the kit names, or a proxy opens TLS",
            "ask the coordinator; exempt it from inspection",
        )
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        text = "the server does not speak TLS there: check the port"
    elif any(word in text.upper() for word in ("ALERT", "CERTIFICATE_REQUIRED")):
        text = f"the coordinator does not take this site's certificate ({text})"
    return text, "`sgps-client check` looks for the cause"
