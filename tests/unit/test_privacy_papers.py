"""The officer's papers name a test for every claim, and each of these tests exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "docs" / "explanation" / "privacy.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def claims(text: str) -> dict[str, list[tuple[str, str]]]:
    """Rows of the table of claims: number -> tests."""
    return {m[1]: TEST.findall(m[0]) for m in re.finditer(r"^\| (P\d+) \|.*$", text, re.MULTILINE)}


def faults(text: str) -> list[str]:
    found = claims(text)
    missing = [name for name, tests in found.items() if not tests]
    unknown = [
        f"{path}::{name}"
        for path, name in TEST.findall(text)
        if not (ROOT / path).is_file()
        or not re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    return [*missing, *unknown]


def test_every_claim_names_tests_that_exist() -> None:
    text = PAPER.read_text()
    assert list(claims(text)) == [f"P{n}" for n in range(1, len(claims(text)) + 1)]
    assert len(claims(text)) > 20
    assert faults(text) == []


@pytest.mark.parametrize(
    "planted",
    [
        "| P1 | a claim without a test | |",
        "| P1 | a claim | `tests/unit/test_privacy_papers.py::test_that_is_not_there` |",
        "| P1 | a claim | `tests/unit/test_no_such_file.py::test_x` |",
    ],
)
def test_a_claim_without_a_test_is_noticed(planted: str) -> None:
    assert faults(planted)


def test_claims_that_other_papers_name_exist() -> None:
    known = set(claims(PAPER.read_text()))
    for paper in (ROOT / "docs" / "templates" / "dpia.md", ROOT / "docs" / "sharp-edges.md"):
        assert set(re.findall(r"\bP\d+\b", paper.read_text())) <= known
