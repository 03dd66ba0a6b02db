"""YAML with traps becomes an error that names the place, never a surprise."""

from pathlib import Path

import pytest

from sgps.errors import ConfigError, InputError
from sgps.settings import Settings, dump, load, parse


class Budget(Settings):
    epsilon: float
    name: str = "first"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epsilon: 1\nepsilon: 2\n", "line 2: 'epsilon' appears twice"),
        ("epsilon: yes\n", "epsilon: Input should be a valid number"),
        ("epsilon: .nan\n", "epsilon: Input should be a valid number"),
        ("epsilon: nan\n", "epsilon: Input should be a finite number"),
        ("epsilon: inf\n", "epsilon: Input should be a finite number"),
        ("epsilon: null\n", "no null"),
        ("epsilon: &a 1\nname: *a\n", "no anchor, alias or tag"),
        ("epsilon: !!python/object:os.system 1\n", "no anchor, alias or tag"),
        ("epsilon: 1\nepsilom: 2\n", "epsilom: Extra inputs are not permitted"),
        ("epsilon: 1\nname: ''\n", "name: String should have at least 1 character"),
        ("epsilon: [\n", "line 2"),
        ("name: first\n", "epsilon: Field required"),
        ("epsilon: " + "[" * 3000, "nested too deeply"),
    ],
)
def test_bad_yaml_is_one_line_that_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(file, Budget)
    assert message in str(error.value) and "site.yaml" in str(error.value) and "\n" not in str(error.value)


def test_numbers_keep_their_meaning(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("epsilon: 1e-5\nname: 0600\n")
    assert load(file, Budget) == Budget(epsilon=1e-5, name="0600")


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "none.yaml", Budget)
    (tmp_path / "bin.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "bin.yaml", Budget)


def test_dump_is_read_back() -> None:
    twice = {"a": "b"}
    data = {"name": "north", "list": ["a", "b"], "text": "two\nlines: here", "one": twice, "two": twice}
    assert parse(dump(data), "text") == data
