"""Closed lists of patients: no name, spelling or order gives a patient a second budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgps_privacy.cohort import Cohort, fingerprint, rehearsed, site_secret
from sgps_privacy.errors import PrivacyError
from sgps_privacy.ledger import Ledger

SECRET = b"s" * 32


def test_a_cohort_keeps_keyed_hashes_and_no_id() -> None:
    cohort = Cohort.close("2024", ["P-1", "P-2"], SECRET, [])
    assert len(cohort.members) == 2 and not any("P-1" in member for member in cohort.members)
    assert cohort.members.isdisjoint(Cohort.close("2024", ["P-1", "P-2"], b"t" * 32, []).members)
    assert not cohort.difference([" P-2\n", "P-1"], SECRET)
    assert cohort.difference(["P-1"], SECRET) == "1 of its 2 patients are missing"
    assert cohort.difference(["P-1", "P-2", "p-1"], SECRET) == "1 are new"
    assert cohort.difference(["P-1", "P-2", "P-2 "], SECRET) == "1 are listed twice"
    assert "none of its 2 patients is listed now" in cohort.difference(["lesion 1", "lesion 2"], SECRET)


def test_a_rehearsal_says_what_opening_would_say_and_writes_nothing(tmp_path: Path) -> None:
    lists = {"a": ["1", "2"], "b": ["2", "3"], "c": ["4"]}
    assert rehearsed(lists, SECRET, []) == {"b": "cohort 'b': 1 of its patients belong to cohort 'a'; leave them out"}
    with Ledger(tmp_path) as ledger:
        ledger.open_cohort("a", ["1", "2"], 3.0, 1e-5)
        before = ledger.history()
        found = ledger.rehearse({"a": ["1"], "c": ["1"], "d": ["4"]})
        assert ledger.history() == before
        for name, ids in (("a", ["1"]), ("c", ["1"])):
            with pytest.raises(PrivacyError) as refused:
                ledger.open_cohort(name, ids, 3.0, 1e-5)
            assert found[name].split(": ")[-1] in str(refused.value)
    assert set(found) == {"a", "c"}


@pytest.mark.parametrize("spelling", ["P-1", "  P-1 ", "P-1\n"])
def test_a_patient_of_an_earlier_cohort_is_refused_however_it_is_spelt(spelling: str) -> None:
    old = Cohort.close("2024", ["P-1"], SECRET, [])
    with pytest.raises(PrivacyError, match="1 of its patients belong to cohort '2024'"):
        Cohort.close("2025", [spelling, "P-3"], SECRET, [old])


def test_two_unicode_forms_of_one_name_are_one_patient() -> None:
    old = Cohort.close("2024", ["Mu\u0308ller"], SECRET, [])
    with pytest.raises(PrivacyError):
        Cohort.close("2025", ["M\u00fcller"], SECRET, [old])


@pytest.mark.parametrize("twice", ["Mu\u0308ller", " M\u00fcller "])
def test_a_closed_cohort_is_not_opened_again_with_a_patient_under_two_spellings(tmp_path: Path, twice: str) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["M\u00fcller", "P-2"], 3.0, 1e-5)
        with pytest.raises(PrivacyError, match="listed twice"):  # two records of one patient move the sum by 2C
            ledger.open_cohort("a", ["M\u00fcller", twice, "P-2"], 3.0, 1e-5)


@pytest.mark.parametrize("ids", [[], [""], ["  "], ["P-1", "P-1 "]])
def test_a_list_without_patients_or_with_one_twice_is_refused(ids: list[str]) -> None:
    with pytest.raises(PrivacyError):
        Cohort.close("2024", ids, SECRET, [])


def test_refusals_name_no_patient(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["Anna Muster"], 3.0, 1e-5)
        for name, ids in (("b", ["Anna Muster", "X"]), ("a", ["Berta Muster"]), ("c", ["Carl Muster", "Carl Muster"])):
            with pytest.raises(PrivacyError) as caught:
                ledger.open_cohort(name, ids, 3.0, 1e-5)
            assert "Muster" not in str(caught.value)


def test_a_cohort_outlives_the_process_and_renaming_resets_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["1", "2"], 3.0, 1e-5)
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.open_cohort("a", ["2", "1 "], 3.0, 1e-5)  # the same patients in another order
        assert ledger.cohorts() == ["a"] and ledger.verify() == 1
        with pytest.raises(PrivacyError, match="closed with other patients"):
            ledger.open_cohort("a", ["1", "2", "3"], 3.0, 1e-5)
        with pytest.raises(PrivacyError, match="belong to cohort 'a'"):
            ledger.open_cohort("renamed", ["1", "2"], 3.0, 1e-5)
        ledger.open_cohort("b", ["3"], 3.0, 1e-5)
        assert ledger.cohorts() == ["a", "b"]
    text = (tmp_path / "ledger/ledger.sqlite").read_bytes()
    assert b"patients" not in text


def test_the_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "site.secret"
    secret = site_secret(path)
    assert len(secret) == 32 and site_secret(path) == secret and path.stat().st_mode & 0o777 == 0o600
    assert fingerprint(secret) != secret.hex()
    path.chmod(0o640)
    with pytest.raises(PrivacyError, match="chmod 600"):
        site_secret(path)


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.secret"
    path.touch(mode=0o600)
    with pytest.raises(PrivacyError):
        site_secret(path)
