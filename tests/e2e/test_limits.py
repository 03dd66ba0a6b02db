"""Disks, clocks, certificates, ports and signals that are not as they should be, by real processes: one line, nothing half-written."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import federation as fed
import random_classifier
import site_bench

from sgps.settings import dump, parse
from sgps_server.pki import Authority

pytestmark = [pytest.mark.enable_socket, pytest.mark.slow, pytest.mark.timeout(600)]
CLIENT, SERVER = (sys.executable, "-m", "sgps_client.cli"), (sys.executable, "-m", "sgps_server.cli")
SHIFTED = """
import time
from types import SimpleNamespace
from sgps_server import cli, release_service
release_service.time = SimpleNamespace(time=lambda: time.time() + {})
cli.main()
"""


def ran(*command: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], cwd=cwd, env={**fed.environment(), **environment}, capture_output=True, text=True, timeout=200, check=False
    )  # fmt: skip


def one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("sgps-")]  # besides how far it came
    assert "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1, done.stderr
    assert " - " in lines[0], lines
    assert all(word in lines[0] for word in words), lines


class Centre(fed.Federation):
    """A coordinator that waits for a site, and the folder of that site."""

    def site(self, *options: str) -> Path:
        folder = self.work / "north"
        folder.mkdir()
        assert ran(*CLIENT, "enroll", "north", cwd=folder).returncode == 0
        fed.server(
            "sites", "approve", folder / "north.csr", "--config", self.folder.config, "--out", folder / "north.kit", *options
        )  # fmt: skip
        assert ran(*CLIENT, "enroll", "--kit", "north.kit", cwd=folder).returncode == 0
        if not options:
            site_bench.draw_patients(folder)
            file = folder / "site.yaml"
            cohorts = site_bench.settings("a" * 64)["cohorts"]
            file.write_text(dump(parse(file.read_text(), file) | {"cohorts": cohorts}))
        return folder

    def serve(self, *command: object) -> None:
        with (self.work / "server.log").open("ab") as log:
            line = [*map(str, command or SERVER), "--config", str(self.folder.config), "--json"]
            self.processes.append(subprocess.Popen(line, env=fed.environment(), stdout=log, stderr=log))
        self.wait(lambda: self.events("listening"), 240)


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    made = Centre(tmp_path, quorum=1)
    yield made
    made.close()


# --- disks ----------------------------------------------------------------------------------------------------------------
@cache
def namespaces() -> bool:
    """Whether this user may mount in a namespace of its own."""
    return ran("unshare", "-rm", "true").returncode == 0 if shutil.which("unshare") else False


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    if not namespaces():
        pytest.skip("needs `unshare -rm`, which is not allowed here")
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


FULL = "dd if=/dev/zero of=filler bs=4k status=none 2>/dev/null"
READ_ONLY = 'mount -o remount,ro "$DISK"'


def on_disk(disk: Path, spoil: str, seed: Path, *command: object) -> tuple[subprocess.CompletedProcess[str], bool]:
    """Runs a command in a copy of `seed` on a disk of 256 KiB that is then made full or read-only. Second: are all files as before?"""
    script = (
        'mount -t tmpfs -o size=256k tmpfs "$DISK" && cp -a "$SEED/." "$DISK" && cd "$DISK" && { '
        + spoil
        + '; find . -type f -exec sha256sum {} + | sort > "$DISK.before"; "$@"; code=$?; '
        'find . -type f -exec sha256sum {} + | sort > "$DISK.after"; exit $code; }'
    )
    done = ran("unshare", "-rm", "sh", "-c", script, "sh", *command, DISK=str(disk), SEED=str(seed))
    before, after = (disk.with_name(f"{disk.name}.{part}").read_text() for part in ("before", "after"))
    return done, before == after


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(FULL, ("No space left on device", "make room there")), (READ_ONLY, ("Read-only file system", "can be written"))],
    ids=["full", "read-only"],
)
def test_a_disk_that_cannot_be_written_is_told_and_left_as_it_was(
    small_disk: Path, tmp_path: Path, spoil: str, words: tuple[str, ...]
) -> None:
    seed, outside = tmp_path / "seed", tmp_path / "outside"
    seed.mkdir()
    (outside / "pictures" / "a").mkdir(parents=True)
    (outside / "pictures" / "b").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in ("a/1.png", "b/2.png"):
        Image.fromarray(pixels).save(outside / "pictures" / name)
    random_classifier.make("a", "b").save(outside / "model")
    model = ("--model", outside / "model")
    for command in (
        (*CLIENT, "enroll", "north"),
        (*CLIENT, "predict", outside / "pictures", *model, "--out", "results.csv"),
        (*SERVER, "init", "derm", "--name", "derm"),
    ):
        done, same = on_disk(small_disk, spoil, seed, *command)
        one_line(done, 1, *words)
        assert same, command


@pytest.mark.parametrize("spoil", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_check_and_start_name_a_disk_that_cannot_be_written(small_disk: Path, centre: Centre, spoil: str) -> None:
    folder = centre.site("--receive")
    centre.serve()
    done, same = on_disk(small_disk, spoil, folder, *CLIENT, "check")
    assert done.returncode == 7, done.stdout
    assert "PROBLEM disk" in done.stdout
    assert same
    done, same = on_disk(small_disk, spoil, folder, *CLIENT, "pull")
    one_line(done, 1, str(small_disk))
    assert not any((folder / "releases").glob("[0-9]*"))


# --- clocks ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("seconds", "word"), [(3600, "ahead of"), (-3600, "behind")])
def test_a_clock_that_is_off_by_an_hour_is_told(centre: Centre, seconds: int, word: str) -> None:
    folder = centre.site()
    centre.serve(
        sys.executable, "-c", SHIFTED.format(-seconds)
    )  # what it says of its time: gRPC needs a right clock itself
    done = ran(*CLIENT, "check", cwd=folder)
    (line,) = [x for x in done.stdout.splitlines() if "clock" in x and "PROBLEM" in x]
    assert f"{word} the coordinator's - set it by NTP" in line
    assert abs(abs(float(line.split("this clock is ")[1].split(" s ")[0])) - 3600) < 5
    assert done.returncode == 6
    with (folder / "out.txt").open("w") as out:
        process = subprocess.Popen([*CLIENT, "start"], cwd=folder, env=fed.environment(), stdout=out, stderr=out)
        centre.processes.append(process)
        centre.wait(lambda: f"{word} the coordinator's - set it by NTP" in (folder / "out.txt").read_text(), 240)
    assert process.poll() is None, "it goes on: the clock may be set meanwhile"
    assert not centre.events("reply")


# --- certificates, ports, addresses ---------------------------------------------------------------------------------------
def test_another_federations_authority_is_told(centre: Centre, tmp_path: Path) -> None:
    folder = centre.site("--receive")
    centre.serve()
    other = tmp_path / "other"
    other.mkdir()
    Authority.make(other, "other")
    shutil.copy(other / "ca.crt", folder / "keys" / "ca.crt")
    done = ran(*CLIENT, "check", cwd=folder)
    assert "the certificate is not from the federation's CA - install the kit again" in done.stdout
    assert "the server is not the one that the kit names" in done.stdout
    one_line(ran(*CLIENT, "pull", cwd=folder), 6, "the server is not the one that the kit names")
    assert not any((folder / "releases").glob("[0-9]*"))


def test_a_port_that_is_taken_is_told(centre: Centre) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", centre.port))
        taken.listen()
        done = ran(*SERVER, "--config", centre.folder.config)
    one_line(done, 6, f"127.0.0.1:{centre.port}: cannot listen: Address already in use", "free the port")
    assert done.stdout == ""


WITHOUT_IPV6 = """
import fcntl, os, socket, struct, sys
with socket.socket() as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sH22x", b"lo", 0x49))  # SIOCSIFFLAGS: loopback up
open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w").write("1")
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def without_ipv6() -> tuple[str, ...]:
    """Begins a command in a network of its own that has 127.0.0.1 and no IPv6."""
    begin = ("unshare", "-rn", sys.executable, "-c", WITHOUT_IPV6)
    if not shutil.which("unshare") or ran(*begin, sys.executable, "-c", "").returncode:
        pytest.skip("needs `unshare -rn` and a switch for IPv6, which are not allowed here")
    return begin


def test_a_machine_without_ipv6(centre: Centre, without_ipv6: tuple[str, ...]) -> None:
    folder = centre.site("--receive")
    centre.write_settings(listen={"host": "::1", "port": centre.port})
    done = ran(*without_ipv6, *SERVER, "--config", centre.folder.config)
    one_line(done, 6, "cannot listen", "change `listen`")
    centre.write_settings(listen={"host": "127.0.0.1", "port": centre.port})
    script = f'"$0" -m sgps_server.cli --config "{centre.folder.config}" > "{centre.work}/server.log" & server=$!\n'
    script += f'for i in $(seq 100); do grep -q listens "{centre.work}/server.log" && break; sleep 0.5; done\n'
    script += f'cd "{folder}"; "$0" -m sgps_client.cli check; code=$?; kill $server; wait $server; exit $code'
    shell = shutil.which("sh")
    done = ran(*without_ipv6, shell, "-c", script, sys.executable)
    assert "mutual TLS works" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout


# --- signals --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_ends_with_130_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    random_classifier.make("a", "b").save(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "pictures" / "0.png")
    for i in range(1, 300):
        os.link(tmp_path / "pictures" / "0.png", tmp_path / "pictures" / f"{i}.png")
    before = set(tmp_path.iterdir())
    process = subprocess.Popen(
        [*CLIENT, "predict", "pictures", "--model", "model", "--out", "results.csv"],
        cwd=tmp_path, env=fed.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline()  # it tells how far it is
    time.sleep(0.2)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert set(tmp_path.iterdir()) == before
