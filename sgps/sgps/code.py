"""Which code runs here: a hash over the installed sources, named in plans, replies and releases."""

import hashlib
import importlib.util
from functools import cache
from pathlib import Path


@cache
def code_sha256(*packages: str) -> str:
    """Hex SHA-256 over names and bytes of every .py and .yaml file of the installed packages, in sorted order.

    Data under `assets/` is not code: releases and the catalogue have hashes of their own.

    Raises ModuleNotFoundError when a package is not installed.
    """
    digest = hashlib.sha256()
    for package in sorted(packages):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(package)
        root = Path(next(iter(spec.submodule_search_locations)))
        for file in sorted(
            p for p in root.rglob("*") if p.suffix in {".py", ".yaml"} and "assets" not in p.relative_to(root).parts
        ):
            name = f"{package}/{file.relative_to(root).as_posix()}"
            digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def contributor_code() -> str:
    """The hash that a plan accepts or not: everything that touches a patient's record at a site."""
    return code_sha256("sgps", "sgps_privacy", "sgps_client")
