"""YAML read into frozen pydantic models. Every scalar stays text until the model gives it a type.

Plain YAML keeps the last of two equal keys, reads `1e-5` as text and `0600` as 384, and turns `yes` into True, which pydantic
would take for the number 1.0. Here a key written twice, an anchor, an alias, a tag and a null are errors.
"""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sgps.errors import ConfigError
from sgps.files import read_limited

LIMIT = 4 << 20  # bytes; larger settings are a mistake


class Settings(BaseModel):
    """Frozen. An unknown key, an empty text, an infinity or a NaN is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        str_min_length=1,
        validate_default=True,
        hide_input_in_errors=True,
    )


S = TypeVar("S", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Every scalar stays text. A key written twice is an error."""

    yaml_implicit_resolvers = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        keys = [key.value for key, _ in node.value]
        for place, (key, _) in enumerate(node.value):
            if key.value in keys[:place]:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} appears twice", problem_mark=key.start_mark)
        return mapping


def parse(text: str, where: object) -> Any:
    """YAML text to mappings, lists and text. Raises ConfigError that names the line."""
    try:
        for token in yaml.scan(text, Loader=_Loader):
            if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
                raise yaml.MarkedYAMLError(problem="no anchor, alias or tag is allowed", problem_mark=token.start_mark)
            if isinstance(token, yaml.ScalarToken) and token.plain and token.value in {"~", "null"}:
                raise yaml.MarkedYAMLError(problem="no null: leave the key out", problem_mark=token.start_mark)
        return yaml.load(text, Loader=_Loader) or {}  # noqa: S506, TID251
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(str(error.problem), where=f"{where}{line}", do="correct the file") from error
    except yaml.YAMLError as error:
        raise ConfigError("is not YAML", where=where, do=str(error)) from error
    except RecursionError as error:
        raise ConfigError("is nested too deeply", where=where, do="correct the file") from error


def problems(error: ValidationError) -> list[str]:
    """One line for each key that does not fit."""
    return [
        f"{'.'.join(str(p) for p in e['loc']) or 'file'}: {e['msg'].removeprefix('Value error, ')}"
        for e in error.errors()
    ]


def load(path: Path, model: type[S]) -> S:
    """Read one YAML file into one model. Raises ConfigError that names the line or every key that does not fit."""
    try:
        text = read_limited(path, LIMIT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", where=path) from error
    try:
        return model.model_validate(parse(text, path))
    except ValidationError as error:
        raise ConfigError("; ".join(problems(error)), where=path, do="correct the file") from error


class _Dumper(yaml.SafeDumper):
    """Writes a value that occurs twice twice: `parse` takes no alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(data: Any) -> str:
    """Mappings, lists and scalars as YAML text in the given order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
