"""What a classifier was made from: kept beside its weights, for the person who must judge it."""

from typing import Annotated, Any

from pydantic import Field

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
