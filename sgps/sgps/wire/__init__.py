"""Messages between sites and the coordinator's release service. Messages only: who calls and who serves is not known here."""

from urllib.parse import urlsplit

TLS_13 = {"GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES256-GCM-SHA384"}
"""Environment of a gRPC program, set before grpc is imported. gRPC for Python has no switch for the least version of TLS. The suite
counts for TLS 1.2 only and wants an RSA certificate; a federation's certificates are on P-384, so nothing but TLS 1.3 is left."""


def next_port(url: str) -> str:
    """Where the release service is found when nobody says: https://host:port -> the same host, the port after it."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    return f"https://{host}:{(parts.port or 443) + 1}"
