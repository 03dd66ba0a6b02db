"""Clinical texts and attribute vectors of drawn classes agree, and a text never names its class."""

import numpy as np
import pytest

from sgps.attributes import parse
from sgps.draw import ATTRIBUTE_NAMES, ATTRIBUTES, MULTIPLE, PRESETS, attribute_vector, clinical_text, draw_profile
from sgps.errors import InputError


def test_names_are_unique_and_in_the_order_of_the_vocabulary() -> None:
    assert len(set(ATTRIBUTE_NAMES)) == len(ATTRIBUTE_NAMES) == sum(len(v) for v in ATTRIBUTES.values())
    assert ATTRIBUTE_NAMES[0] == "symmetry: symmetric"
    assert all(name == name.lower() for name in ATTRIBUTE_NAMES)


def test_vector_is_signed_and_states_the_leading_value() -> None:
    for profile in (*PRESETS.values(), *map(draw_profile, range(100))):
        vector = attribute_vector(profile)
        assert vector.dtype == np.float32
        assert set(np.unique(vector)) <= {-1.0, 0.0, 1.0}
        sign = dict(zip(ATTRIBUTE_NAMES, vector, strict=True))
        for group, values in ATTRIBUTES.items():
            likely = max(zip(profile.probabilities[group], values, strict=True))
            if likely[0] >= 0.5:
                assert sign[f"{group}: {likely[1]}"] == 1
            if group not in MULTIPLE:
                assert sum(sign[f"{group}: {v}"] == 1 for v in values) <= 1


def test_random_classes_have_texts_of_their_own() -> None:
    vectors = {attribute_vector(draw_profile(seed)).tobytes() for seed in range(300)}
    assert len(vectors) > 295


def test_same_seed_same_text_and_other_seeds_other_words() -> None:
    profile = PRESETS["drawn-pearl-cicatroma"]
    assert clinical_text(profile, 1) == clinical_text(profile, 1)
    assert len({clinical_text(profile, seed) for seed in range(20)}) == 20


def test_text_never_names_its_class() -> None:
    for profile in (*PRESETS.values(), *map(draw_profile, range(50))):
        for seed in range(10):
            text = clinical_text(profile, seed).lower()
            assert not any(char.isdigit() for char in text)
            assert "drawn" not in text
            assert profile.id.rsplit("-", 1)[-1] not in text


def test_text_states_what_the_vector_states() -> None:
    """The project's reader of clinical texts finds every stated attribute, and nothing that the vector does not hold."""
    for profile in (*PRESETS.values(), *map(draw_profile, range(100))):
        sign = dict(zip(ATTRIBUTE_NAMES, attribute_vector(profile).tolist(), strict=True))
        for seed in range(3):
            read = parse(clinical_text(profile, seed))
            assert {name for name, s in sign.items() if s == 1} == {name for name, s in read.items() if s == 1}
            assert all(sign[name] == -1 for name, s in read.items() if s == -1), profile.id


def test_omit_shortens_and_keeps_something() -> None:
    profile = PRESETS["drawn-motley-polychroma"]
    full = np.mean([len(clinical_text(profile, s)) for s in range(30)])
    short = [clinical_text(profile, s, omit=0.9) for s in range(30)]
    assert np.mean([len(t) for t in short]) < 0.4 * full
    assert all(len(t) > 3 for t in short)
    with pytest.raises(InputError):
        clinical_text(profile, 0, omit=1.0)
