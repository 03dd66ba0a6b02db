"""Drawn patients: the same seed gives the same bytes, views share a lesion, attributes move only what they name."""

import csv
import hashlib
from dataclasses import replace

import numpy as np
import pytest

from sgps.draw import (
    ATTRIBUTES,
    MULTIPLE,
    PRESETS,
    Camera,
    Patient,
    Profile,
    draw_camera,
    draw_patient,
    draw_profile,
    sampled_attributes,
    write_folder,
)
from sgps.errors import InputError

PLAIN = {
    "symmetry": "symmetric",
    "border": "sharp",
    "colours": ("light brown",),
    "network": "none",
    "globules": "none",
    "streaks": "none",
    "structureless": "none",
    "vessels": "none",
    "keratin": (),
    "bcc signs": (),
    "vascular": (),
    "centre": "none",
}


def certain(**changed: str | tuple[str, ...]) -> Profile:
    """A class whose every patient has exactly these attributes, apart from the changed ones a plain light brown spot."""
    held = PLAIN | {group.replace("_", " "): value for group, value in changed.items()}
    chances = {
        group: tuple(float(v in held[group] if group in MULTIPLE else v == held[group]) for v in values)
        for group, values in ATTRIBUTES.items()
    }
    return Profile("certain", chances, size=0.3, size_spread=0.0)


def digest(pictures: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(p.tobytes() for p in pictures)).hexdigest()


def test_same_seed_same_bytes() -> None:
    first = draw_patient(draw_profile(3), 5, views=3, camera=draw_camera(2), size=96)
    again = draw_patient(draw_profile(3), 5, views=3, camera=draw_camera(2), size=96)
    assert digest(first) == digest(again)
    assert all(p.shape == (96, 96, 3) and p.dtype == np.uint8 for p in first)


def test_another_patient_class_camera_or_view_gives_another_picture() -> None:
    profile = draw_profile(3)
    seen = {
        digest(draw_patient(profile, 5, size=96)),
        digest(draw_patient(profile, 6, size=96)),
        digest(draw_patient(draw_profile(4), 5, size=96)),
        digest(draw_patient(profile, 5, camera=draw_camera(2), size=96)),
        digest(draw_patient(profile, 5, views=2, size=96)[1:]),
    }
    assert len(seen) == 5


def test_fewer_views_are_the_first_of_more() -> None:
    profile = PRESETS["drawn-slate-nidoma"]
    assert digest(draw_patient(profile, 1, size=96)) == digest(draw_patient(profile, 1, views=3, size=96)[:1])


def test_views_of_a_patient_are_closer_in_colour_than_other_patients_of_the_class() -> None:
    still = Camera(cast_spread=0, exposure_spread=0, hair=0, ring=0, ruler=0, bubbles=0, vignette=0, zoom=(1, 1))
    profile = PRESETS["drawn-motley-polychroma"]
    pairs = [draw_patient(profile, seed, views=2, camera=still, size=64) for seed in range(40)]
    middle = np.array([[v[16:48, 16:48].mean((0, 1)) for v in pair] for pair in pairs])
    within = np.linalg.norm(middle[:, 0] - middle[:, 1], axis=1)
    between = np.linalg.norm(middle[:, 0] - np.roll(middle[:, 1], 1, axis=0), axis=1)
    assert within.mean() < 0.4 * between.mean()


@pytest.mark.parametrize(
    ("group", "value"),
    [(g, v) for g, values in ATTRIBUTES.items() for v in values if v not in (PLAIN[g], "none", "light brown")],
)
def test_each_attribute_changes_the_lesion_visibly(group: str, value: str) -> None:
    changed = ("light brown", value) if group == "colours" else (value,) if group in MULTIPLE else value
    if (group, value) == ("structureless", "homogeneous"):  # it covers what is below, so there must be something
        base, other = (
            certain(colours=("light brown", "black")),
            certain(colours=("light brown", "black"), **{group: value}),
        )
    else:
        base, other = certain(), certain(**{group.replace(" ", "_"): changed})
    moved = []
    for seed in range(4):
        a, b = (Patient(p, seed).sheet(96).astype(float) for p in (base, other))
        moved.append((np.abs(a - b).max(2) > 25).mean())
    assert np.mean(moved) > 0.008, "share of the sheet that changes by more than 25 grey levels"


def test_exchanging_one_attribute_leaves_the_rest_where_it_was() -> None:
    plain, dotted = (Patient(certain(network="typical", vessels=v), 7).sheet(96) for v in ("none", "dotted"))
    same = (plain == dotted).all(2)
    assert 0.7 < same.mean() < 1


def test_sampled_attributes_follow_the_probabilities() -> None:
    profile = PRESETS["drawn-umber-reticuloma"]
    truths = [sampled_attributes(profile, seed) for seed in range(600)]
    for group, values in ATTRIBUTES.items():
        assert all(len(t[group]) == 1 for t in truths) or group in MULTIPLE
        share = [np.mean([v in t[group] for t in truths]) for v in values]
        np.testing.assert_allclose(share, profile.probabilities[group], atol=0.09)
    assert all(t["colours"] for t in truths)


def test_random_classes_are_valid_and_differ() -> None:
    profiles = [draw_profile(seed) for seed in range(300)]
    assert profiles[7].id == "drawn-0007"
    assert len({tuple(p.probabilities.items()) for p in profiles}) == 300
    assert len({p.id for p in profiles} | set(PRESETS)) == 300 + len(PRESETS)
    assert all(0.15 < p.size < 0.45 for p in profiles)


def test_write_folder_is_an_ordinary_data_set(tmp_path) -> None:
    profiles = list(PRESETS.values())[:3]
    folder = write_folder(tmp_path / "drawn", profiles, 4, seed=1, size=64, views=2)
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image_id", "patient", "dx"]
    assert len(rows) == 24
    assert len({r["patient"] for r in rows}) == 12
    assert all((folder / r["dx"] / f"{r['image_id']}.jpg").is_file() for r in rows)
    other = write_folder(tmp_path / "other", profiles, 4, seed=2, size=64)
    with (other / "table.csv").open(encoding="utf-8", newline="") as file:
        assert not {r["patient"] for r in rows} & {r["patient"] for r in csv.DictReader(file)}


def test_write_folder_overwrites_nothing(tmp_path) -> None:
    (tmp_path / "drawn").mkdir()
    with pytest.raises(InputError, match="exists already"):
        write_folder(tmp_path / "drawn", [draw_profile(0)], 1, seed=0)
    with pytest.raises(InputError, match="id of its own"):
        write_folder(tmp_path / "twice", [draw_profile(0), draw_profile(0)], 1, seed=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drawn"]


def test_bad_numbers_are_refused() -> None:
    profile = draw_profile(0)
    for call in (
        lambda: draw_profile(-1),
        lambda: draw_camera(-1),
        lambda: draw_patient(profile, 0, views=4),
        lambda: draw_patient(profile, 0, size=8),
        lambda: draw_patient(profile, -1),
        lambda: replace(profile, probabilities={**profile.probabilities, "network": (1.0,)}),
        lambda: replace(profile, probabilities={**profile.probabilities, "network": (0.5, 0.1, 0.1, 0.1, 0.1)}),
        lambda: replace(profile, palette={"red": (1.0, 0.0, 0.0)}),
        lambda: Camera(jpeg=(90, 80)),
        lambda: Camera(ring=1.5),
    ):
        with pytest.raises(InputError):
            call()
