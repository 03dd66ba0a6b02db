"""The attacks find what is there, keep below a true bound, and refute a false one."""

import io
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is a folder of the repository, not a package that is installed

from bench import attacks
from bench._attack_exemplar import degraded, invert, matched, taken_apart
from bench._attack_members import FALSE_ALARMS, Outcome, clopper_pearson, informed, uninformed
from bench._step import SiteFolder
from bench._step_games import worst
from sgps.draw import PRESETS, draw_patient
from sgps.encoders import target_of
from sgps.release import Release
from sgps.shipped import shipped_release
from sgps_client.kinds import Record
from sgps_privacy.engine import PrivateRound
from sgps_privacy.noise import Grid


def test_an_exact_interval_is_that_of_the_textbook() -> None:
    assert clopper_pearson(0, 10, 0.95) == pytest.approx((0, 0.3085), abs=1e-4)
    assert clopper_pearson(10, 10, 0.95) == pytest.approx((0.6915, 1), abs=1e-4)
    assert clopper_pearson(5, 10, 0.95) == pytest.approx((0.1871, 0.8129), abs=1e-4)


@pytest.mark.parametrize(("true", "claimed", "holds"), [(1.0, 1.0, True), (1.5, 1.0, False)])
def test_a_gaussian_reaches_its_own_bound_and_breaks_a_smaller_one(true: float, claimed: float, holds: bool) -> None:
    random = np.random.default_rng(0)
    out, into = random.normal(size=4000), true + random.normal(size=4000)
    found = Outcome.of("planted", 3.0, claimed, out, into, float(norm.isf(FALSE_ALARMS)))
    assert found.holds is holds
    assert found.auc == pytest.approx(norm.cdf(true / np.sqrt(2)), abs=4 * found.auc_deviation)
    assert found.auc_deviation == pytest.approx(0.0055, rel=0.3)
    assert ("| yes |" in found.line()) is holds


@pytest.mark.slow
def test_a_step_that_counts_a_patient_twice_is_refuted(tmp_path: Path, release: Release) -> None:
    class Twice(PrivateRound):
        def records_of_step(self, records: list[Record | None]) -> list[Record | None]:
            return [*records, *records[:1]]

    folder = SiteFolder(tmp_path, release, 3, [8.0])
    step, others = folder.step(8.0), [r for r in folder.records if r is not None][:2]
    canary = worst(step)[0]
    honest, twice = (informed(step.planted(r), others, [canary], 150, "planted", 8.0) for r in (PrivateRound, Twice))
    assert honest.holds and honest.auc > 0.7
    assert not twice.holds
    quiet = informed(step, others, [canary], 20, "planted", None)
    assert (quiet.auc, quiet.hits, quiet.alarms) == (1.0, 20, 0)


def test_few_patients_do_not_hide_one_and_noise_does() -> None:
    rows = np.random.default_rng(0).normal(size=(240, 32))
    rows *= np.sqrt(0.8) / np.linalg.norm(rows, axis=1, keepdims=True)
    few, many = (uninformed(rows, n, "x", None, None, 600, 0) for n in (5, 80))
    noised = uninformed(rows, 5, "x", Grid(1.0, 3.731, 4420), (1.0, 0.268), 600, 0)
    assert few.auc > many.auc + 0.2 and few.auc > noised.auc + 0.2
    assert noised.holds and noised.mu == pytest.approx(0.536)
    with pytest.raises(ValueError, match="need more than"):
        uninformed(rows[:20], 80, "x", None, None, 10, 0)


def test_ranks_count_ties_as_misses_and_leave_out_the_exemplar() -> None:
    gallery = np.eye(4)[[0, 0, 1, 2]]
    same = matched(gallery[:1], gallery, lambda i: np.array([1, 0, 0, 0]), "tie")
    assert (same.ranks.tolist(), same.candidates.tolist()) == ([2], [4])
    other = matched(gallery[:1], gallery, lambda i: np.array([-1, 1, 0, 0]), "other photo")
    assert (other.ranks.tolist(), other.candidates.tolist()) == ([1], [3])


def test_a_mean_of_many_exemplars_is_taken_apart() -> None:
    gallery = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)
    groups = np.array([[0, 5, 7], [1, 2, 29]])
    assert taken_apart(3 * gallery[groups].mean(1), gallery, groups).ranks.tolist() == [1, 1]
    assert taken_apart(gallery[[9, 10]], gallery, groups).ranks.min() > 1


@pytest.mark.usefixtures("release")
def test_inversion_nears_the_head_and_repeats_itself() -> None:
    release = shipped_release()
    target, centre = target_of(release), release.memory().coordinates.mean
    shown = torch.from_numpy(draw_patient(next(iter(PRESETS.values())), 1)[0]).permute(2, 0, 1)[None, :, ::2, ::2]
    with torch.no_grad():
        head = (target.features(shown / 127.5 - 1) - torch.from_numpy(centre)).numpy()
    _, before = invert(target, head, centre, 64, 0)
    made, after = invert(target, head, centre, 64, 20)
    again, _ = invert(target, head, centre, 64, 20)
    assert after[0] > before[0] + 0.1
    assert torch.equal(made, again) and float(made.abs().max()) <= 1


@pytest.mark.slow
def test_the_command_measures_writes_and_shows_drawn_lesions_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: Release
) -> None:
    names, rows = list(PRESETS)[:3], ["image_id,lesion_id,dx"]
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name, label in zip(names, ("akiec", "df", "nv"), strict=True):
            for i in range(12):
                packed = io.BytesIO()
                Image.fromarray(draw_patient(PRESETS[name], 40 + i)[0]).save(packed, "PNG")
                archive.writestr(f"{label}/{label}-{i}.png", packed.getvalue())
                rows.append(f"{label}-{i},{label}-{max(i, 1)},{label}")
        archive.writestr("table.csv", "\n".join(rows))
    monkeypatch.setattr("bench.pictures.held_out", lambda lesion, label, recipe: np.ones(len(lesion), bool))
    monkeypatch.setattr(
        attacks, "lite0_features", lambda pictures, rows, out: np.random.default_rng(0).normal(size=(len(rows), 6))
    )
    lite0 = SimpleNamespace(features=lambda images: np.random.default_rng(1).normal(size=(len(images), 6)))
    monkeypatch.setattr(attacks, "Lite0", lambda: lite0)
    monkeypatch.setattr(attacks, "SIZES", (2,))
    assert (
        attacks.main(
            ["--data", str(tmp_path / "data.zip"), "--meta-test", "akiec,df", "--quick", "--out", str(tmp_path / "out")]
        )
        == 0
    )
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {m["epsilon"] for m in found["membership"]} == {1.0, 3.0, 8.0, None} and found["holds"]
    assert set(found["ranks"]) == {"akiec", "df", "reconstruction"}
    assert found["ranks"]["akiec"]["the same picture, eight views"]["ranks"] == [1] * 4
    with Image.open(tmp_path / "out" / attacks.PICTURE) as sheet:
        assert sheet.size == (256, 256)
    assert "| akiec | the same picture, eight views | 4 |" in (tmp_path / "out" / "results.md").read_text()


def test_a_copy_is_another_picture_of_the_same() -> None:
    image = Image.fromarray(draw_patient(next(iter(PRESETS.values())), 1)[0])
    copy = degraded(image)
    assert copy.size == (image.height // 2, image.width // 2) and copy.mode == "RGB"
