"""The catalogue: one class for each name, however it is spelt; errors that name the entry."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sgps.attributes import parse
from sgps.catalogue import SHIPPED, Catalogue, normal
from sgps.draw import PRESETS, attribute_vector
from sgps.errors import ConfigError, InputError
from sgps.text import TextEncoder
from sgps.vocabulary import ATTRIBUTE_NAMES

HEAD = "note: reviewed by nobody\nentries:\n"
ENTRY = "  - {id: a, name: alpha, domain: dermoscopy, text: a text, present: {network: [none]}}\n"


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load()


def _write(path: Path, entries: str) -> Path:
    file = path / "catalogue.yaml"
    file.write_text(HEAD + entries)
    return file


def test_shipped_catalogue_is_whole(catalogue: Catalogue) -> None:
    assert catalogue.ids[:7] == ("nv", "mel", "bkl", "bcc", "akiec", "df", "vasc")
    assert len(catalogue.entries) >= 45
    assert {e.domain for e in catalogue.entries} == {
        "dermoscopy",
        "chest x-ray",
        "breast ultrasound",
        "lung histology",
        "drawn",
    }
    assert "to be reviewed by a dermatologist" in catalogue.note
    assert SHIPPED.stat().st_size < 1 << 20


def test_drawn_classes_are_the_presets(catalogue: Catalogue) -> None:
    drawn = [e for e in catalogue.entries if e.domain == "drawn"]
    assert {e.id for e in drawn} == set(PRESETS) and len(drawn) >= 8
    for entry in drawn:
        truth = dict(zip(ATTRIBUTE_NAMES, attribute_vector(PRESETS[entry.id]).tolist(), strict=True))
        assert all(truth[name] != -sign for name, sign in entry.attributes.items()), entry.id


def test_texts_do_not_name_their_class(catalogue: Catalogue) -> None:
    for entry in catalogue.entries:
        text = f" {normal(entry.text)} "
        assert not [n for n in entry.names if f" {normal(n)} " in text], entry.id


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("df", "df"),
        ("DF", "df"),
        ("Dermatofibroma", "df"),
        ("  fibrous   HISTIOCYTOMA ", "df"),
        ("Spitz nævus", "spitz-naevus"),
        ("spitz nevus", "spitz-naevus"),
        ("Spitz-Naevus", "spitz-naevus"),
        ("Naévus Coeruléus", "blue-naevus"),
        ("hemangioma", "vasc"),
        ("Bowen’s disease", "akiec"),
        ("Bowen's Disease", "akiec"),
        ("pneumonia bacterial", "cxr-bacterial-pneumonia"),
        ("drawn_azure_lacunoma", "drawn-azure-lacunoma"),
    ],
)
def test_find_knows_spellings(catalogue: Catalogue, name: str, found: str) -> None:
    entry = catalogue.find(name)
    assert entry is not None and entry.id == found


@pytest.mark.parametrize("name", ["", "melanomas of the moon", "d f x"])
def test_find_invents_nothing(catalogue: Catalogue, name: str) -> None:
    assert catalogue.find(name) is None


def test_every_name_leads_home(catalogue: Catalogue) -> None:
    for entry in catalogue.entries:
        assert all(catalogue.find(name) is entry for name in entry.names)


def test_nearest_by_letters(catalogue: Catalogue) -> None:
    assert catalogue.nearest("melanomma", 1)[0].id == "mel"
    assert len(catalogue.nearest("anything", 3)) == 3
    assert {"vasc", "angiokeratoma", "drawn-azure-lacunoma"} & {
        e.id for e in catalogue.nearest("red lacunae, purple", 3)
    }


def test_nearest_by_meaning(catalogue: Catalogue) -> None:
    encoder = TextEncoder()
    found = [e.id for e in catalogue.nearest("benign tumour of blood vessels, a strawberry mark", 5, encoder)]
    assert {"vasc", "pyogenic-granuloma", "angiokeratoma"} & set(found)
    assert catalogue.nearest("Merkle cell carcinoma", 1, encoder)[0].id == "merkel-cell-carcinoma"


def test_nearest_asks_the_encoder_that_it_is_given(catalogue: Catalogue) -> None:
    class Last:
        def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            rows = np.zeros((len(texts), 2), dtype=np.float32)
            rows[[0, -1], 0] = 1
            return rows

    assert catalogue.nearest("qqq", 1, Last()) == [catalogue.entries[-1]]


def test_attributes_are_signed(catalogue: Catalogue) -> None:
    entry = catalogue.find("vasc")
    assert entry is not None
    assert entry.attributes["vascular: red lacunae"] == 1 and entry.attributes["network: typical"] == -1
    assert entry.attributes == parse(entry.text)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (ENTRY + ENTRY, "a: the id 'a' is already that of a"),
        (ENTRY + ENTRY.replace("id: a", "id: b"), "b: the name or synonym 'alpha' is already that of a"),
        (
            ENTRY + ENTRY.replace("id: a, name: alpha", "id: b, name: beta, synonyms: [Álpha]"),
            "b: the name or synonym 'Álpha' is already that of a",
        ),
        (
            ENTRY.replace("network: [none]", "network: [odd]"),
            "a: unknown attribute value 'odd' of 'network'; use one of none",
        ),
        (ENTRY.replace("network:", "netwerk:"), "a: unknown attribute group 'netwerk'"),
        (ENTRY.replace("dermoscopy", "retina"), "a: unknown domain 'retina'"),
        (ENTRY.replace("}}", "}, absent: {network: [none]}}"), "a: network 'none' is both present and absent"),
        (ENTRY.replace("id: a", "id: A b"), "entries.0.id"),
        (ENTRY.replace("text: a text", "txt: a text"), "entries.0.text"),
        (ENTRY.replace("name: alpha", "name: '--'"), "a: the name '--' holds no letter or digit"),
    ],
)
def test_errors_name_the_entry(tmp_path: Path, entries: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Catalogue.load(_write(tmp_path, entries))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        Catalogue.load(tmp_path / "none.yaml")


def test_entries_are_frozen(catalogue: Catalogue) -> None:
    with pytest.raises(ValueError, match="frozen"):
        catalogue.entries[0].name = "other"  # type: ignore[misc]
