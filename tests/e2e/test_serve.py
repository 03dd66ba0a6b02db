"""The clinician's page as a browser meets it: the whole way from a picture to a saved classifier, and everybody who must not come in."""

import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from sgps.classifier import Classifier
from sgps.draw import draw_patient, draw_profile
from sgps_client.serve_form import REQUEST_LIMIT

ROOT = Path(__file__).resolve().parents[2]
FORM = "multipart/form-data; boundary=b"
SECRET = "Jane-Doe-1950"


def lesion(seed: int, profile: int = 3) -> bytes:
    (pixels,) = draw_patient(draw_profile(profile), seed, views=1, size=96)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@dataclass
class Page:
    """The running program, and a browser that opened its address."""

    process: "subprocess.Popen[str]"
    address: str
    models: Path
    log: Path
    browser: httpx.Client
    room: str

    @property
    def base(self) -> str:
        return "{0.scheme}://{0.netloc}".format(urlsplit(self.address))

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 0

    def stamp(self) -> str:
        return re.findall(r'name="stamp" value="([^"]+)"', self.browser.get(self.room).text)[0]

    def post(
        self, step: str, files: list[tuple[str, tuple[str, bytes]]] | None = None, **fields: str
    ) -> httpx.Response:
        form = {"stamp": self.stamp(), **fields}
        parts = [(name, (None, value.encode())) for name, value in form.items()]
        return self.browser.post(self.room + step, files=[*parts, *(files or [])])  # type: ignore[list-item]

    def make(self, disease: str = "dermatofibroma", name: str = "one.png", **fields: str) -> httpx.Response:
        return self.post("make", [("exemplar", (name, lesion(0)))], disease=disease, **fields)

    def raw(self, request: str) -> str:
        """The answer to bytes that no browser would send."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as peer:
            peer.sendall(request.encode())
            return peer.recv(4096).decode("utf-8", "replace")

    def cookie(self) -> str:
        return "; ".join(f"{c.name}={c.value}" for c in self.browser.cookies.jar)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("serve")
    paths = os.pathsep.join(str(ROOT / p) for p in ("sgps", "privacy", "client"))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sgps_client.cli", "serve", "--models", str(folder / "models"), "--json"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            address = json.loads(process.stdout.readline())["address"]
            browser = httpx.Client(follow_redirects=True, timeout=120, trust_env=False)
            yield Page(process, address, folder / "models", folder / "log", browser, "")
            browser.close()
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)


@pytest.fixture
def page(running: Page, release: object) -> Page:
    """Opened, with nothing on the desk. The token opens once, so all tests share one browser."""
    if not running.room:
        answer = running.browser.get(running.address)
        assert answer.status_code == 200, answer.text
        running.room = running.base + answer.headers["refresh"].removeprefix("0; url=")
    running.post("forget")
    return running


pytestmark = [pytest.mark.enable_socket, pytest.mark.slow]


def test_from_a_picture_to_a_saved_classifier(page: Page) -> None:
    made = page.make()
    assert made.status_code == 200 and "Classifier for dermatofibroma" in made.text
    for words in (
        "it is patient data",
        "Rivals",
        "False alarms",
        "sensitivity of the threshold is unknown",
        "catalogue: df",
    ):
        assert words in made.text
    took = re.findall(r"synthesized in\s+([0-9.]+) s without training", made.text)  # the page, and its card
    assert len(took) == 2 and took[0] == took[1] and "made in" not in made.text
    pictures = [("pictures", (f"{i}.png", lesion(i, 3 + i))) for i in range(3)]
    asked = page.post("ask", [*pictures, ("pictures", ("notes.txt", b"no picture"))])
    assert asked.status_code == 200 and asked.text.count("<meter") == 3 and "notes.txt: is not a picture" in asked.text
    assert "that it is dermatofibroma, whatever the answer says" in asked.text
    saved = page.post("save", name="mine")
    assert saved.status_code == 200 and "Saved in" in saved.text
    folder = page.models / "mine"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and stat.S_IMODE(page.models.stat().st_mode) == 0o700
    images = [Image.open(io.BytesIO(data)).convert("RGB") for _, (_, data) in pictures]
    shown = re.findall(r"</meter> ([0-9.]+)", asked.text)
    assert shown == [f"{p.probability:.2f}" for p in Classifier.load(folder).predict(images)]
    assert "exists already" in page.post("save", name="mine").text
    assert "Make one" in page.post("forget").text and folder.is_dir()


def test_other_disease_needs_a_text(page: Page) -> None:
    refused = page.make("angiokeratoma of nobody")
    assert refused.status_code == 400 and "has no clinical text" in refused.text
    assert 'value="angiokeratoma of nobody"' in refused.text  # what was typed stays
    made = page.make("angiokeratoma of nobody", text="Dark red lacunae with a whitish veil.")
    assert made.status_code == 200 and "not in the catalogue" in made.text


def test_html_in_names_is_text(page: Page) -> None:
    made = page.make("<script>alert(1)</script>", text="<img src=x onerror=alert(2)> red lacunae")
    assert made.status_code == 200 and "<script" not in made.text and "<img src=x" not in made.text
    asked = page.post("ask", [("pictures", ("<b>x</b>.png", b"no picture"))])
    assert "<b>x" not in asked.text and "&lt;" in asked.text


def test_every_answer_forbids_what_the_page_does_not_need(page: Page) -> None:
    for answer in (page.browser.get(page.room), httpx.get(page.base + "/nowhere", trust_env=False)):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store" and "server" not in answer.headers
    text = page.browser.get(page.room).text
    assert "<script" not in text and " style=" not in text and not re.search(r'(src|href)="(?!data:)', text)


def test_the_address_opens_once(page: Page) -> None:
    assert httpx.get(page.address, trust_env=False).status_code == 403
    assert httpx.get(page.base + "/open?token=guess", trust_env=False).status_code == 403


def test_without_the_cookie_nothing_is_shown(page: Page) -> None:
    for url in (page.room, page.base + "/", page.base + "/x/", page.base + "/docs", page.base + "/openapi.json"):
        assert httpx.get(url, trust_env=False).status_code == 403
    assert page.browser.get(page.base + "/docs").status_code == 403  # nor outside the room with it


def test_cookie_stays_with_its_page(page: Page) -> None:
    (cookie,) = page.browser.cookies.jar
    assert cookie.path == urlsplit(page.room).path and cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite", "").lower() == "strict"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_site_is_refused_with_the_right_cookie(page: Page, headers: dict[str, str]) -> None:
    assert page.browser.get(page.room, headers=headers).status_code == 403
    assert page.browser.post(page.room + "forget", headers=headers).status_code == 403


def test_two_hosts_are_refused(page: Page) -> None:
    path = urlsplit(page.room).path
    host = f"Host: 127.0.0.1:{page.port}\r\n"
    assert "200 OK" in page.raw(f"GET {path} HTTP/1.1\r\n{host}Cookie: {page.cookie()}\r\n\r\n")
    assert "200 OK" not in page.raw(f"GET {path} HTTP/1.1\r\n{host}Host: evil\r\nCookie: {page.cookie()}\r\n\r\n")


@pytest.mark.parametrize("stamp", ["", "guess"])
def test_form_without_its_stamp_changes_nothing(page: Page, stamp: str) -> None:
    page.make()
    answer = page.browser.post(page.room + "forget", files={"stamp": (None, stamp)})
    assert answer.status_code == 403 and "Classifier for" in page.browser.get(page.room).text


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", ".hidden", "a\\b", "x" * 65, "", "a.tmp", "a*"])
def test_no_folder_outside_the_models(page: Page, name: str) -> None:
    page.make()
    before = sorted(page.models.parent.rglob("*"))
    answer = page.post("save", name=name)
    assert answer.status_code == 400 and "is not a name for a folder" in answer.text
    assert sorted(page.models.parent.rglob("*")) == before


def test_a_disk_that_cannot_hold_it_is_told_and_nothing_is_lost(page: Page) -> None:
    page.make()
    aside = page.models.rename(page.models.with_name("aside"))
    page.models.write_bytes(b"")  # no folder any more
    answer = page.post("save", name="kept")
    assert answer.status_code == 400 and str(page.models) in answer.text and "fault of the program" not in answer.text
    page.models.unlink()
    aside.rename(page.models)
    assert "Saved in" in page.post("save", name="kept").text


def test_huge_uploads_are_refused_unread(page: Page) -> None:
    path = urlsplit(page.room).path + "ask"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nCookie: {page.cookie()}\r\nContent-Type: {FORM}\r\n"
    assert " 413 " in page.raw(f"{head}Content-Length: {REQUEST_LIMIT + 1}\r\n\r\n--b\r\n")

    def endless() -> Iterator[bytes]:  # without a stated length
        for _ in range(REQUEST_LIMIT // (1 << 22) + 1):
            yield bytes(1 << 22)

    try:
        answer = page.browser.post(page.room + "ask", content=endless(), headers={"Content-Type": FORM})
        assert answer.status_code == 413
    except httpx.TransportError:  # the program closed the connection while we were still sending
        pass
    assert page.browser.get(page.room).status_code == 200


def test_nothing_is_told_of_a_patient(page: Page) -> None:
    page.make(name=f"{SECRET}.png")
    page.post("ask", [("pictures", (f"{SECRET}.png", b"no picture"))])
    page.browser.get(page.room + SECRET)
    assert page.log.read_text() == ""
    assert not [f for f in page.models.parent.rglob("*") if SECRET in f.name]


def test_program_opens_no_connection_and_no_other_port(page: Page) -> None:
    code = (
        "import socket, sys; from sgps_client import serve\n"
        "def ready(door):\n"
        "    for address in (('127.0.0.1', 9), ('192.0.2.1', 443)):\n"
        "        for step in (socket.create_connection, lambda a: socket.socket().bind(('0.0.0.0', 0))):\n"
        "            try: step(address)\n"
        "            except PermissionError: print('refused')\n"
        "    raise KeyboardInterrupt\n"
        "serve.run(None, 0, ready, print)\n"
    )
    paths = os.pathsep.join(sys.path)
    command = [sys.executable, "-W", "ignore", "-c", code]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["refused"] * 4, ran.stderr


def test_only_loopback_listens(page: Page) -> None:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    mine = [f[1] for f in map(str.split, lines) if f[3] == "0A" and f[1].endswith(f":{page.port:04X}")]
    assert mine == [f"0100007F:{page.port:04X}"]
