"""The catalogue: the public list of classes with their names, clinical texts and signed attributes.

A name or synonym leads to exactly one class. Texts are written without looking at any image. The shipped catalogue holds skin
diseases, a few other domains, and the drawn classes of the demonstration; a federation may bring its own.
"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from sgps.attributes import VOCABULARIES
from sgps.plan import ClassId
from sgps.settings import Settings, load

SHIPPED: Final = Path(__file__).parent / "assets" / "catalogue.yaml"
_SPELLINGS: Final = (
    ("æ", "ae"),
    ("œ", "oe"),
    ("naev", "nev"),
    ("haem", "hem"),
    ("tumour", "tumor"),
    ("oedem", "edem"),
    ("keratinis", "keratiniz"),
    ("rrhoe", "rrhe"),
)
_SAID: Final = re.compile(r"[a-z]{3,}")


class Embeds(Protocol):
    """What `sgps.text.TextEncoder` does."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]: ...


def normal(name: str) -> str:
    """A name as `Catalogue.find` compares it: no case, diacritics, punctuation or difference of British and American spelling."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(c))
    for british, american in _SPELLINGS:
        bare = bare.replace(british, american)
    return " ".join(re.sub(r"[^\w]|_", " ", re.sub("['’`]", "", bare)).split())


class Entry(Settings):
    """One class. present, absent: group -> values of the domain's vocabulary that the disease shows, or that speak against it."""

    id: ClassId
    name: str
    synonyms: Annotated[tuple[str, ...], Field(max_length=50)] = ()
    domain: str
    text: Annotated[str, Field(max_length=2000)]
    present: dict[str, tuple[str, ...]] = {}
    absent: dict[str, tuple[str, ...]] = {}

    @model_validator(mode="after")
    def _in_vocabulary(self) -> "Entry":
        if self.domain not in VOCABULARIES:
            raise ValueError(f"{self.id}: unknown domain {self.domain!r}; use one of {', '.join(VOCABULARIES)}")
        groups = VOCABULARIES[self.domain]
        for field in (self.present, self.absent):
            for group, values in field.items():
                if group not in groups:
                    raise ValueError(f"{self.id}: unknown attribute group {group!r}; use one of {', '.join(groups)}")
                for value in values:
                    if value not in groups[group]:
                        use = ", ".join(groups[group])
                        raise ValueError(f"{self.id}: unknown attribute value {value!r} of {group!r}; use one of {use}")
        for group in self.present.keys() & self.absent.keys():
            if both := sorted(set(self.present[group]) & set(self.absent[group])):
                raise ValueError(f"{self.id}: {group} {both[0]!r} is both present and absent")
        return self

    @property
    def attributes(self) -> dict[str, int]:
        """`"group: value"` -> +1 present or -1 absent; what is not named is not stated."""
        signs = {f"{group}: {value}": 1 for group, values in self.present.items() for value in values}
        return signs | {f"{group}: {value}": -1 for group, values in self.absent.items() for value in values}

    @property
    def names(self) -> tuple[str, ...]:
        """Everything by which `Catalogue.find` knows the class."""
        return (self.id, self.name, *self.synonyms)


class Catalogue(Settings):
    """All classes, in the order of the file. note: where the texts come from and who has reviewed them."""

    note: str
    entries: Annotated[tuple[Entry, ...], Field(min_length=1, max_length=10_000)]

    @model_validator(mode="after")
    def _no_name_twice(self) -> "Catalogue":
        seen: dict[str, tuple[str, int]] = {}
        for place, entry in enumerate(self.entries):
            for name in entry.names:
                key = normal(name)
                if not key:
                    raise ValueError(f"{entry.id}: the name {name!r} holds no letter or digit")
                other, where = seen.setdefault(key, (entry.id, place))
                if where != place:
                    kind = "id" if name == entry.id == other else "name or synonym"
                    raise ValueError(f"{entry.id}: the {kind} {name!r} is already that of {other}")
        return self

    @classmethod
    def load(cls, path: Path = SHIPPED) -> "Catalogue":
        """Raises InputError when the file cannot be read, ConfigError that names the entry and what is wrong with it."""
        return load(path, cls)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(entry.id for entry in self.entries)

    @cached_property
    def _by_name(self) -> dict[str, Entry]:
        return {normal(name): entry for entry in self.entries for name in entry.names}

    def find(self, name: str) -> Entry | None:
        """The class of this id, name or synonym, whatever its case, spaces, hyphens, diacritics and spelling; or None."""
        return self._by_name.get(normal(name))

    def nearest(self, text: str, n: int = 5, encoder: Embeds | None = None) -> list[Entry]:
        """The n classes nearest to a name or a clinical text, best first.

        With a text encoder by the cosine to name and text, else by letters of the names and words of the texts. Raises InputError
        for an empty text with an encoder.
        """
        by_letters = np.array([_likeness(text, entry) for entry in self.entries])
        if encoder is None:
            score = by_letters
        else:
            rows = encoder.embed([text, *(f"{e.name}. {e.text}" for e in self.entries)])
            # one typing error in a name must not lead far away: almost the same letters count as the same name
            score = np.maximum(rows[1:] @ rows[0], np.where(by_letters > 0.9, by_letters, 0))
        return [self.entries[i] for i in np.argsort(-score, kind="stable")[:n]]


def _likeness(text: str, entry: Entry) -> float:
    """0..1: the better of letters in common with a name and share of the words that the entry's text holds as well."""
    wanted = normal(text)
    letters = max(difflib.SequenceMatcher(None, wanted, normal(name)).ratio() for name in entry.names)
    words = set(_SAID.findall(wanted))
    known = set(_SAID.findall(normal(" ".join((*entry.names, entry.text)))))
    return max(letters, len(words & known) / len(words | {""}) if words else 0.0)
