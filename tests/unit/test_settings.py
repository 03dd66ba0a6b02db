"""YAML with traps becomes an error that names the place, never a surprise."""

from pathlib import Path

import pytest
from pydantic import Field

from sgps.errors import ConfigError, InputError
from sgps.settings import Settings, dump, load, parse


class Budget(Settings):
    epsilon: float = Field(examples=["3.0"])
    name: str = "first"


class Cohorts(Settings):
    cohorts: tuple[Budget, ...] = ()
    last: Budget | None = None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epsilon: 1\nepsilon: 2\n", "line 2: 'epsilon' appears twice"),
        ("epsilon: yes\n", "line 1: epsilon: 'yes' should be a valid number"),
        ("epsilon: .nan\n", "epsilon: '.nan' should be a valid number"),
        ("epsilon: nan\n", "epsilon: 'nan' should be a finite number"),
        ("epsilon: inf\n", "epsilon: 'inf' should be a finite number"),
        ("epsilon: null\n", "no null"),
        ("epsilon: &a 1\nname: *a\n", "no anchor, alias or tag"),
        ("epsilon: !!python/object:os.system 1\n", "no anchor, alias or tag"),
        ("epsilon: 1\nepsilom: 2\n", "line 2: epsilom: there is no such key - did you mean `epsilon`?"),
        ("epsilon: 1\nname: ''\n", "line 2: name: '' should have at least 1 character"),
        ("epsilon: [\n", "line 2"),
        ("name: first\n", "epsilon: is missing - write for example `epsilon: 3.0`"),
        ("epsilon: " + "[" * 3000, "nested too deeply"),
    ],
)
def test_bad_yaml_is_one_line_that_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(file, Budget)
    assert message in str(error.value) and "site.yaml" in str(error.value) and "\n" not in str(error.value)


def test_every_fault_has_its_line_its_value_and_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(
        "cohorts:\n  - name: a\n    epsilon: 1\n  - name: b\n    epsylon: 1\nlast:\n  epsilon: -x; y\nstray: 1\n"
    )
    with pytest.raises(ConfigError) as error:
        load(file, Cohorts)
    assert [str(e).removeprefix(f"{file}") for e in error.value.each] == [
        " line 4: cohorts.1.epsilon: is missing - write for example `epsilon: 3.0`",
        " line 5: cohorts.1.epsylon: there is no such key - did you mean `epsilon`?",
        " line 7: last.epsilon: '-x; y' should be a valid number, unable to parse string as a number - write for example `epsilon: 3.0`",
        " line 8: stray: there is no such key - remove it; the keys are cohorts, last",
    ]
    assert "\n" not in str(error.value)


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
