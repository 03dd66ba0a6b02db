"""The recipe of a base network: image sets, schedules, and which classes no training may see."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from sgps.errors import ConfigError
from sgps.settings import Settings, load

SHIPPED = Path(__file__).with_name("recipe.yaml")


class Table(Settings):
    """Columns of a CSV file inside an image set, as HAM10000's metadata has them. `image` holds the file's stem."""

    file: str
    image: str
    label: str
    lesion: str
    site: str | None = None


class Draw(Settings):
    """A set of drawn lesions: profiles first .. first + profiles - 1, one class each, `patients` pictures a class."""

    first: int = Field(ge=0)
    profiles: int = Field(ge=1)
    patients: int = Field(ge=1, le=1000)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(f"drawn-{seed:04d}" for seed in range(self.first, self.first + self.profiles))


class ImageSet(Settings):
    """One public image set: a zip of class folders or a folder (`file`, a stem under the data folder), or `draw`."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    file: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    draw: Draw | None = None
    role: Literal["skin", "other"]
    frame: tuple[int, int]  # width, height in pixels of the cached images
    turn: bool  # may be turned freely, because it has no upright
    leave_out: tuple[str, ...]
    table: Table | None = None
    licence: str
    source: str

    @model_validator(mode="after")
    def one_origin(self) -> "ImageSet":
        if (self.file is None) == (self.draw is None):
            raise ValueError("needs either file or draw")
        if min(self.frame) < 8 or max(self.frame) > 1024:
            raise ValueError("frame must lie in 8..1024 pixels")
        return self


class Cluttered(Settings):
    """A training whose pictures may be cluttered. `clutter`: the share of them that are; 0 leaves no trace in what is written."""

    clutter: float = Field(default=0.0, ge=0, le=1)

    @model_serializer(mode="wrap")
    def without_nothing(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        out: dict[str, Any] = whole(self)
        if not self.clutter:
            out.pop("clutter", None)
        return out


class Distil(Cluttered):
    """Distillation of the teacher into the transplanted network. The teacher's pictures are never cluttered."""

    steps: int = Field(ge=1)
    horizon: int = Field(ge=1)
    batch: int = Field(ge=2)
    rate: float = Field(gt=0)
    decay_share: float = Field(gt=0, le=1)
    colour: float = Field(ge=0)
    mixed: float = Field(ge=0, le=1)
    hint: float = Field(ge=0)
    mse: float = Field(ge=0)
    cross_entropy: float = Field(ge=0)
    skin: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def stops_in_time(self) -> "Distil":
        if self.steps > self.horizon:
            raise ValueError("steps must not exceed horizon")
        return self


class Finetune(Cluttered):
    """One fine-tune from the distilled network. `keep`: the steps whose weights enter the average."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    steps: int = Field(ge=1)
    batch: int = Field(ge=2)
    rate: float = Field(gt=0)
    colour: float = Field(ge=0)
    contrast: float = Field(ge=0)
    site: float = Field(ge=0)
    skin: float = Field(gt=0, lt=1)
    keep: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def kept_steps_exist(self) -> "Finetune":
        if any(not 1 <= k <= self.steps for k in self.keep):
            raise ValueError("keep must name steps of this fine-tune")
        return self


class Recipe(Settings):
    """Everything that shapes the weights, besides seed and images.

    The skin set may be drawn: then its profiles are the base classes, as `read_recipe` fills in, and its patients the lesions.
    """

    base_classes: tuple[str, ...] = ()
    meta_test: tuple[str, ...]
    held_out: float = Field(gt=0, lt=1)
    atlas: int | None = Field(default=None, ge=2)  # at most so many lesions of a base class; all others are held out
    size: int = Field(ge=32, le=512)
    measure: bool
    sets: tuple[ImageSet, ...]
    distil: Distil
    finetune: tuple[Finetune, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def disjoint(self) -> "Recipe":
        skin = [s for s in self.sets if s.role == "skin"]
        if len(skin) != 1 or len(self.sets) < 2:
            raise ValueError("sets: one set of role skin and at least one of role other are needed")
        if repeated := _repeated([s.name for s in self.sets]) or _repeated([f.name for f in self.finetune]):
            raise ValueError(f"the name {repeated} appears twice")
        self._skin_fits(skin[0])
        if both := sorted(set(self.base_classes) & set(self.meta_test)):
            raise ValueError(f"base_classes and meta_test share {', '.join(both)}")
        if missing := sorted(set(self.meta_test) - set(skin[0].leave_out)):
            raise ValueError(f"sets.{skin[0].name}.leave_out must hold the meta-test class {', '.join(missing)}")
        return self

    def _skin_fits(self, skin: ImageSet) -> None:
        if skin.draw is None and len(self.base_classes) < 2:
            raise ValueError("base_classes: at least two are needed")
        if skin.draw is None:
            return
        if self.base_classes:
            raise ValueError(f"base_classes: leave the line out, they are the profiles of sets.{skin.name}")
        if skin.draw.profiles < 2 or skin.draw.patients - int(self.held_out * skin.draw.patients) < 2:
            raise ValueError(f"sets.{skin.name}.draw: two profiles, and two patients that are not held out, are needed")
        if self.measure:
            raise ValueError(f"measure: the frozen episodes are no images of sets.{skin.name}; use bench.networks")

    @property
    def skin(self) -> ImageSet:
        return next(s for s in self.sets if s.role == "skin")


def _repeated(names: Sequence[str]) -> str | None:
    return next((n for n in names if names.count(n) > 1), None)


def read_recipe(path: Path | None) -> Recipe:
    """The recipe in a YAML file, or the shipped one. Raises ConfigError that names every key that does not fit."""
    recipe = load(path or SHIPPED, Recipe)
    drawn = recipe.skin.draw
    return recipe if drawn is None else recipe.model_copy(update={"base_classes": drawn.classes})


def refuse_meta_test(labels: Sequence[str], recipe: Recipe, where: object) -> None:
    """Raises ConfigError when a meta-test class is among the labels of a training pool."""
    if seen := sorted({str(label) for label in labels} & set(recipe.meta_test)):
        raise ConfigError(
            f"the meta-test class {', '.join(seen)} is in the training pool",
            where=where,
            do="leave it out in the recipe",
        )
