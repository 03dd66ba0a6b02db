"""The way from a site to the release service: proxies, cut lines, words for what went wrong, the record that is remembered."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import tiny_release
from connect_proxy import Proxy
from release_centre import Centre

from sgps.errors import ConfigError, InputError, NetworkError, SignatureError, StateError
from sgps.release import GENERATOR
from sgps_client import store as stores
from sgps_client import tls, witness
from sgps_client.config import Site
from sgps_client.coordinator import Coordinator
from sgps_client.store import Store
from sgps_server import enrolment
from sgps_server.release_service import ReleaseService

pytestmark = pytest.mark.enable_socket
NAME = "coordinator.sgps.test"  # nobody but the proxy knows it
FLOATS = 1_000_000


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(stores, "PAUSE", 0.05)


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    found = Centre(tmp_path, NAME, tiny_release.make(tmp_path / "release", floats=FLOATS))
    found.start()
    yield found
    found.close()


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_a_release_comes_through_a_proxy_that_cuts_the_line_and_every_byte_comes_once(
    centre: Centre, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    site = centre.site("north")
    with Proxy({f"{NAME}:{centre.port}": ("127.0.0.1", centre.port)}, cuts=[1_000_000, 1_500_000]) as proxy:
        monkeypatch.setenv(variable, proxy.url)
        with Coordinator(site) as coordinator:
            release = Store(site).fetch(coordinator, coordinator.status().latest)
        assert len(proxy.asked) == 3
        assert set(proxy.asked) == {f"CONNECT {NAME}:{centre.port}"}
        assert not proxy.cuts
        size = (release.folder / GENERATOR).stat().st_size
        assert size > 4 * FLOATS
        assert proxy.down < size + 3 * 700_000  # what is on its way is lost with a line, and nothing else
    assert [p.name for p in site.releases.iterdir() if p.name != ".lock"] == ["0000"]


def test_the_proxy_and_what_it_says_are_named(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    site = centre.site("north")
    with Coordinator(site) as coordinator, pytest.raises(NetworkError, match=NAME):
        coordinator.status()  # without the proxy the name is not known
    with Proxy({}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with Coordinator(site) as coordinator, pytest.raises(NetworkError, match="403"):
            coordinator.status()
        monkeypatch.setenv("NO_PROXY", NAME)
        with Coordinator(site) as coordinator, pytest.raises(NetworkError):
            coordinator.status()
        assert len(proxy.asked) <= 2
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example.org:3128")
    assert tls.proxy_for(NAME) == "http://proxy.example.org:3128"
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(ConfigError, match="http://host:port"):
        Coordinator(site)


@pytest.fixture
def near(tmp_path: Path) -> Iterator[Centre]:
    found = Centre(tmp_path)
    found.start()
    yield found
    found.close()


def test_what_went_wrong_is_one_line(near: Centre, tmp_path: Path) -> None:
    site, other = near.site("north"), Centre(tmp_path / "other").site("north")
    said: dict[str, str] = {}

    def ask(what: str, found: Site) -> None:
        with Coordinator(found) as coordinator, pytest.raises(NetworkError) as raised:
            coordinator.status()
        said[what] = str(raised.value)
        assert found.releases_url in said[what] and "\n" not in said[what]

    site.ca.write_bytes(other.ca.read_bytes())
    ask("another authority", site)
    site = near.site("south")
    enrolment.revoke(near.folder, "south")
    ask("revoked", site)
    near.close()
    ask("nobody there", site)
    assert "not the one that the kit names" in said["another authority"]
    assert "not enrolled or was revoked" in said["revoked"]
    assert "refused" in said["nobody there"]


def test_an_older_settings_file_finds_the_service_at_the_next_port(tmp_path: Path) -> None:
    centre = Centre(tmp_path)
    site = centre.site("north")
    assert site.releases_url == f"https://127.0.0.1:{centre.port}"
    text = site.file.read_text()
    line = next(line for line in text.splitlines() if "releases_url" in line)
    site.file.write_text(text.replace(line + "\n", ""))
    older = Site.load(site.file)
    host, port = older.config.federation.url.rsplit(":", 1)
    assert older.releases_url == f"{host}:{int(port) + 1}"


def test_one_release_of_several_is_found_by_name(near: Centre) -> None:
    with Coordinator(near.site("north")) as coordinator:
        assert coordinator.find("0000") == coordinator.status().latest
        with pytest.raises(InputError, match="choose one of 0000"):
            coordinator.find("0001")


def test_the_record_is_remembered_and_may_only_grow(near: Centre) -> None:
    site = near.site("north")
    with Coordinator(site) as coordinator:
        first = witness.look(site, coordinator)
        assert first.since is None
        near.porter.refused("mallory", 403, "forged_sender", "/")  # one more line
        second = witness.look(site, coordinator)
        assert second.lines == first.lines + 1
        assert second.since is not None
        (kept,) = site.state.glob("record-*.json")
        assert kept.stat().st_mode & 0o077 == 0
        before = kept.read_bytes()
        lines = near.folder.audit.read_bytes().splitlines(keepends=True)
        near.close()
        near.folder.audit.write_bytes(
            b"".join(lines[:-1])
        )  # the last line is cut off, and another one comes in its place
        near.start()
        near.porter.refused("eve", 403, "forged_sender", "/")
    with Coordinator(site) as coordinator:
        with pytest.raises(SignatureError, match="no longer holds the line that was its last on 20"):
            witness.look(site, coordinator)
        with pytest.raises(SignatureError, match="no longer holds"):
            witness.look(site, coordinator)  # and it stays so
    assert kept.read_bytes() == before
    (evidence,) = site.state.glob("record-contradicted-*.json")
    said = [json.loads(json.loads(file.read_bytes())["text"]) for file in (kept, evidence)]
    assert said[0]["lines"] == said[1]["lines"]
    assert said[0]["head"] != said[1]["head"]


def test_a_record_that_is_cut_or_broken_while_it_is_served_is_told(near: Centre) -> None:
    site = near.site("north")
    with Coordinator(site) as coordinator:
        witness.look(site, coordinator)
        whole = near.folder.audit.read_bytes()
        near.folder.audit.write_bytes(whole.splitlines(keepends=True)[0])
        with pytest.raises(NetworkError, match="record is damaged"):
            witness.look(site, coordinator)
        near.folder.audit.write_bytes(whole + b'{"event":"forged"}\n')
        with pytest.raises(NetworkError, match="record is damaged"):
            witness.look(site, coordinator)
        near.folder.audit.write_bytes(whole + b'{"event":"half a li')  # still being written
        assert witness.look(site, coordinator).since is not None


def test_a_head_counts_only_with_the_signature_of_the_federation(near: Centre, tmp_path: Path) -> None:
    site, other = near.site("north"), Centre(tmp_path / "other").site("north")
    with Coordinator(site) as coordinator:
        site.plan_key.write_bytes(other.plan_key.read_bytes())
        with pytest.raises(SignatureError, match="not the key of the federation"):
            witness.look(site, coordinator)
        text, signature = coordinator.audit_head(None)
        forged = text.replace('"lines":', '"lines":1')
        coordinator.audit_head = lambda known: (forged, signature)  # type: ignore[method-assign]
        site = near.site("south")
        with pytest.raises(SignatureError, match="does not fit the pinned key"):
            witness.look(site, coordinator)
        assert not site.state.exists()


def test_an_answer_to_another_question_is_refused_and_a_damaged_note_is_named(near: Centre) -> None:
    site = near.site("north")
    with Coordinator(site) as coordinator:
        witness.look(site, coordinator)
        real = coordinator.audit_head
        for other in (None, ("a" * 64, 1)):  # a coordinator that signs something else than what was asked
            coordinator.audit_head = lambda known, other=other: real(other)  # type: ignore[method-assign, misc]
            with pytest.raises(SignatureError, match="another question"):
                witness.look(site, coordinator)
        (kept,) = site.state.glob("record-*.json")
        kept.write_bytes(b"{}")
        with pytest.raises(StateError, match="is damaged"):
            witness.look(site, coordinator)


def test_words_of_the_other_end_are_one_plain_line(near: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    site = near.site("north")

    def bad(*_: object) -> None:
        raise RuntimeError("\x1b[2J\nclear\u202e" + "x" * 5000)

    near.close()
    monkeypatch.setattr(ReleaseService, "status", bad)
    near.start()
    with Coordinator(site) as coordinator, pytest.raises(NetworkError) as raised:
        coordinator.status()
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600
