"""Everything about a classifier but its weights: kept beside them, for the program that uses it and the person who judges it."""

from typing import Annotated, Any

from pydantic import Field

from sgps.calibration import Calibration
from sgps.foreign import Foreign
from sgps.plan import Hex
from sgps.settings import Settings


class Disease(Settings):
    """One disease that was asked for. exemplars: pictures; own: patients of the site; worth: of the class memory's row, 0: unused."""

    label: str
    id: str | None
    text: str
    exemplars: Annotated[int, Field(ge=1)]
    own: Annotated[int, Field(ge=0)]
    worth: Annotated[float, Field(ge=0)]


class Origin(Settings):
    """domain: kind of picture. rivals, negatives, rehearsed: ids of bank classes. learned: learned parts that were on.

    cosine: of centred features of the exemplars before and after the generated body moved them; 1 where the body is the base.
    seconds: that synthesis took, all of it, and the weights alone.
    """

    release: str
    release_sha256: Hex
    bank_sha256: Hex
    encoder_sha256: Hex
    licence: str
    domain: str
    diseases: Annotated[tuple[Disease, ...], Field(min_length=1)]
    rivals: tuple[str, ...]
    negatives: tuple[str, ...]
    rehearsed: tuple[str, ...]
    learned: tuple[str, ...]
    cosine: float
    provenance: tuple[dict[str, Any], ...]
    seconds: dict[str, float]


class Record(Settings):
    """calibration.json: everything about a classifier but its weights. format: 1 knows no `foreign`, and is read as before."""

    format: Annotated[int, Field(ge=1, le=2)] = 2
    architecture: str
    size: Annotated[int, Field(ge=32, le=1024)]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    views: Annotated[int, Field(ge=1, le=8)]
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    ids: tuple[str | None, ...]  # catalogue or bank id of each label, where there is one
    calibration: Calibration
    foreign: Foreign | None = None  # none where the bank holds no other kind of picture
    origin: Origin
    notes: tuple[str, ...] = ()
    files: dict[str, str] = {}
