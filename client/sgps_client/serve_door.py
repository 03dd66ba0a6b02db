"""Who may come in: this machine's own browser, with the address that was printed. Everybody else is refused before a byte is read.

A page on another site that resolves its name to 127.0.0.1 fails at the Host header; a form that it sends fails at Origin, at the
cookie (SameSite) and at the form's token. The cookie is bound to a random path, because browsers give cookies to every port of a host.
"""

import secrets
from dataclasses import dataclass, field
from hmac import compare_digest

from starlette.requests import Request

from sgps.errors import RefusedError

ADDRESS = "127.0.0.1"
COOKIE = "sgps"
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def _secret() -> str:
    return secrets.token_urlsafe(24)


@dataclass
class Door:
    """port: of the listening socket. token: opens once. room: first part of every path. key: value of the cookie. stamp: in forms."""

    port: int
    token: str | None = field(default_factory=_secret)
    room: str = field(default_factory=_secret)
    key: str = field(default_factory=_secret)
    stamp: str = field(default_factory=_secret)

    @property
    def address(self) -> str:
        """To print, once."""
        return f"http://{ADDRESS}:{self.port}/open?token={self.token}"

    def open(self, token: str) -> None:
        """Raises RefusedError unless this is the token and its first use."""
        if self.token is None or not _same(token, self.token):
            raise RefusedError("was used already, or is not the printed one", where="address", do="start again")
        self.token = None

    def check(self, request: Request) -> None:
        """Raises RefusedError for whatever did not come from the page that was opened with the token."""
        hosts = request.headers.getlist("host")
        names = {f"{ADDRESS}:{self.port}", f"localhost:{self.port}"}
        if len(hosts) != 1 or hosts[0] not in names:
            raise RefusedError("is not this machine's", where="Host", do=f"use http://{ADDRESS}:{self.port}")
        if request.method == "GET" and request.url.path == "/open":
            return
        _, room, *_ = (*request.url.path.split("/", 2), "", "")
        if not _same(room, self.room) or not _same(request.cookies.get(COOKIE, ""), self.key):
            raise RefusedError("was not opened with the printed address", where="page", do="open that address")
        origin = request.headers.get("origin", f"http://{hosts[0]}")
        if origin != f"http://{hosts[0]}" or request.headers.get("sec-fetch-site", "none") in (
            "cross-site",
            "same-site",
        ):
            raise RefusedError("comes from another page", where="request", do="use the page that was opened")

    def check_stamp(self, stamp: str) -> None:
        """Raises RefusedError for a form that this program did not write."""
        if not _same(stamp, self.stamp):
            raise RefusedError("was not written by this program", where="form", do="load the page again")


def _same(one: str, other: str) -> bool:
    return compare_digest(one.encode("utf-8", "replace"), other.encode())
