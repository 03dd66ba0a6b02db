"""site.yaml: what a hospital must write itself, and how mistakes in it are told."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import site_bench

from sgps.errors import ConfigError, InputError
from sgps.settings import dump
from sgps_client.config import Site

MARK = "a" * 64


def written(folder: Path, text: str | None = None, **changes: Any) -> Path:
    file = folder / "site.yaml"
    file.write_text(dump(site_bench.settings(MARK, **changes)) if text is None else text)
    return file


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    site = Site.load(written(tmp_path, keys="secret"))
    assert site.tls_key == tmp_path.resolve() / "secret" / "site.key"
    assert site.log == tmp_path.resolve() / "log" / "client.jsonl"


def test_a_label_of_the_settings_is_spelled_as_labels_are_read(tmp_path: Path) -> None:
    assert Site.load(written(tmp_path, classes={"Na\u0308vus": "nv"})).config.classes == {"N\u00e4vus": "nv"}


def test_a_receiving_site_needs_no_budget_cohort_or_slots(tmp_path: Path) -> None:
    assert Site.load(written(tmp_path, role="receive", cohorts=None, slots=None)).config.cohorts == ()


def cohort(**changes: Any) -> list[dict[str, Any]]:
    found = {**site_bench.settings(MARK)["cohorts"][0], **changes}
    return [{k: v for k, v in found.items() if v is not None}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cohorts": None}, "at least one cohort"),
        ({"slots": None}, "slots"),
        ({"cohorts": cohort(budget=None)}, "cohorts.0.budget"),
        ({"cohorts": cohort(budget={"epsilon": 3.0})}, "cohorts.0.budget.delta"),
        ({"cohorts": cohort(budget={"epsilon": 0, "delta": 1e-5})}, "cohorts.0.budget.epsilon"),
        ({"cohorts": cohort(budget={"epsilon": "yes", "delta": 1e-5})}, "cohorts.0.budget.epsilon"),
        ({"cohorts": cohort(unit_column=None)}, "cohorts.0.unit_column"),
        ({"cohorts": cohort(unit_column="Patient (KIS)")}, "cohorts.0.unit_column"),
        ({"cohorts": [*cohort(), *cohort()]}, "appears twice"),
        ({"role": "both"}, "role"),
        ({"site": "North Hospital"}, "site"),
        ({"surprise": 1}, "surprise"),
        ({"limits": {"least_sigma": 0.1}}, "limits.least_sigma"),
        ({"limits": {"most_clip": 2}}, "limits.most_clip"),
        ({"federation": {"name": "d", "url": "http://x:1", "fingerprint": MARK}}, "federation.url"),
        ({"federation": {"name": "d", "url": "https://x:1", "fingerprint": "abc"}}, "federation.fingerprint"),
    ],
)
def test_each_mistake_is_one_line_that_names_the_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    import copy

    with pytest.raises(ConfigError) as caught:
        Site.load(written(tmp_path, **copy.deepcopy(changes)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("site: north\nsite: south\n", "appears twice"),
        ("site: [north\n", "line"),
        ("site: *a\n", "anchor"),
        ("slots: null\n", "null"),
        ("- a\n- b\n", "it should be a valid mapping of keys"),
        ("", "site"),
    ],
)
def test_yaml_that_is_not_settings_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Site.load(written(tmp_path, text))


def test_a_missing_or_binary_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file.*site's folder.*--config.*enroll"):
        Site.load(tmp_path / "site.yaml")
    (tmp_path / "site.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        Site.load(tmp_path / "site.yaml")
