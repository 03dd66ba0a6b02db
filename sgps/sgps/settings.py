"""YAML read into frozen pydantic models. Every scalar stays text until the model gives it a type.

Plain YAML keeps the last of two equal keys, reads `1e-5` as text and `0600` as 384, and turns `yes` into True, which pydantic
would take for the number 1.0. Here a key written twice, an anchor, an alias, a tag and a null are errors.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

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
    """Every scalar stays text. A key written twice, an anchor, an alias, a tag and a null are errors, found in the one pass that reads
    the text: a release's manifest is read at every round."""

    yaml_implicit_resolvers = {}

    def fetch_anchor(self) -> None:
        self._refuse("no anchor, alias or tag is allowed")

    fetch_alias = fetch_tag = fetch_anchor

    def fetch_plain(self) -> None:
        start = self.get_mark()
        super().fetch_plain()
        if self.tokens[-1].value in {"~", "null"}:
            self._refuse("no null: leave the key out", start)

    def _refuse(self, problem: str, mark: Any = None) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark or self.get_mark())

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
    return [f"{_key(e['loc'])}{_what(e)}" for e in error.errors()]


def faults(error: ValidationError, model: type[BaseModel], text: str, where: object) -> list[ConfigError]:
    """One error for each key that does not fit: its line in the YAML `text`, what stands there, and what to write."""
    return [
        ConfigError(f"{_key(e['loc'])}{_what(e)}", where=f"{where}{_line(text, e['loc'])}", do=_do(e, model))
        for e in error.errors()
    ]


def _key(place: Sequence[int | str]) -> str:
    return f"{'.'.join(map(str, place))}: " if place else ""


def _what(e: Any) -> str:
    """pydantic's text, with the value instead of the word `Input`, and plain words for a missing and an unknown key."""
    if e["type"] == "missing":
        return "is missing"
    if e["type"] == "extra_forbidden":
        return "there is no such key"
    text, value = str(e["msg"]).removeprefix("Value error, "), e["input"]
    if isinstance(value, str | int | float):
        return text.replace("Input should", f"{str(value)[:40]!r} should").replace(
            "String should", f"{value[:40]!r} should" if isinstance(value, str) else "it should"
        )
    return text.replace("Input should", "it should").replace("dictionary", "mapping of keys")


def _do(e: Any, model: type[BaseModel]) -> str:
    """The next step: the key that may have been meant, or how the value may look (`examples` of the field)."""
    name = str(e["loc"][-1]) if e["loc"] else ""
    fields = next(iter(_models(model, e["loc"][:-1])), model).model_fields
    if e["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, fields, n=1)
        return f"did you mean `{near[0]}`?" if near else f"remove it; the keys are {', '.join(fields)}"
    if name in fields and (examples := fields[name].examples):
        return f"write for example `{name}: {examples[0]}`"
    if not name:
        return "complete the file"
    return f"write `{name}:` with its value" if e["type"] == "missing" else "correct it"


def _models(kind: Any, place: Sequence[int | str]) -> Iterator[type[BaseModel]]:
    """The models that a path of keys and list places leads to."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not place:
            yield kind
        elif field := kind.model_fields.get(str(place[0])):
            yield from _models(field.annotation, place[1:])
        return
    for inner in get_args(kind):  # a tuple or a mapping takes one step, a union none
        yield from _models(inner, place[1:] if place and isinstance(place[0], int) else place)


def _line(text: str, place: Sequence[int | str]) -> str:
    """` line N` of the deepest part of the path that stands in the text."""
    node, line = yaml.compose(text, Loader=_Loader), 0
    for part in place:
        if isinstance(node, yaml.MappingNode):
            key, node = next(((k, v) for k, v in node.value if k.value == str(part)), (None, None))
            if key is None:
                break
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return f" line {line}" if line else ""


def load(path: Path, model: type[S]) -> S:
    """Read one YAML file into one model. Raises ConfigError that names the line, or line and key of everything that does not fit."""
    try:
        text = read_limited(path, LIMIT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", where=path, do="save it as UTF-8") from error
    try:
        return model.model_validate(parse(text, path))
    except ValidationError as error:
        raise ConfigError.of(faults(error, model, text, path)) from error


class _Dumper(yaml.SafeDumper):
    """Writes a value that occurs twice twice: `parse` takes no alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(data: Any) -> str:
    """Mappings, lists and scalars as YAML text in the given order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
