"""The attribute vocabulary of pigmented and non-pigmented skin lesions, shared by drawn profiles and clinical texts.

Each value of each group is one signed attribute: +1 stated, -1 stated absent, 0 not stated. The groups and values are the
usual ones of dermatoscopy (pattern analysis, and the consensus terms of Kittler et al., J Am Acad Dermatol 2016).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

ATTRIBUTES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "symmetry": ("symmetric", "asymmetric in one axis", "asymmetric in two axes"),
        "border": ("sharp", "blurred", "moth-eaten", "irregular"),
        "colours": (
            "light brown",
            "dark brown",
            "black",
            "blue-grey",
            "red",
            "pink",
            "white",
            "yellow",
            "purple",
            "skin",
        ),
        "network": ("none", "typical", "atypical", "delicate at the edge", "negative"),
        "globules": ("none", "regular", "irregular", "peripheral ring"),
        "streaks": ("none", "regular", "irregular"),
        "structureless": ("none", "homogeneous", "blue-white veil", "white regression", "blue regression"),
        "vessels": ("none", "arborizing", "dotted", "glomerular", "hairpin", "linear irregular", "comma"),
        "keratin": ("milia-like cysts", "comedo-like openings", "ridges and fissures", "surface scale"),
        "bcc signs": ("blue-grey ovoid nests", "leaf-like areas", "spoke-wheel areas", "ulceration"),
        "vascular": ("red lacunae", "purple lacunae", "black lacunae"),
        "centre": ("none", "white scar-like patch"),
    }
)
"""Group -> values. In a group of ``MULTIPLE`` any number of values may hold at once; in the others exactly one does."""

MULTIPLE: Final[frozenset[str]] = frozenset({"colours", "keratin", "bcc signs", "vascular"})

ATTRIBUTE_NAMES: Final[tuple[str, ...]] = tuple(
    f"{group}: {value}" for group, values in ATTRIBUTES.items() for value in values
)
"""``"group: value"`` in the order of ``ATTRIBUTES``: the coordinates of an attribute vector."""

COLOUR_MEANS: Final[Mapping[str, tuple[float, float, float]]] = MappingProxyType(
    {
        "light brown": (0.68, 0.46, 0.31),
        "dark brown": (0.37, 0.22, 0.15),
        "black": (0.13, 0.10, 0.10),
        "blue-grey": (0.40, 0.46, 0.57),
        "red": (0.74, 0.22, 0.21),
        "pink": (0.91, 0.60, 0.60),
        "white": (0.95, 0.91, 0.88),
        "yellow": (0.88, 0.75, 0.38),
        "purple": (0.47, 0.22, 0.44),
        "skin": (0.86, 0.68, 0.58),
    }
)
"""Mean RGB in [0, 1] of each colour name before a class or a patient shifts it."""
