"""The release service over real gRPC and mutual TLS: who may call, what is given, and how much at once."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import release_centre
import tiny_release
from release_centre import Centre

from sgps.errors import NetworkError
from sgps.release import FILES, GENERATOR, MANIFEST, SIGNATURE
from sgps.wire import releases_pb2 as wire
from sgps_client.config import Site
from sgps_server import enrolment, release_port, release_service
from sgps_server.config import Listen
from sgps_server.release_port import BURST, OWN, RATE, Allowance
from sgps_server.release_service import SERVICE

pytestmark = pytest.mark.enable_socket
CALLS = wire.DESCRIPTOR.services_by_name["Releases"].methods_by_name


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Centre]:
    work = tmp_path_factory.mktemp("releases")
    found = Centre(work, release=tiny_release.make(work / "release", floats=500_000))
    found.start()
    yield found
    found.close()


@pytest.fixture(scope="module")
def north(centre: Centre) -> Site:
    return centre.site("north")


def identity(site: Site, authority: bytes = b"") -> Any:
    return grpc.ssl_channel_credentials(
        authority or site.ca.read_bytes(), site.tls_key.read_bytes(), site.certificate.read_bytes()
    )


def channel(centre: Centre, credentials: Any) -> Any:
    """With a small window, so that a stream that is not read stands still."""
    window = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), *window)
    return grpc.secure_channel(f"127.0.0.1:{centre.port}", credentials, options=options)


def call(line: Any, name: str, /, **fields: Any) -> Any:
    kind = line.unary_stream if CALLS[name].server_streaming else line.unary_unary
    request = getattr(wire, CALLS[name].input_type.name)(**fields)
    serialize = type(request).SerializeToString
    answer = getattr(wire, CALLS[name].output_type.name).FromString
    path = f"/{SERVICE}/{name}"
    return kind(path, request_serializer=serialize, response_deserializer=answer)(request, timeout=20)


def code(what: Any) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        list(found) if hasattr(found := what(), "__next__") else found
    return str(raised.value.code().name)


def test_every_file_comes_whole_from_any_offset(centre: Centre, north: Site) -> None:
    with channel(centre, identity(north)) as line:
        (release,) = call(line, "List").releases
        assert call(line, "Status").latest == release
        folder = centre.folder.releases / release.name
        shown = call(line, "Inspect", name=release.name)
        assert shown.release == release
        assert (shown.manifest, shown.signature) == (
            (folder / MANIFEST).read_bytes(),
            (folder / SIGNATURE).read_bytes(),
        )
        for file in FILES:
            data = (folder / file).read_bytes()
            for offset in (0, 1, len(data) // 2, len(data), len(data) + 5):
                chunks = list(call(line, "Pull", release=release, file=file, offset=offset))
                assert b"".join(c.data for c in chunks) == data[offset:]
                assert {c.size for c in chunks} == {len(data)}
    assert len((folder / GENERATOR).read_bytes()) > 3 * release_service.CHUNK
    assert ("fetched", {"site": "north", "release": "0000"}) in centre.reported


def test_nothing_but_files_of_releases_is_given(centre: Centre, north: Site) -> None:
    with channel(centre, identity(north)) as line:
        (release,) = call(line, "List").releases
        for file in ("../../keys/plan.key", "plan.key", "", MANIFEST, "/etc/passwd"):
            assert code(lambda f=file: call(line, "Pull", release=release, file=f)) == "NOT_FOUND"
        for name in ("../keys", "..", "", "9999", "0000/../0000"):
            other = wire.Release(name=name, sha256=release.sha256)
            assert code(lambda o=other: call(line, "Pull", release=o, file=GENERATOR)) == "NOT_FOUND"
            assert code(lambda n=name: call(line, "Inspect", name=n)) == "NOT_FOUND"
        changed = wire.Release(name=release.name, sha256="0" * 64)
        assert code(lambda: call(line, "Pull", release=changed, file=GENERATOR)) == "FAILED_PRECONDITION"
        assert code(lambda: line.unary_unary(f"/{SERVICE}/Remove")(b"", timeout=20)) == "UNIMPLEMENTED"


def test_a_stock_health_client_gets_an_answer_and_a_hang_shows(centre: Centre, north: Site) -> None:
    state = health_pb2.HealthCheckResponse
    with channel(centre, identity(north)) as line:
        stub = health_pb2_grpc.HealthStub(line)

        def ask(service: str = "") -> Any:
            return stub.Check(health_pb2.HealthCheckRequest(service=service)).status

        assert ask() == ask(SERVICE) == state.SERVING
        assert code(lambda: ask("another")) == "NOT_FOUND"
        watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watched).status == state.SERVING
        centre.alive = False  # the rounds give no sign of life
        try:
            assert next(watched).status == state.NOT_SERVING
            assert ask() == state.NOT_SERVING
        finally:
            centre.alive = True
        assert next(watched).status == state.SERVING
        watched.cancel()


def test_only_a_certificate_of_this_federation_is_answered(centre: Centre, north: Site, tmp_path: Path) -> None:
    other = Centre(tmp_path)
    stranger = other.site("north")
    bare = grpc.ssl_channel_credentials(north.ca.read_bytes())
    for credentials in (bare, identity(stranger, north.ca.read_bytes()), grpc.local_channel_credentials()):
        with channel(centre, credentials) as line:
            assert code(lambda found=line: call(found, "Status")) == "UNAVAILABLE"
            check = health_pb2_grpc.HealthStub(line).Check
            assert code(lambda found=check: found(health_pb2.HealthCheckRequest(), timeout=20)) == "UNAVAILABLE"
    with channel(centre, identity(north, other.folder.ca.joinpath("ca.crt").read_bytes())) as line:
        assert (
            code(lambda: call(line, "Status")) == "UNAVAILABLE"
        )  # and the site turns away a coordinator of another CA


def test_a_caller_over_an_older_tls_is_nobody(north: Site) -> None:
    """The port does not take one (tests/e2e/test_releases.py); were it to, nobody would be behind it."""
    facts = {"x509_pem_cert": [north.certificate.read_bytes()], "ssl_tls_version": [b"TLSv1.3"]}
    context = SimpleNamespace(auth_context=lambda: facts)
    assert release_port.caller(context).site == "north"  # type: ignore[union-attr]
    for version in ([b"TLSv1.2"], [], [b"TLSv1.2", b"TLSv1.3"]):
        facts["ssl_tls_version"] = version
        assert release_port.caller(context) is None
    facts.update(ssl_tls_version=[b"TLSv1.3"], x509_pem_cert=[b"nothing"])
    assert release_port.caller(context) is None


def test_a_revoked_site_is_cut_off_at_once_even_within_a_file(
    centre: Centre, north: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_service, "CHUNK", 1024)
    eve = centre.site("eve")
    with channel(centre, identity(eve)) as line, channel(centre, identity(north)) as other:
        (release,) = call(line, "List").releases
        stream = call(line, "Pull", release=release, file=GENERATOR)
        next(stream)
        enrolment.revoke(centre.folder, "eve")
        assert code(lambda: list(stream)) == "PERMISSION_DENIED"
        assert code(lambda: call(line, "Status")) == "PERMISSION_DENIED"
        check = health_pb2_grpc.HealthStub(line).Check
        assert code(lambda: check(health_pb2.HealthCheckRequest(), timeout=20)) == "PERMISSION_DENIED"
        assert call(other, "Status").latest == release
    assert ("refused", {"site": "eve", "status": "PERMISSION_DENIED", "why": "not_enrolled"}) in centre.reported


def test_one_site_has_few_calls_at_once_and_gets_them_back(
    centre: Centre, north: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_service, "CHUNK", 1024)
    south = centre.site("south")
    with channel(centre, identity(north)) as line, channel(centre, identity(south)) as other:
        (release,) = call(line, "List").releases
        open_streams = [call(line, "Pull", release=release, file=GENERATOR) for _ in range(OWN)]
        for stream in open_streams:
            next(stream)  # not read further: flow control holds each where it is
        assert code(lambda: call(line, "Status")) == "RESOURCE_EXHAUSTED"
        assert call(other, "Status").latest == release
        for stream in open_streams:
            stream.cancel()

        def again() -> bool:
            try:
                return bool(call(line, "Status").latest == release)
            except grpc.RpcError:
                return False

        release_centre.wait(again)
    assert "too_many_calls" in centre.refusals()


def test_a_stream_that_is_not_read_is_cut(centre: Centre, north: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_port, "STREAM_SECONDS", 0.3)
    before = threading.active_count()
    with channel(centre, identity(north)) as line:
        (release,) = call(line, "List").releases
        stream = call(line, "Pull", release=release, file=GENERATOR)
        watch = health_pb2_grpc.HealthStub(line).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        next(stream)
        next(watch)
        release_centre.wait(lambda: not [t for t in threading.enumerate() if isinstance(t, threading.Timer)])
        assert code(lambda: list(watch)) == "CANCELLED"
    assert threading.active_count() <= before + 3


def test_calls_a_second_are_bounded() -> None:
    now = [0.0]
    allowance = Allowance(lambda: now[0])

    def allowed(site: str, count: int) -> int:
        found = 0
        for _ in range(count):
            with allowance.call(site) as yes:
                found += yes
        return found

    assert allowed("north", 3 * int(BURST)) == BURST
    assert allowed("south", 5) == 5
    now[0] = 2.0
    assert allowed("north", 1000) == 2 * RATE
    now[0] = 10_000.0
    assert allowed("north", 1000) == BURST


def test_a_large_request_is_refused(centre: Centre, north: Site) -> None:
    with channel(centre, identity(north)) as line:
        assert code(lambda: call(line, "Inspect", name="0" * 100_000)) == "RESOURCE_EXHAUSTED"


def test_a_port_that_is_taken_is_one_line(centre: Centre) -> None:
    service = release_service.ReleaseService
    listen = Listen(host="127.0.0.1", port=centre.port)
    with pytest.raises(NetworkError, match=f"127.0.0.1:{centre.port}: cannot listen") as raised:
        made = service(centre.folder.releases, None, None, dict, lambda _: True, lambda *_: None)  # type: ignore[arg-type]
        release_port.ReleasePort(made, centre.porter, centre.folder, listen, lambda: True)
    assert "`releases`" in str(raised.value)
