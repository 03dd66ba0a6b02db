"""What a browser sends: `multipart/form-data` (RFC 7578) within limits, in memory. Nothing of it is ever written to disk."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from starlette.requests import Request

from sgps.errors import InputError
from sgps.images import BYTES_LIMIT

REQUEST_LIMIT = 4 * BYTES_LIMIT  # bytes of everything that is dropped at once
PARTS_LIMIT = 250
FIELD_LIMIT = 20_000  # bytes of one typed field
_BOUNDARY = re.compile(r'multipart/form-data;\s*boundary=("?)([0-9A-Za-z\'()+_,./:=?-]{1,70})\1\s*', re.IGNORECASE)
_FIELD = re.compile(
    r'content-disposition:\s*form-data;\s*name="([a-z_]{1,40})"(?:;\s*filename="([^"]*)")?', re.IGNORECASE
)
_SHOWN = 100  # characters of a file's name


class TooLarge(InputError):
    """More than REQUEST_LIMIT."""


@dataclass(frozen=True)
class Upload:
    """name: the last part of the file's name, without control characters; it is shown and never used as a path."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Form:
    """fields: typed values. files: dropped pictures, by field, in the order sent."""

    fields: dict[str, str]
    files: dict[str, list[Upload]]

    def text(self, name: str) -> str:
        """A typed value without the space around it; empty where there is none."""
        return self.fields.get(name, "").strip()


async def read_form(request: Request) -> Form:
    """Raises TooLarge before more than REQUEST_LIMIT is held, InputError for anything that is no such form."""
    kind = _BOUNDARY.fullmatch(request.headers.get("content-type", ""))
    if kind is None:
        raise InputError("is not a form", where="request", do="use the page")
    stated = request.headers.get("content-length", "0")
    if len(stated) > 12 or not stated.isdecimal() or int(stated) > REQUEST_LIMIT:
        raise _too_large()
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > REQUEST_LIMIT:
            raise _too_large()
        body += chunk
    return parse(body, kind[2])


def parse(body: bytes | bytearray, boundary: str) -> Form:
    """The parts of a body. Raises InputError when it is cut off, holds too many parts or a field is too long."""
    mark = b"\r\n--" + boundary.encode("ascii")
    first, *rest = body.split(mark, PARTS_LIMIT)
    parts = [first.removeprefix(mark[2:]), *rest]
    if len(first) == len(parts[0]) or not parts[-1].startswith(b"--") or len(parts) > PARTS_LIMIT:
        raise InputError("is cut off or has too many parts", where="form", do=f"send at most {PARTS_LIMIT - 10} files")
    fields: dict[str, str] = {}
    files: dict[str, list[Upload]] = {}
    for part in parts[:-1]:
        head, sign, data = part.partition(b"\r\n\r\n")
        found = _FIELD.search(head.decode("utf-8", "replace"))
        if not sign or found is None:
            raise InputError("holds a part without a name", where="form", do="use the page")
        name, file = found[1], found[2]
        if file is None:
            if len(data) > FIELD_LIMIT:
                raise InputError(f"is longer than {FIELD_LIMIT:,} bytes", where=name, do="shorten it")
            fields[name] = data.decode("utf-8", "replace")
        elif file or data:  # a browser sends an empty file where none was chosen
            files.setdefault(name, []).append(Upload(_bare(file), bytes(data)))
    return Form(fields, files)


def _bare(name: str) -> str:
    last = PurePosixPath(name.replace("\\", "/")).name
    return "".join(c if c.isprintable() else "_" for c in last)[:_SHOWN] or "picture"


def _too_large() -> TooLarge:
    return TooLarge(f"is larger than {REQUEST_LIMIT:,} bytes", where="upload", do="send fewer pictures at once")
