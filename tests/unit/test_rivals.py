"""Kinds of pictures that the bank holds, and those that it does not."""

import numpy as np
import pytest

from sgps.bank import Bank, BankClass, build
from sgps.rivals import STRANGE, Familiarity, domain_of

WIDTH, CENTRE = 30, np.zeros(30, np.float32)


def pictures(kind: int, seed: int, n: int = 12) -> np.ndarray:
    """One class: what its kind has in common, what is its own, and what each picture adds."""
    random = np.random.default_rng(seed)
    own = 0.4 * random.normal(size=WIDTH)
    return (10 * np.eye(WIDTH)[kind] + 3 * own + random.normal(size=(n, WIDTH))).astype(np.float32)


def bank(classes: dict[str, int]) -> Bank:
    """Classes of each kind."""
    kinds = [(kind, place, n) for place, (kind, count) in enumerate(classes.items()) for n in range(count)]
    made = [BankClass(f"{kind}-{n}", f"{kind} {n}", kind, f"{kind} {n}") for kind, _, n in kinds]
    features = [pictures(place, 100 * place + n) for _, place, n in kinds]
    text = np.eye(len(made), dtype=np.float32)
    return build(made, text, np.concatenate(features), np.repeat(np.arange(len(made)), 12))


@pytest.fixture(scope="module")
def known() -> Bank:
    return bank({"skin": 5, "chest": 4})


@pytest.mark.parametrize("kind", [0, 1])
def test_a_new_class_of_a_known_kind_is_as_familiar_as_the_banks_own(known, kind):
    found = np.concatenate([Familiarity(known, CENTRE)(pictures(kind, 900 + seed)) for seed in range(20)])
    assert 0.3 < found.mean() < 0.7 and (found < STRANGE).mean() < 0.2
    assert domain_of(known, pictures(kind, 900).mean(0), CENTRE) == ("skin", "chest")[kind]


def test_a_kind_that_the_bank_does_not_hold_is_strange(known):
    assert max(Familiarity(known, CENTRE)(pictures(7, seed)).mean() for seed in range(20)) < STRANGE


def test_samples_of_the_own_class_do_not_make_strict_judges(known):
    """Beside its own class every sample of the bank is near; a new class has none there."""
    new = np.concatenate([pictures(0, 900 + seed) for seed in range(20)])
    alone = known.features @ known.features.T / np.outer(*2 * [np.linalg.norm(known.features, axis=1)])
    np.fill_diagonal(alone, -1)
    mine = known.label < 5
    usual = np.sort(alone[mine][:, mine], 1)[:, -5:].mean(1)
    unit = known.features[mine] / np.linalg.norm(known.features[mine], axis=1, keepdims=True)
    found = np.sort(new / np.linalg.norm(new, axis=1, keepdims=True) @ unit.T, 1)[:, -5:].mean(1)
    strict = (usual <= found[:, None]).mean(1)
    assert strict.mean() + 0.1 < Familiarity(known, CENTRE)(new).mean()


def test_a_kind_of_one_class_cannot_judge():
    assert (Familiarity(bank({"skin": 1, "chest": 4}), CENTRE)(pictures(0, 900)) == 1).all()
