"""The recipe of the generator's meta-training."""

from pathlib import Path
from typing import Final

from pydantic import Field, model_validator

from sgps.pretrain.recipe import Draw
from sgps.settings import Settings, load

SHIPPED: Final = Path(__file__).with_name("meta_recipe.yaml")


class LeftOut(Settings):
    """A copy of the generator that sees neither these sets nor these classes of the skin set, and is judged on them."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    sets: tuple[str, ...] = Field(min_length=1)
    classes: tuple[str, ...] = Field(min_length=2)


class HeadStage(Settings):
    """Training of the parts `head` and `text` on cached features."""

    steps: int = Field(ge=1)
    episodes: int = Field(ge=1)
    queries: int = Field(ge=1)
    rate: float = Field(gt=0)
    trunk_rate: float = Field(gt=0)
    direction: float = Field(ge=0)
    memory: float = Field(ge=0, le=1)
    rivals: float = Field(ge=0, le=1)


class BodyStage(Settings):
    """Training of the part `body` from images."""

    steps: int = Field(ge=1)
    episodes: int = Field(ge=1)
    queries: int = Field(ge=1)
    rate: float = Field(gt=0)
    drift: float = Field(ge=0)
    judged_episodes: int = Field(ge=10)


class Judge(Settings):
    """How parts are judged. bound: accuracy, 0..1."""

    episodes: int = Field(ge=10)
    queries: int = Field(ge=1)
    bound: float = Field(le=0)


class MetaRecipe(Settings):
    """Everything that shapes the generator, besides seed, base and images."""

    drawn: Draw
    judged: Draw
    lesions: int = Field(ge=8)
    texts: int = Field(ge=1)
    stated: int = Field(ge=1)
    ridge: float = Field(gt=0)
    sentence: bool
    left_out: tuple[LeftOut, ...] = Field(min_length=1)
    head: HeadStage
    body: BodyStage
    judge: Judge

    @model_validator(mode="after")
    def _apart(self) -> "MetaRecipe":
        a, b = self.drawn, self.judged
        if a.first < b.first + b.profiles and b.first < a.first + a.profiles:
            raise ValueError("drawn and judged share profiles")
        if min(a.patients, b.patients) < max(5 + self.head.queries, 5 + self.judge.queries):
            raise ValueError("five exemplars and the queries need more patients of a drawn class")
        if len({c.name for c in self.left_out}) != len(self.left_out):
            raise ValueError("two copies of left_out share a name")
        return self


def read_meta_recipe(path: Path | None) -> MetaRecipe:
    """The recipe in a YAML file, or the shipped one. Raises ConfigError that names every key that does not fit."""
    return load(path or SHIPPED, MetaRecipe)
