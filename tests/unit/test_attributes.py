"""Signed attributes: what a text states, what it denies, and what it does not mention."""

import numpy as np
import pytest

from sgps.attributes import NAMES, VOCABULARIES, parse, vector
from sgps.catalogue import Catalogue
from sgps.draw import ATTRIBUTE_NAMES, attribute_vector, clinical_text, draw_profile
from sgps.errors import InputError
from sgps.phrases import PHRASES

NO_NETWORK = {"network: none": 1, "network: typical": -1, "network: atypical": -1, "network: negative": -1}


@pytest.mark.parametrize(
    ("stated", "denied", "name"),
    [
        ("Red lacunae.", "No red lacunae.", "vascular: red lacunae"),
        ("Milia-like cysts and ulceration", "Without milia-like cysts and ulceration", "keratin: milia-like cysts"),
        ("Ulceration is present", "Ulceration is absent", "bcc signs: ulceration"),
        ("blue-white veil", "blue-white veil not seen", "structureless: blue-white veil"),
        ("arborising vessels", "absence of arborizing vessels", "vessels: arborizing"),
        ("an atypical pigment network", "lacks an atypical network", "network: atypical"),
        ("black and red", "neither black nor red", "colours: black"),
        ("black and red", "neither black nor red", "colours: red"),
        ("regular globules", "free of regular globules", "globules: regular"),
        ("symmetric", "not symmetric", "symmetry: symmetric"),
        ("irregular streaks were seen", "irregular streaks were not seen", "streaks: irregular"),
    ],
)
def test_denial_turns_the_sign(stated: str, denied: str, name: str) -> None:
    assert parse(stated)[name] == 1
    assert parse(denied)[name] == -1


def test_no_structure_means_none_of_any_kind() -> None:
    signs = parse("No network.")
    assert NO_NETWORK.items() <= signs.items()
    assert parse("No atypical network.") == {"network: atypical": -1}
    assert parse("A pigment network.") == {"network: none": -1}


def test_denial_ends_with_its_clause() -> None:
    assert parse("No network, red lacunae")["vascular: red lacunae"] == 1
    assert parse("no network; red lacunae")["vascular: red lacunae"] == 1
    assert parse("no network but red lacunae")["vascular: red lacunae"] == 1
    assert parse("without streaks and with arborizing vessels")["vessels: arborizing"] == 1
    assert parse("Network, no red lacunae")["network: none"] == -1


def test_list_after_no_is_denied_whole() -> None:
    signs = parse("No network, streaks or globules; sharp border.")
    assert signs["network: none"] == signs["streaks: none"] == signs["globules: none"] == signs["border: sharp"] == 1


def test_colours_after_a_denied_structure_stay_stated() -> None:
    signs = parse("No network, pink or red ground.")
    assert signs["colours: pink"] == signs["colours: red"] == 1


def test_double_denial_states() -> None:
    assert parse("network not absent")["network: none"] == -1


def test_doubt_states_nothing() -> None:
    assert parse("sometimes ulceration; rarely milia-like cysts") == {}


def test_contradiction_states_nothing() -> None:
    assert "vascular: red lacunae" not in parse("Red lacunae. No red lacunae.")


def test_longer_phrase_hides_its_words() -> None:
    assert parse("red lacunae") == {"vascular: red lacunae": 1}
    assert "colours: white" not in parse("central white scar-like patch")


@pytest.mark.parametrize(
    "text", ["Blue-grey colour", "BLUE GRAY COLOR", "blue‑grey", "bluish grey", "steel blue", "grey-blue hue"]
)
def test_spelling_does_not_matter(text: str) -> None:
    assert parse(text) == {"colours: blue-grey": 1}


def test_domains_have_their_own_words() -> None:
    text = "Irregular mass, not parallel to the skin, spiculated margins, no posterior enhancement."
    signs = parse(text, "breast ultrasound")
    assert signs["orientation: not parallel"] == signs["margin: spiculated"] == 1
    assert signs["posterior: enhancement"] == -1
    assert "margin: spiculated" not in parse(text)
    assert parse("No consolidation, clear lungs", "chest x-ray") == {
        "lung fields: lobar consolidation": -1,
        "lung fields: clear": 1,
    }


def test_unknown_domain_is_named() -> None:
    with pytest.raises(InputError, match="no attribute vocabulary for domain 'retina'"):
        parse("text", "retina")


def test_every_value_of_every_vocabulary_has_a_phrase() -> None:
    known = {f"{group}: {value}" for group, values, _ in PHRASES for value in values.split("|")}
    assert {n.removeprefix("drawn ") for n in NAMES if not n.endswith(": none")} <= known
    assert set(ATTRIBUTE_NAMES) == set(NAMES[: len(ATTRIBUTE_NAMES)])
    groups = [g for domain in VOCABULARIES if domain != "drawn" for g in VOCABULARIES[domain]]
    assert len(groups) == len(set(groups))


def test_texts_of_drawn_classes_are_read_back() -> None:
    stated = found = wrong = 0
    for seed in range(200):
        profile = draw_profile(seed)
        signs = parse(clinical_text(profile, seed))
        truth = dict(zip(ATTRIBUTE_NAMES, attribute_vector(profile).tolist(), strict=True))
        stated += sum(v > 0 for v in truth.values())
        found += sum(v > 0 and signs.get(n) == 1 for n, v in truth.items())
        wrong += sum(v * signs.get(n, 0) < 0 for n, v in truth.items())
    assert found > 0.99 * stated
    assert wrong < 0.005 * stated


def test_catalogue_states_what_its_texts_state() -> None:
    for entry in Catalogue.load().entries:
        assert entry.attributes == parse(entry.text, entry.domain), entry.id


def test_vector() -> None:
    row = vector({"network: none": 1, "colours: black": -1})
    assert row.dtype == np.float32 and row.shape == (len(NAMES),)
    assert row[NAMES.index("network: none")] == 1 and row[NAMES.index("colours: black")] == -1
    assert np.count_nonzero(row) == 2
    drawn = vector({"network: none": 1}, "drawn")
    assert drawn[NAMES.index("drawn network: none")] == 1 and np.count_nonzero(drawn) == 1
    with pytest.raises(InputError, match="unknown attribute 'network: odd'"):
        vector({"network: odd": 1})
