import dataclasses

import numpy as np
import pytest

from sgps.bank import Bank, BankClass, build
from sgps.rehearsal import Judged, rehearse

WIDTH = 8


def bank(kinds: dict[str, int], samples: int = 24) -> Bank:
    """Classes of each kind, close together; the kinds lie far apart."""
    random = np.random.default_rng(0)
    classes, features, label = [], [], []
    for place, (kind, count) in enumerate(kinds.items()):
        corner = 20 * np.eye(WIDTH)[place]
        for n in range(count):
            label += [len(classes)] * samples
            features.append(corner + random.normal(size=WIDTH) + 1.5 * random.normal(size=(samples, WIDTH)))
            classes.append(BankClass(f"{kind}-{n}", f"{kind} {n}", kind, f"{kind} {n}"))
    text = np.eye(len(classes), dtype=np.float32)
    return build(classes, text, np.concatenate(features).astype(np.float32), np.array(label))


def judged(of: Bank, domain: str, named: int = 3, shots: float = 1.0) -> Judged:
    centre = np.mean([of.features[of.label == i].mean(0) for i in of.of_domain(domain)], 0)
    weight = np.zeros((named, WIDTH), np.float32)
    others = of.of_domain(domain)
    return Judged(of, centre, 1.0, weight, weight[:, 0], named, [], others, [], domain, shots, 5)


def test_several_diseases_are_rehearsed_on_classes_of_their_own_kind_alone():
    alone, beside = bank({"skin": 4}), bank({"skin": 4, "drawn": 6, "chest": 3})
    centre = judged(alone, "skin").centre
    a, b = (rehearse(dataclasses.replace(judged(of, "skin"), centre=centre)) for of in (alone, beside))
    assert a == b and a.classes == ("skin-0", "skin-1", "skin-2", "skin-3")


def test_easier_kinds_beside_would_make_the_temperature_too_low():
    of = bank({"skin": 4, "drawn": 6})
    mixed = dataclasses.replace(of, classes=tuple(dataclasses.replace(c, domain="skin") for c in of.classes))
    centre = judged(of, "skin").centre
    own, easy = (rehearse(dataclasses.replace(judged(b, "skin"), centre=centre)).temperature for b in (of, mixed))
    assert own > 1.2 * easy


@pytest.mark.parametrize(("kinds", "played"), [({"x": 1, "drawn": 3, "y": 2}, "drawn"), ({"x": 1, "y": 1}, "")])
def test_a_kind_of_one_class_borrows_the_drawn_ones_or_all(kinds: dict[str, int], played: str):
    r = rehearse(judged(bank(kinds), "x", named=2))
    assert len(r.classes) >= 2 and all(c.startswith(played) for c in r.classes) and r.temperature > 0


def test_a_class_of_ten_samples_is_rehearsed_with_as_many_exemplars_as_asked():
    of = bank({"drawn": 8}, samples=10)
    five, two = (rehearse(judged(of, "drawn", shots=s)).temperature for s in (5, 2))
    assert (
        five < two
    )  # the mean of more exemplars separates better; with five of ten samples only two would be left to play
