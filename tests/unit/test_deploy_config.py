"""The example settings under deploy/config: complete, explained, and good as they stand."""

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from sgps.settings import load, parse
from sgps_client.config import SiteConfig
from sgps_server.config import Federation

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "config"
EXAMPLES = [("site.example.yaml", SiteConfig), ("federation.example.yaml", Federation)]


def models(kind: Any) -> Iterator[type[BaseModel]]:
    """Models within a field's type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif typing.get_origin(kind) in {tuple, list, typing.Annotated, typing.Union, types.UnionType}:
        for part in typing.get_args(kind):
            yield from models(part)


def keys(model: type[BaseModel], place: str = "") -> Iterator[str]:
    """Every key that a file of this model can have, with its place."""
    for name, field in model.model_fields.items():
        yield place + name
        for inner in models(field.annotation):
            yield from keys(inner, f"{place}{name}.")


def written(data: Any, place: str = "") -> Iterator[str]:
    """Every key of a file with its place."""
    if isinstance(data, dict):
        for name, value in data.items():
            yield place + name
            yield from written(value, f"{place}{name}.")
    elif isinstance(data, list):
        for value in data:
            yield from written(value, place)


@pytest.mark.parametrize(("name", "model"), EXAMPLES)
def test_an_example_loads_with_the_programs_own_model(name: str, model: type[BaseModel]) -> None:
    load(CONFIG / name, model)


@pytest.mark.parametrize(("name", "model"), EXAMPLES)
def test_an_example_shows_every_key(name: str, model: type[BaseModel]) -> None:
    missing = set(keys(model)) - set(written(parse((CONFIG / name).read_text(), name)))
    assert not missing


@pytest.mark.parametrize("name", [name for name, _ in EXAMPLES])
def test_every_key_of_an_example_is_explained(name: str) -> None:
    before = top = ""
    for line in (CONFIG / name).read_text().splitlines():
        key = re.match(r"(\s*)(?:- )?(\w+):", line)
        if key and not key[1]:
            top = key[2]
        own_label = key and key[1] and top == "classes"  # keys there are a site's own words
        assert not key or own_label or " # " in line or before.lstrip().startswith("#"), line
        before = line


def test_the_examples_belong_together() -> None:
    site, federation = load(CONFIG / EXAMPLES[0][0], SiteConfig), load(CONFIG / EXAMPLES[1][0], Federation)
    assert (site.federation.name, site.federation.url) == (federation.name, federation.url)
    assert federation.url.endswith(f":{federation.listen.port}")
    (cohort,) = site.cohorts
    assert (cohort.budget.epsilon, cohort.budget.delta) == (federation.epsilon, federation.delta), (
        "one round of the example federation is what the example cohort can pay"
    )
