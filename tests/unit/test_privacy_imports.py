"""The coordinator reads terms, statements and replies without torch; only the engine, its gradients and its audit need it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sgps_privacy

FOLDER = Path(sgps_privacy.__path__[0])
MODULES = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if path.stem not in ("__init__", "engine", "gradients", "audit", "attacks")
)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_needs_no_torch(module: str) -> None:
    program = (
        f"import sys, sgps_privacy.{module}; sys.exit(bool({{'torch', 'opacus', 'flwr', 'httpx'}} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(FOLDER.parent)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


def test_only_the_engine_imports_opacus_and_nobody_the_science() -> None:
    for path in FOLDER.glob("*.py"):
        imports = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {a.name for n in imports for a in n.names} | {
            n.module or "" for n in imports if isinstance(n, ast.ImportFrom)
        }
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"sgps", "sgps_client", "sgps_server", "flwr", "pickle", "random"}, path.name
        assert "opacus" not in roots or path.stem == "engine"
