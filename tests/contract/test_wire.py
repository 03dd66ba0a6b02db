"""The committed messages are those of the .proto file.

Made anew, in the root of the repository, by an interpreter that has grpcio-tools:

    python tests/contract/test_wire.py
"""

import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "sgps" / "sgps" / "wire"
PROTO = FOLDER / "releases.proto"
HEAD = "# Made from releases.proto by tests/contract/test_wire.py: change that file, not this one.\n# mypy: ignore-errors\n# ruff: noqa\n# fmt: off\n"


def generated() -> dict[str, str]:
    """File name -> content, from protoc."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{ROOT / 'sgps'}",
            f"--python_out={out}",
            f"--pyi_out={out}",
        ]
        subprocess.run([*command, str(PROTO)], check=True, timeout=60)
        return {file.name: HEAD + file.read_text() for file in sorted((Path(out) / "sgps" / "wire").iterdir())}


def declared() -> dict[str, list[tuple[str, str, str]]]:
    """Message -> (type, field, number), read from the .proto file by hand."""
    text = re.sub(r"//.*", "", PROTO.read_text())
    bodies = re.findall(r"message (\w+) \{([^}]*)\}", text)
    field = re.compile(r"(?:repeated )?([\w<>, ]+?) (\w+) = (\d+);")
    return {name: field.findall(body) for name, body in bodies}


def test_messages_fields_and_numbers_are_those_of_the_proto_file() -> None:
    from sgps.wire import releases_pb2

    found = declared()
    built = {n: m for n, m in releases_pb2.DESCRIPTOR.message_types_by_name.items()}
    assert set(built) == set(found) and len(found) > 10
    for name, message in built.items():
        assert [(f.name, str(f.number)) for f in message.fields] == [(f, n) for _, f, n in found[name]], name
    service = releases_pb2.DESCRIPTOR.services_by_name["Releases"]
    calls = re.findall(r"rpc (\w+)\((\w+)\) returns \((?:stream )?(\w+)\)", PROTO.read_text())
    assert [(m.name, m.input_type.name, m.output_type.name) for m in service.methods] == calls


@pytest.mark.skipif(
    find_spec("grpc_tools") is None, reason="needs grpcio-tools, which only the making of the messages needs"
)
def test_protoc_gives_the_committed_files_again() -> None:
    for name, text in generated().items():
        assert (FOLDER / name).read_text() == text, name


if __name__ == "__main__":
    for name, text in generated().items():
        (FOLDER / name).write_text(text)
