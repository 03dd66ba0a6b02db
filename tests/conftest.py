"""What every test relies on: offline switches, one thread, the public images and the shipped release where they exist."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

_HOME = tempfile.TemporaryDirectory(prefix="flwr-")
# Before flwr, transformers or torch are imported.
os.environ.update(
    {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": _HOME.name,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
)

import signal

import pytest

# Below a shell's background job Ctrl-C is ignored, and every program that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from sgps.release import Release

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread: the same sums in the same order, and room for the tests beside this one."""
    try:
        import torch
    except ModuleNotFoundError:  # the coordinator's tests run without torch
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public images beside the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the public images in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def release() -> "Release":
    """The release that ships with the package. A broken one is an error, only a missing one a skip."""
    folder = ROOT / "sgps" / "sgps" / "assets" / "release"
    if not (folder / "release.yaml").is_file():
        pytest.skip("needs the shipped release in sgps/sgps/assets/release")
    from sgps.shipped import shipped_release

    return shipped_release()
