"""Ten drawn classes for the demonstration. Their names are invented: they are drawings and stand for no disease."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sgps.draw.profile import Profile
from sgps.errors import InputError
from sgps.vocabulary import ATTRIBUTES, COLOUR_MEANS, MULTIPLE

_USUAL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "symmetry": "symmetric",
        "border": "sharp",
        "network": "none",
        "globules": "none",
        "streaks": "none",
        "structureless": "none",
        "vessels": "none",
        "centre": "none",
    }
)


def _preset(name: str, size: float, stated: Mapping[str, Mapping[str, float]]) -> tuple[str, Profile]:
    """A profile from the likely values alone; what they leave goes to the usual value of the group, or evenly."""
    chances: dict[str, tuple[float, ...]] = {}
    for group, values in ATTRIBUTES.items():
        given = stated.get(group, {})
        unknown = sorted(set(given) - set(values))
        if unknown:
            raise InputError(f"unknown value {unknown[0]}", where=f"preset {name}, group {group}")
        if group in MULTIPLE:
            chances[group] = tuple(given.get(v, 0.015) for v in values)
            continue
        rest = 1 - sum(given.values())
        usual = _USUAL[group]
        open_values = [v for v in values if v not in given and v != usual]
        to_usual = 0.0 if usual in given else rest * (0.8 if given else 0.96)
        share = (rest - to_usual) / len(open_values) if open_values else 0.0
        p = [given.get(v, to_usual if v == usual else share) for v in values]
        chances[group] = tuple(v / sum(p) for v in p)
    return name, Profile(name, chances, COLOUR_MEANS, size, 0.04)


PRESETS: Final[Mapping[str, Profile]] = MappingProxyType(
    dict(
        (
            _preset(
                "drawn-umber-reticuloma",
                0.29,
                {
                    "symmetry": {"symmetric": 0.75},
                    "border": {"blurred": 0.5, "sharp": 0.4},
                    "colours": {"light brown": 0.95, "dark brown": 0.5},
                    "network": {"typical": 0.85},
                    "globules": {"regular": 0.25},
                },
            ),
            _preset(
                "drawn-motley-polychroma",
                0.33,
                {
                    "symmetry": {"asymmetric in two axes": 0.8},
                    "border": {"irregular": 0.8},
                    "colours": {"light brown": 0.7, "dark brown": 0.9, "black": 0.55, "blue-grey": 0.5, "red": 0.3},
                    "network": {"atypical": 0.65},
                    "globules": {"irregular": 0.45},
                    "streaks": {"irregular": 0.55},
                    "structureless": {"blue-white veil": 0.4, "white regression": 0.2},
                },
            ),
            _preset(
                "drawn-sable-radiatoma",
                0.26,
                {
                    "border": {"sharp": 0.8},
                    "colours": {"dark brown": 0.95, "black": 0.5},
                    "network": {"typical": 0.2},
                    "globules": {"peripheral ring": 0.25},
                    "streaks": {"regular": 0.85},
                },
            ),
            _preset(
                "drawn-slate-nidoma",
                0.28,
                {
                    "symmetry": {"asymmetric in one axis": 0.45, "asymmetric in two axes": 0.3},
                    "border": {"sharp": 0.55, "blurred": 0.25},
                    "colours": {"pink": 0.85, "skin": 0.4, "light brown": 0.3},
                    "vessels": {"arborizing": 0.75},
                    "bcc signs": {"blue-grey ovoid nests": 0.65, "leaf-like areas": 0.3, "ulceration": 0.4},
                },
            ),
            _preset(
                "drawn-amber-fissuroma",
                0.32,
                {
                    "border": {"moth-eaten": 0.4, "sharp": 0.5},
                    "colours": {"light brown": 0.85, "dark brown": 0.45, "yellow": 0.45},
                    "vessels": {"hairpin": 0.35},
                    "keratin": {"milia-like cysts": 0.7, "comedo-like openings": 0.6, "ridges and fissures": 0.5},
                },
            ),
            _preset(
                "drawn-coral-squamoma",
                0.29,
                {
                    "symmetry": {"asymmetric in one axis": 0.4},
                    "border": {"blurred": 0.5, "irregular": 0.3},
                    "colours": {"red": 0.7, "pink": 0.6, "light brown": 0.25},
                    "vessels": {"glomerular": 0.45, "dotted": 0.4},
                    "keratin": {"surface scale": 0.75},
                },
            ),
            _preset(
                "drawn-pearl-cicatroma",
                0.25,
                {
                    "border": {"blurred": 0.6},
                    "colours": {"light brown": 0.9, "pink": 0.3},
                    "network": {"delicate at the edge": 0.75},
                    "vessels": {"dotted": 0.2},
                    "centre": {"white scar-like patch": 0.85},
                },
            ),
            _preset(
                "drawn-azure-lacunoma",
                0.26,
                {
                    "border": {"sharp": 0.85},
                    "colours": {"red": 0.7, "purple": 0.5, "blue-grey": 0.3},
                    "structureless": {"blue-white veil": 0.2},
                    "vascular": {"red lacunae": 0.7, "purple lacunae": 0.5, "black lacunae": 0.15},
                },
            ),
            _preset(
                "drawn-russet-globuloma",
                0.27,
                {
                    "symmetry": {"symmetric": 0.65},
                    "border": {"sharp": 0.5, "blurred": 0.4},
                    "colours": {"light brown": 0.85, "dark brown": 0.5, "skin": 0.25},
                    "globules": {"regular": 0.6, "peripheral ring": 0.3},
                    "vessels": {"comma": 0.35},
                },
            ),
            _preset(
                "drawn-ivory-negativoma",
                0.29,
                {
                    "symmetry": {"symmetric": 0.55},
                    "border": {"sharp": 0.6},
                    "colours": {"dark brown": 0.75, "light brown": 0.5, "purple": 0.25},
                    "network": {"negative": 0.8},
                    "vessels": {"comma": 0.25, "dotted": 0.2},
                },
            ),
        )
    )
)
"""Invented class id -> profile. They share colours and sizes, so a colour histogram does not tell all of them apart."""
