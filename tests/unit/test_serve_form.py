"""What a browser sends to the clinician's page: bytes arrive as sent, and nothing else gets in; a fault is told without its message."""

import asyncio
from pathlib import Path

import httpx
import pytest

from sgps.errors import InputError
from sgps.release import Release
from sgps_client.serve_app import create
from sgps_client.serve_desk import Desk
from sgps_client.serve_door import COOKIE, Door
from sgps_client.serve_form import FIELD_LIMIT, PARTS_LIMIT, parse


def part(name: str, data: bytes, file: str | None = None) -> bytes:
    also = f'; filename="{file}"' if file is not None else ""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{also}\r\n\r\n'.encode() + data + b"\r\n"


def test_bytes_arrive_as_sent() -> None:
    data = bytes(range(256)) + b"\r\n--a\r\n\r\n--\r\n"
    form = parse(part("x", b" caf\xc3\xa9 ") + part("f", data, "a.png") + part("f", b"", "") + b"--b--\r\n", "b")
    assert form.text("x") == "café" and [u.data for u in form.files["f"]] == [data]


@pytest.mark.parametrize(
    ("sent", "kept"), [("../../etc/passwd", "passwd"), ("C:\\x\\y.png", "y.png"), ("a\x00\x1b.png", "a__.png")]
)
def test_file_names_hold_no_path(sent: str, kept: str) -> None:
    assert parse(part("f", b"1", sent) + b"--b--", "b").files["f"][0].name == kept


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        part("x", b"1"),
        b"junk" + part("x", b"1") + b"--b--",
        b"--b\r\n\r\nx\r\n--b--",
        part("x", b"1") * PARTS_LIMIT + b"--b--",
        part("x", b"1" * (FIELD_LIMIT + 1)) + b"--b--",
        part("../x", b"") + b"--b--",
    ],
)
def test_bad_forms(body: bytes) -> None:
    with pytest.raises(InputError):
        parse(body, "b")


class Broken(Desk):
    """A fault of the program while it holds a patient's picture."""

    def forget(self) -> None:
        raise KeyError("jane-doe.png")


def test_a_fault_is_told_by_its_place_alone(release: Release, tmp_path: Path) -> None:
    said: list[str] = []
    door = Door(8000)
    app = create(Broken(release, tmp_path, 0.1), door, said.append)

    async def forget() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as browser:
            browser.cookies.set(COOKIE, door.key)
            return await browser.post(f"/{door.room}/forget", files={"stamp": (None, door.stamp)})

    answer = asyncio.run(forget())
    assert answer.status_code == 500 and "jane" not in answer.text and "content-security-policy" in answer.headers
    assert len(said) == 1 and said[0].startswith("KeyError at test_serve_form.py:")
