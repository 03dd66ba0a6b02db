import numpy as np
import pytest
from safetensors.numpy import load

from sgps.bank import Bank, BankClass, build
from sgps.errors import SignatureError


def classes(n=3):
    return [BankClass(f"c{i}", f"class {i}", "dermoscopy" if i else "drawn", f"text {i}, näher") for i in range(n)]


def make(**changes):
    r = np.random.default_rng(0)
    given = {
        "classes": classes(),
        "embedding": r.normal(size=(3, 384)),
        "features": r.normal(size=(30, 12)).astype(np.float32),
        "label": np.repeat([0, 1, 2], 10),
    }
    return build(**{**given, **changes})


def test_a_bank_survives_its_file():
    bank = make(means={1: np.ones(12)})
    again = Bank.from_arrays(load(bank.to_bytes()))
    assert again.classes == bank.classes
    assert np.allclose(again.features, bank.features, atol=1e-3) and np.array_equal(again.label, bank.label)
    assert np.array_equal(again.apart, bank.apart) and np.array_equal(again.inside, [True, False, True])
    assert again.to_bytes() == bank.to_bytes()


def test_each_class_is_halved_and_its_mean_is_that_of_the_calibrating_half():
    bank = make()
    for i in range(3):
        half = bank.samples([i], apart=False)
        assert len(half) == len(bank.samples([i], apart=True)) == 5
        assert not set(half) & set(bank.samples([i], apart=True))
        assert np.allclose(bank.means[i], bank.features[half].mean(0))


def test_known_means_are_kept():
    bank = make(means={2: np.full(12, 3.0)})
    assert (bank.means[2] == 3).all() and not bank.inside[2] and bank.inside[0]


def test_domains():
    bank = make()
    assert (
        bank.domains == ("dermoscopy", "drawn") and bank.of_domain("dermoscopy") == [1, 2] and bank.of_domain("x") == []
    )


def test_too_few_samples_and_repeated_ids_are_refused():
    with pytest.raises(ValueError, match="c2 of the bank has 3 samples"):
        make(label=np.array([0] * 20 + [1] * 7 + [2] * 3))
    with pytest.raises(ValueError, match="twice"):
        make(classes=[*classes(2), classes(1)[0]])


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("features"),
        lambda a: a.update(label=a["label"][:-1]),
        lambda a: a.update(label=a["label"] + 1),
        lambda a: a.update(means=a["means"][:2]),
        lambda a: a.update(classes=np.frombuffer(b"[{}]", np.uint8)),
        lambda a: a.update(classes=np.frombuffer(b"not json", np.uint8)),
        lambda a: a.update(features=np.full_like(a["features"], np.nan)),
    ],
)
def test_broken_banks_are_refused(change):
    arrays = load(make().to_bytes())
    change(arrays)
    with pytest.raises(ValueError, match="bank"):
        Bank.from_arrays(arrays)


def test_the_bank_of_a_release(small_release):
    release = small_release()
    assert len(Bank.of(release).classes) == 8
    lost = release.folder.parent / "lost"
    lost.mkdir()
    (lost / "bank.safetensors").write_bytes(b"nothing")
    with pytest.raises(SignatureError, match="safetensors"):
        Bank.of(type(release)(lost, release.manifest, release.sha256))
