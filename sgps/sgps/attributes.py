"""Signed attributes of a clinical text: +1 stated, -1 stated absent, 0 not stated.

Sentence embeddings hardly see negation, so what a text states is also read by a small parser: phrases of a vocabulary, and the
words that deny them. A vocabulary belongs to a domain. That of dermoscopy is shared with the drawn lesions (`sgps.draw`); the
one of breast ultrasound follows the ACR BI-RADS lexicon. To be reviewed by physicians of each field.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from sgps.errors import InputError
from sgps.phrases import PHRASES
from sgps.vocabulary import ATTRIBUTES

_CHEST: Final = {
    "lung fields": ("clear", "lobar consolidation", "patchy opacity", "interstitial opacity"),
    "extent": ("focal", "multifocal", "bilateral diffuse"),
    "chest signs": ("air bronchogram", "perihilar thickening", "hyperinflation", "pleural effusion"),
}
_BREAST: Final = {
    "mass": ("none", "oval", "round", "irregular shape"),
    "orientation": ("parallel", "not parallel"),
    "margin": ("circumscribed", "indistinct", "angular", "microlobulated", "spiculated"),
    "echoes": ("anechoic", "hypoechoic", "isoechoic", "hyperechoic", "heterogeneous"),
    "posterior": ("none", "enhancement", "shadowing"),
}
_HISTOLOGY: Final = {
    "architecture": ("thin alveolar septa", "glandular", "solid nests"),
    "nuclei": ("small regular", "pleomorphic"),
    "tissue signs": ("mucin", "keratin pearls", "intercellular bridges", "mitoses"),
}

VOCABULARIES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = MappingProxyType(
    {
        "dermoscopy": ATTRIBUTES,
        "drawn": ATTRIBUTES,
        "chest x-ray": _CHEST,
        "breast ultrasound": _BREAST,
        "lung histology": _HISTOLOGY,
    }
)
"""Domain -> group -> values. No two different vocabularies share a group."""

_DRAWN: Final = "drawn"
NAMES: Final[tuple[str, ...]] = tuple(
    f"{'drawn ' if domain == _DRAWN else ''}{group}: {value}"
    for domain, groups in sorted(VOCABULARIES.items(), key=lambda item: item[0] == _DRAWN)
    for group, values in groups.items()
    for value in values
)
"""The coordinates of an attribute vector: `"group: value"` of all real domains, those of dermoscopy first, then the drawn ones.

A drawing and a photograph of the same attribute have coordinates of their own: what drawn classes teach says nothing about patients.
"""

_NO_KIND: Final = "none"
_MARK: Final = re.compile(
    r"[.;:!?()]|\b(?:but|however|with|although|whereas|instead|yet|while)\b|\band (?:an?|the|its)\b"
)
_DENY: Final = re.compile(
    r"\b(?:no|not|without|lacks?|lacking|neither|nor|never|(?:absence|lack|free|devoid) of)\b(?! (?:absent|lacking|missing)\b)"
)
_DENIED: Final = re.compile(
    r"\b(?:absent|missing|lacking|(?:not|never) (?:\w+ )?(?:seen|present|visible|found|observed|detected|identified|evident))\b"
)
_AFFIRMED: Final = re.compile(r"\bnot (?:absent|lacking|missing)\b")
_DOUBT: Final = re.compile(r"\b(?:rarely|seldom|sometimes|occasional(?:ly)?|may|might|can|possibl[ey])\b")
_LOOKS: Final = frozenset({"symmetry", "border", "colours"})
_LONGEST_ITEM: Final = 5  # words of one item in "no a, b or c"


@dataclass(frozen=True)
class _Phrase:
    """names: the attributes it names; none for a structure of whatever kind. stated, denied: the signs that follow."""

    group: str
    pattern: re.Pattern[str]
    names: tuple[str, ...]
    stated: Mapping[str, int]
    denied: Mapping[str, int]


def _phrase(group: str, values: tuple[str, ...], value: str, pattern: str) -> _Phrase:
    none, kinds = f"{group}: {_NO_KIND}", [f"{group}: {v}" for v in values if v != _NO_KIND]
    names = tuple(f"{group}: {v}" for v in value.split("|")) if value else ()
    stated, denied = dict.fromkeys(names, 1), dict.fromkeys(names or kinds, -1)
    if _NO_KIND in values:
        stated[none] = -1
        if not names or len(kinds) == 1:
            denied[none] = 1
    return _Phrase(group, re.compile(rf"\b(?:{pattern})\b"), names, stated, denied)


@cache
def _phrases(domain: str) -> tuple[_Phrase, ...]:
    """Raises InputError for a domain without a vocabulary."""
    if domain not in VOCABULARIES:
        raise InputError(f"no attribute vocabulary for domain {domain!r}", do=f"use one of {', '.join(VOCABULARIES)}")
    groups = VOCABULARIES[domain]
    return tuple(_phrase(group, groups[group], value, pattern) for group, value, pattern in PHRASES if group in groups)


def plain(text: str) -> str:
    """Lower case, hyphens as spaces, British spelling, single spaces: what the phrases are written in."""
    text = re.sub(r"[-‐‑–/]", " ", text.lower())
    text = text.replace("color", "colour").replace("gray", "grey")
    return " ".join(text.split())


@dataclass(frozen=True)
class _Denial:
    """cue: where the word of denial stands. start, end: what it denies. last: end of a list of items joined by "or"."""

    cue: int
    start: int
    end: int
    last: int


def _reach(cue: re.Pattern[str], text: str) -> Iterator[_Denial]:
    """A cue reaches to the next comma, or over the items of a list that ends with "or" ("no a, b or c"), within its clause."""
    for match in cue.finditer(text):
        mark = _MARK.search(text, match.end())
        pieces = text[match.end() : mark.start() if mark else len(text)].split(",")
        listed = 0
        for place, piece in enumerate(pieces[1:], start=1):
            joined = re.search(r"\b(?:or|nor)\b", piece)
            if (
                len(piece.split()) > _LONGEST_ITEM * (2 if joined else 1)
                or _DENY.search(piece)
                or _DENIED.search(piece)
            ):
                break
            if joined:
                listed = place
        end = match.end() + len(pieces[0])
        yield _Denial(match.start(), match.start(), end, match.end() + len(",".join(pieces[: listed + 1])))


def _denied_before(text: str) -> Iterator[_Denial]:
    """What is denied by the words after it: "network and streaks are absent"."""
    for match in _DENIED.finditer(text):
        if not _AFFIRMED.search(text[max(0, match.start() - 4) : match.end()]):
            start = max([m.end() for m in _MARK.finditer(text, 0, match.start())], default=0)
            start = max(start, text.rfind(",", start, match.start()) + 1)
            yield _Denial(match.start(), start, match.end(), match.end())


def _is_denied(at: int, group: str, denials: Sequence[_Denial], taken: Sequence["_Hit"]) -> bool:
    """Items of a list after "no" are denied too, but "no network, pink or red" says nothing against the colours."""
    for denial in denials:
        if denial.start <= at < denial.end:
            return True
        if denial.end <= at < denial.last:
            first = {h.phrase.group for h in taken if denial.start <= h.start < denial.end}
            if group not in _LOOKS or group in first:
                return True
    return False


@dataclass(frozen=True)
class _Hit:
    start: int
    end: int
    phrase: _Phrase


def parse(text: str, domain: str = "dermoscopy") -> dict[str, int]:
    """`"group: value"` -> +1 or -1, for what the text states or denies; what it contradicts itself about is left out.

    Raises InputError for a domain without a vocabulary.
    """
    text = plain(text)
    hits = [_Hit(*m.span(), p) for p in _phrases(domain) for m in p.pattern.finditer(text)]
    taken: list[_Hit] = []
    for hit in sorted(
        hits, key=lambda h: (h.start - h.end, h.start)
    ):  # longer phrases first: "red lacunae" before "red"
        if all(hit.end <= t.start or hit.start >= t.end for t in taken):
            taken.append(hit)
    # a cue inside a phrase belongs to it: "not parallel"
    cues = [c for c in _reach(_DENY, text) if not any(t.start <= c.cue < t.end for t in taken)]
    denials, doubts = [*cues, *_denied_before(text)], list(_reach(_DOUBT, text))
    outright: dict[str, set[int]] = {}
    implied: dict[str, set[int]] = {}
    for hit in taken:
        phrase = hit.phrase
        if any(d.start <= hit.start < d.end for d in doubts):
            continue
        denied = _is_denied(hit.start, phrase.group, denials, taken)
        for name, sign in (phrase.denied if denied else phrase.stated).items():
            target = outright if name in phrase.names else implied
            target.setdefault(name, set()).add(sign)
    merged = implied | outright  # what is said of one value outweighs what is said of its group
    return {name: next(iter(signs)) for name, signs in merged.items() if len(signs) == 1}


def vector(signs: Mapping[str, int], domain: str = "dermoscopy") -> npt.NDArray[np.float32]:
    """float32 [len(NAMES)] in {-1, 0, +1}. Raises InputError for an attribute that no vocabulary has."""
    kind = "drawn " if domain == _DRAWN else ""
    placed = {f"{kind}{name}": sign for name, sign in signs.items()}
    if unknown := sorted(set(placed) - set(NAMES)):
        raise InputError(f"unknown attribute {unknown[0]!r}", do="use a name of sgps.attributes.NAMES")
    return np.array([placed.get(name, 0) for name in NAMES], dtype=np.float32)
