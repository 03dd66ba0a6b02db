"""The lists of the wheelhouse are what the packages ask for; what is built installs without a network, and nothing else does."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "wheelhouse"
SCRIPT = FOLDER / "wheelhouse.sh"
SMALL = "iniconfig\nmdurl  # two small packages without a compiled part\n"
LINUX = [
    {
        "python_version": version, "python_full_version": f"{version}.1", "sys_platform": "linux", "platform_system": "Linux",
        "os_name": "posix", "platform_machine": machine, "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for version in ("3.11", "3.12", "3.13", "3.14") for machine in ("x86_64", "aarch64")
]  # fmt: skip


def listed(name: str) -> list[str]:
    lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def needed(roots: Sequence[str]) -> set[str]:
    """Names of all packages that `roots` need on Linux, by the installed packages' own word. One that is not installed, because
    it is for another Python, stands for itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    todo, done = [Requirement(root) for root in roots], set[tuple[str, str]]()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in done:
                continue
            done.add((name, extra))
            if name == "sgps":
                asked = project["optional-dependencies"][extra] if extra else project["dependencies"]
            else:
                try:
                    asked = importlib.metadata.requires(name) or []
                except importlib.metadata.PackageNotFoundError:
                    asked = []
            for inner in map(Requirement, asked):
                if inner.marker is None or any(inner.marker.evaluate({**e, "extra": extra}) for e in LINUX):
                    todo.append(inner)
    return {name for name, _ in done} - {"sgps"}


@pytest.mark.parametrize(
    ("name", "roots"), [("coordinator", ["sgps"]), ("site", ["sgps[client]"]), ("build", ["hatchling"])]
)
def test_a_list_is_what_the_packages_ask_for(name: str, roots: list[str]) -> None:
    if name == "site":
        pytest.importorskip("torch", reason="needs the science installed, whose packages are asked")
    assert sorted(needed(roots)) == listed(name)
    lock = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert set(listed(name)) <= lock


def test_the_coordinator_needs_no_torch() -> None:
    heavy = {"torch", "torchvision", "opacus", "timm", "transformers", "triton", "pydicom"}
    assert not [n for n in listed("coordinator") if n in heavy or n.startswith(("nvidia-", "cuda-"))]


_ALONE = """
import importlib.metadata, re, sys
listed = {*sys.argv.pop(1).split(), "sgps"}
owners = importlib.metadata.packages_distributions()
class Absent:
    def find_spec(self, name, path=None, target=None):
        names = {re.sub("[-_.]+", "-", d).lower() for d in owners.get(name.partition(".")[0], ())}
        if names and not names & listed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import sgps_server.service, sgps_server.cli
sgps_server.cli.main()
"""


def alone(names: Sequence[str], *arguments: object) -> "subprocess.CompletedProcess[str]":
    """`sgps-server` with every package but `names` out of its sight."""
    paths = os.pathsep.join(str(ROOT / p) for p in ("sgps", "privacy", "client", "server"))
    line = [sys.executable, "-c", _ALONE, " ".join(names), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_the_coordinator_runs_on_its_list_alone(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "simulators"))
    import tiny_release

    names, config = listed("coordinator"), tmp_path / "centre" / "federation.yaml"
    release = tiny_release.make(tmp_path / "release")
    made = alone(names, "init", config.parent, "--name", "derm", "--release", release)
    assert made.returncode == 0, made.stderr
    for words in (("status",), ("audit", "verify")):
        done = alone(names, *words, "--config", config)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["flwr", "scipy", "cryptography", "uvicorn"])
def test_a_package_that_the_list_lacked_would_be_missed(name: str, tmp_path: Path) -> None:
    done = alone([n for n in listed("coordinator") if n != name], "status", "--config", tmp_path / "federation.yaml")
    assert f"No module named '{name}" in done.stderr


def pip_environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHON": sys.executable, **more}


def build(names: Path | str, out: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    line = ["sh", str(SCRIPT), "build", str(names), str(out)]
    return subprocess.run(line, capture_output=True, text=True, env=pip_environment(**more), timeout=300, check=False)


def install(wheelhouse: Path, venv: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """By the script that travelled with the wheels, with pip's settings of this machine out of sight and no network: in a network
    namespace without an interface where this user may make one, and told so in any case."""
    environment = {k: v for k, v in pip_environment().items() if not k.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_INDEX_URL": "http://127.0.0.1:9/"}
    line = [*cut_off(), "sh", str(wheelhouse / "wheelhouse.sh"), "install", str(wheelhouse), str(venv), *more]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300, check=False)


def cut_off() -> list[str]:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--net", "true"], capture_output=True, check=False).returncode:
        return []
    return [unshare, "--net"]


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one: two packages of the lock and the project itself."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    (folder / "small.txt").write_text(SMALL)
    done = build(folder / "small.txt", folder / "out")
    if done.returncode and re.search(r"connection|timed out|name resolution|unreachable", done.stderr, re.IGNORECASE):
        pytest.skip("needs a package registry, which cannot be reached from here")
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.slow
def test_it_installs_with_the_network_off(wheelhouse: Path, tmp_path: Path) -> None:
    pins = wheelhouse / "requirements.txt"
    sha256 = subprocess.run(["sha256sum", pins], capture_output=True, text=True, check=True).stdout.split()[0]
    done = install(wheelhouse, tmp_path / "venv", sha256)
    assert done.returncode == 0, done.stderr
    ask = "import importlib.metadata as m; print(*sorted(d.name for d in m.distributions()))"
    python = tmp_path / "venv" / "bin" / "python"
    names = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    assert {"iniconfig", "mdurl", "sgps"} <= set(names) <= {"iniconfig", "mdurl", "sgps", "pip", "setuptools", "wheel"}
    assert {p.name for p in (tmp_path / "venv" / "bin").glob("sgps*")} == {"sgps", "sgps-client", "sgps-server"}
    code = "from sgps.code import code_sha256; print(code_sha256('sgps', 'sgps_privacy', 'sgps_client'))"
    installed = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    from sgps.code import contributor_code

    assert installed == contributor_code(), (
        "a site that installs from the wheelhouse runs the very code of this checkout"
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["a wheel", "the project's wheel", "the pins", "no hashes", "another Python"])
def test_what_was_altered_on_the_way_is_refused_and_leaves_nothing(
    wheelhouse: Path, tmp_path: Path, fault: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(wheelhouse, copy)
    expected = "0" * 64 if fault == "the pins" else ""
    if fault == "another Python":
        (copy / "platform").write_text("cpython-399 plan9\n")
    if fault == "no hashes":
        bare = re.findall(r"^[a-z]+==[^ ;]+", (copy / "requirements.txt").read_text(), re.MULTILINE)
        (copy / "requirements.txt").write_text("\n".join(bare) + "\n")
    if "wheel" in fault:
        (wheel,) = (copy / "wheels").glob("mdurl-*.whl" if fault == "a wheel" else "sgps-*.whl")
        data = bytearray(wheel.read_bytes())
        data[len(data) // 2] ^= 1
        wheel.write_bytes(data)
    done = install(copy, tmp_path / "venv", *([expected] if expected else []))
    assert done.returncode != 0
    told = {
        "the pins": "not the one that was built",
        "no hashes": "Hashes are required",
        "another Python": "cpython-399",
    }.get(fault, "HASHES")
    assert told in done.stderr.replace("THESE PACKAGES DO NOT MATCH THE HASHES", "HASHES"), done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_package_outside_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("mdurl\nnot-in-the-lock\n")
    done = build(tmp_path / "names.txt", tmp_path / "out")
    assert done.returncode != 0 and "not-in-the-lock: not in requirements.lock" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["names.txt"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = build("coordinator", tmp_path / "out")
    assert done.returncode == 2 and "exists already" in done.stderr
