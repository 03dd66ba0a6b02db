"""The release service of a running coordinator, and a real client that gets its releases from there, through a proxy that cuts."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import fake_site
import federation as fed
import tiny_release
from connect_proxy import Proxy

from sgps.release import GENERATOR, Release
from sgps.signing import load_public
from sgps_client.config import Site

pytestmark = [pytest.mark.enable_socket, pytest.mark.slow]


@pytest.fixture
def f(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fed.Federation]:
    """A federation whose first release has some megabytes."""
    make = tiny_release.make
    monkeypatch.setattr(tiny_release, "make", lambda target: make(target, floats=1_000_000))
    found = fed.Federation(tmp_path)
    yield found
    found.close()


def client(*arguments: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sgps_client.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def receiving(f: fed.Federation, name: str) -> Site:
    """Enrolled through the command lines of both ends."""
    folder = f.work / name
    folder.mkdir()
    assert client("enroll", name, "--folder", folder, environment=fed.environment()).returncode == 0
    fed.server(
        "sites", "approve", folder / f"{name}.csr", "--config", f.folder.config, "--out", folder / "site.kit", "--receive"
    )  # fmt: skip
    done = client("enroll", "--kit", folder / "site.kit", "--folder", folder, environment=fed.environment())
    assert done.returncode == 0, done.stderr
    return Site.load(folder / "site.yaml")


def calls(process: int, found: set[int], stop: threading.Event) -> None:
    """Ports that a process is connected to, whichever library made the connection."""
    while not stop.wait(0.01):
        try:
            links = {os.readlink(f"/proc/{process}/fd/{fd}") for fd in os.listdir(f"/proc/{process}/fd")}
            lines = [
                x for name in ("tcp", "tcp6") for x in Path(f"/proc/{process}/net/{name}").read_text().splitlines()
            ]
        except OSError:
            continue
        for fields in (line.split() for line in lines):
            if f"socket:[{fields[9]}]" in links:
                found.add(int(fields[2].rpartition(":")[2], 16))


def test_start_gets_every_release_by_itself_through_a_proxy_that_cuts_the_line(f: fed.Federation) -> None:
    for name in ("north", "south"):
        f.enrol(name)
    west = receiving(f, "west")
    f.start()
    f.wait(lambda: f.events("listening"))
    ports, stop = set[int](), threading.Event()
    with Proxy({f"localhost:{f.port + 1}": ("127.0.0.1", f.port + 1)}, cuts=[1_000_000, 700_000]) as proxy:
        environment = {k: v for k, v in fed.environment().items() if k.upper() not in {"NO_PROXY", "HTTPS_PROXY"}}
        environment["HTTPS_PROXY"] = proxy.url
        command = [sys.executable, "-m", "sgps_client.cli", "start", "--config", str(west.file), "--json"]
        with (west.folder / "out.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        f.processes.append(process)
        watch = threading.Thread(target=calls, args=(process.pid, ports, stop), daemon=True)
        watch.start()
        f.wait(lambda: (west.releases / "0000").is_dir())
        for name in ("north", "south"):
            f.start_site(name)
        assert process.wait(300) == 0
        stop.set()
        watch.join()
        assert not proxy.cuts
        assert proxy.down < 4_000_000 + 3 * 700_000  # of the second release only what is new
        assert set(proxy.asked) == {f"CONNECT localhost:{f.port + 1}"}
        assert ports <= {0, int(proxy.url.rpartition(":")[2])}
    said = [json.loads(line) for line in (west.folder / "out.log").read_text().splitlines()]
    events = [e["event"] for e in said]
    assert events.count("release") == 2
    assert events.count("record") == 2
    assert "offline" not in events
    for name in ("0000", "0001"):
        here = Release.open(west.releases / name, key=load_public(west.plan_key))
        assert here.sha256 == Release.open(f.folder.releases / name, key=load_public(west.plan_key)).sha256
    assert sorted(e["release"] for e in f.events("fetched") if e["site"] == "west") == ["0000", "0001"]
    assert not [p for p in west.releases.iterdir() if p.name.endswith((".part", ".tmp"))]


def test_pull_goes_on_behind_the_bytes_that_a_killed_one_left(f: fed.Federation) -> None:
    west = receiving(f, "west")
    f.start()
    f.wait(lambda: f.events("listening"))
    environment = {k: v for k, v in fed.environment().items() if k.upper() not in {"NO_PROXY", "HTTPS_PROXY"}}
    config = ("--config", west.file)
    with Proxy({f"localhost:{f.port + 1}": ("127.0.0.1", f.port + 1)}, cuts=[2_000_000, 0, 0, 0, 0]) as proxy:
        failed = client("pull", *config, environment={**environment, "HTTPS_PROXY": proxy.url})
        assert failed.returncode == 6, failed.stderr
        assert len(failed.stderr.splitlines()) == 1
        assert not (west.releases / "0000").exists()
        (part,) = west.releases.glob(".*.part")
        here = part.stat().st_size
        assert here > 1_000_000
        before = proxy.down
        done = client("pull", *config, environment={**environment, "HTTPS_PROXY": proxy.url})
        assert done.returncode == 0, done.stderr
        size = (f.folder.releases / "0000" / GENERATOR).stat().st_size
        assert proxy.down - before < size - here + 100_000
    direct = {**environment, "NO_PROXY": "*"}
    listed = client("pull", "--list", *config, "--json", environment=direct)
    assert [json.loads(line)["here"] for line in listed.stdout.splitlines()] == [True]
    again = client("pull", "--release", "0000", *config, environment=direct)
    assert again.returncode == 0
    assert client("pull", "--release", "0007", *config, environment=direct).returncode == 2
    checked = json.loads(client("check", *config, "--json", environment=direct).stdout)
    assert checked["ok"], checked
    assert any(x["area"] == "record" for x in checked["findings"])


def test_the_port_speaks_tls_1_3_health_and_nothing_below(f: fed.Federation) -> None:
    f.enrol("north")
    f.start()
    f.wait(lambda: f.events("listening"))
    north = fake_site.Identity(f.work / "north")
    context = north.tls()
    context.set_alpn_protocols(["h2"])
    for port in (f.port, f.port + 1):
        for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            context.maximum_version = version
            with socket.create_connection(("localhost", port)) as raw:
                if version == ssl.TLSVersion.TLSv1_3:
                    context.wrap_socket(raw, server_hostname="localhost").close()
                else:
                    with pytest.raises((ssl.SSLError, ConnectionError)):
                        context.wrap_socket(raw, server_hostname="localhost")
    identity = grpc.ssl_channel_credentials(
        *((north.folder / part).read_bytes() for part in ("ca.pem", "keys/site.key", "certificate.pem"))
    )
    with grpc.secure_channel(f"localhost:{f.port + 1}", identity, options=(("grpc.enable_http_proxy", 0),)) as line:
        check = health_pb2_grpc.HealthStub(line).Check

        def state(service: str) -> Any:
            return check(health_pb2.HealthCheckRequest(service=service), timeout=10).status

        serving = health_pb2.HealthCheckResponse.SERVING
        assert [state(s) for s in ("", "sgps.releases.v1.Releases")] == [serving, serving]
        f.processes[0].send_signal(signal.SIGSTOP)  # a hang: no answer in time is an answer, too
        stat = Path(f"/proc/{f.processes[0].pid}/stat")
        f.wait(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
        with pytest.raises(grpc.RpcError) as raised:
            check(health_pb2.HealthCheckRequest(), timeout=1)
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        f.processes[0].send_signal(signal.SIGCONT)
        assert state("") == serving


def test_a_second_port_that_is_taken_ends_the_start_in_one_line(f: fed.Federation) -> None:
    with socket.create_server(("127.0.0.1", f.port + 1)):
        process = f.start()
        assert process.wait(240) == 6
    said = (f.work / "server.log").read_text()
    assert f"127.0.0.1:{f.port + 1}: cannot listen - free the port or change `releases`" in said.splitlines()[-1]
    assert "Traceback" not in said
