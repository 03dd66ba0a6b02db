import pytest

from sgps.bank import Bank
from sgps.encoders import ImageEncoder
from sgps.errors import SignatureError, StateError
from sgps.shipped import shipped_release
from sgps.synthesis import synthesize

META_TEST = {"akiec", "df", "vasc"}


def test_it_has_never_seen_a_meta_test_class(release):
    for p in release.manifest.provenance:
        assert not META_TEST & set(p.classes), p.name
    ham = next(p for p in release.manifest.provenance if "ham" in p.name.lower())
    assert set(ham.left_out) >= META_TEST
    assert not META_TEST & {c.id for c in Bank.of(release).classes}


def test_it_knows_no_patient_yet(release):
    memory = release.memory()
    assert not memory.count.any() and not memory.total.any() and release.manifest.rounds == ()


def test_it_is_small_and_says_its_licence(release):
    assert sum(f.stat().st_size for f in release.folder.iterdir()) < 16_000_000
    assert release.manifest.licence == "CC BY-NC 4.0" and ImageEncoder(release).target.width == 1280


def test_one_drawn_exemplar_becomes_a_classifier(release, drawn):
    c = synthesize({"drawn-azure-lacunoma": drawn(600)}, {}, release)
    assert c.record.origin.domain == "drawn" and len(c.labels) == 6
    assert c.record.calibration.measured[0].low <= 0.1 <= c.record.calibration.measured[0].high


def test_a_changed_or_missing_release_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sgps.shipped.FOLDER", tmp_path / "none")
    with pytest.raises(StateError, match="no release"):
        shipped_release()
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "release.yaml").write_text("name: x\n")
    (tmp_path / "pin").write_text("0" * 64 + "\n")
    monkeypatch.setattr("sgps.shipped.FOLDER", tmp_path / "release")
    monkeypatch.setattr("sgps.shipped.PIN", tmp_path / "pin")
    with pytest.raises(SignatureError, match="not the pinned release"):
        shipped_release()
