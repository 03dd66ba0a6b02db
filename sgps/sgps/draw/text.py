"""Clinical texts of drawn classes: what is stated and what is stated absent, in changing words. Never an id or a name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from sgps.draw.canvas import generator
from sgps.draw.profile import Profile, attribute_vector
from sgps.errors import InputError
from sgps.vocabulary import ATTRIBUTE_NAMES, ATTRIBUTES

_TEXT_STREAM: Final = 6

# The first wording is the vocabulary's own; {} is the value.
_GENERAL: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "symmetry": ("{} in shape and colour", "overall {}", "the lesion is {}"),
        "border": ("{} border", "the edge is {}", "{} margin"),
        "colours": ("{}", "shades of {}", "coloured {}"),
        "network": ("{} pigment network", "{} network", "reticular pattern: {}"),
        "globules": ("{} globules", "{} dots and globules", "globular pattern: {}"),
        "streaks": ("{} streaks", "{} radial streaks", "streaming at the edge: {}"),
        "structureless": ("{} area", "structureless area: {}", "structureless zone: {}"),
        "vessels": ("{} vessels", "{} vascular pattern", "vascular structures: {}"),
        "keratin": ("{}", "prominent {}", "{} seen"),
        "bcc signs": ("{}", "prominent {}", "{} seen"),
        "vascular": ("{}", "well-demarcated {}", "groups of {}"),
        "centre": ("central {}", "{} in the centre", "{} in the middle"),
    }
)
_SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "symmetric": ("symmetrical",),
        "asymmetric in one axis": ("asymmetrical in one axis",),
        "asymmetric in two axes": ("asymmetrical in both axes", "markedly asymmetric in two axes"),
        "sharp": ("well-demarcated", "sharply cut"),
        "blurred": ("ill-defined", "fading"),
        "moth-eaten": ("scalloped, moth-eaten",),
        "irregular": ("uneven",),
        "regular": ("evenly spread",),
        "light brown": ("tan",),
        "dark brown": ("deep brown",),
        "blue-grey": ("slate blue",),
        "typical": ("regular",),
        "delicate at the edge": ("fine peripheral",),
        "negative": ("inverse",),
        "arborizing": ("branching",),
        "dotted": ("point-like",),
        "glomerular": ("coiled",),
        "hairpin": ("looped",),
        "comma": ("comma-shaped",),
        "milia-like cysts": ("white milia-like cysts",),
        "comedo-like openings": ("follicular plugs",),
        "ridges and fissures": ("cerebriform ridges and fissures",),
        "surface scale": ("scaling", "white scale"),
        "white scar-like patch": ("scar-like whitish patch",),
    }
)
_ABSENT: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "network": ("pigment network", "network"),
        "globules": ("globules", "dots or globules"),
        "streaks": ("streaks",),
        "structureless": ("structureless area", "structureless zone"),
        "vessels": ("vessels", "vascular structures"),
        "centre": ("central white patch", "scar-like centre"),
    }
)
_WITHOUT: Final = ("no {}", "without {}", "{} absent", "{} not seen")
_SHARE_DENIED: Final = 0.12


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def clinical_text(profile: Profile, seed: int = 0, omit: float = 0.0) -> str:
    """A clinical text of a class; other seeds give other words and another order.

    Says every attribute that ``attribute_vector`` marks +1 and some of those it marks -1, as negations. ``omit`` in [0, 1)
    is the chance that a statement is left out (at least one stays). Raises InputError for ``omit`` outside [0, 1).
    """
    if not 0 <= omit < 1:
        raise InputError("must be in [0, 1)", where=f"omit {omit}")
    rng = generator(_TEXT_STREAM, profile.key, seed)
    sign = dict(zip(ATTRIBUTE_NAMES, attribute_vector(profile).tolist(), strict=True))
    said: list[str] = []
    colours: list[str] = []
    for group, values in ATTRIBUTES.items():
        for value in values:
            state = sign[f"{group}: {value}"]
            word = _pick(rng, (value, *_SYNONYMS.get(value, ())))
            wording = _pick(rng, _GENERAL[group])
            deny = rng.random() < _SHARE_DENIED
            if state > 0 and value == "none":
                said.append(_pick(rng, _WITHOUT).format(_pick(rng, _ABSENT[group])))
            elif state > 0 and group == "colours":
                colours.append("skin-coloured" if value == "skin" else word)
            elif state > 0:
                said.append(wording.format(word))
            elif state < 0 and deny and group in ("keratin", "bcc signs", "vascular"):
                said.append(_pick(rng, _WITHOUT).format(word))
            elif state < 0 and deny and group == "colours":
                said.append(f"no {'skin-coloured areas' if value == 'skin' else word}")
    if colours:
        order = rng.permutation(len(colours))
        listed = [colours[i] for i in order]
        joined = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
        said.append(_pick(rng, _GENERAL["colours"]).format(joined))
    kept = [s for s in said if rng.random() >= omit] or said[:1]
    kept = [kept[i] for i in rng.permutation(len(kept))]
    text = _pick(rng, ("; ", ". ")).join(kept)
    return ". ".join(part[:1].upper() + part[1:] for part in text.split(". ")) + "."
