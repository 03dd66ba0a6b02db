"""`bench.federated`: nobody is both at a site and tested, sums are exact without noise, bounds are those of the statistics books."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.federated import RECIPE
from bench.federated_arms import Judge, area, contribution, noise_multiplier
from bench.federated_report import bound, curve, kept_bound, plot, report, summary
from bench.federated_world import SIZES, World
from bench.pictures import Pictures
from bench.shipped import Ours
from sgps.memory import Coordinates, Memory, pool
from sgps.pretrain.pool import held_out
from sgps.pretrain.recipe import read_recipe
from sgps.release import Release
from sgps.shipped import shipped_release

COMMON, TEST = ("nv", "mel", "bkl", "bcc"), ("akiec", "df", "vasc")


def world(patients: int = 330) -> World:
    label = np.array([k for k in (*COMMON, *TEST) for _ in range(patients if k in COMMON else 40)])
    features = np.random.default_rng(0).normal(size=(len(label), 6))
    number = np.arange(len(label))
    nothing = Pictures.__new__(Pictures)
    return World(nothing, label, number.astype(str), number, features, features, COMMON, TEST)


def test_nobody_is_both_at_a_site_and_tested_and_every_site_is_full() -> None:
    for seed in range(3):
        w = world()
        split = w.split(seed)
        at = np.concatenate(split.sites)
        tested = np.concatenate(list(split.tested.values()))
        assert len(np.unique(at)) == len(at) and not set(at) & set(tested)
        assert sum(np.isin(w.label[at], TEST)) == 60 and all(len(split.tested[k]) == 20 for k in TEST)
        common = [int(np.isin(w.label[s], COMMON).sum()) for s in split.sites]
        assert common[0] == SIZES[0] and sum(common) <= sum(SIZES)
        assert not np.isin(w.label[np.concatenate(split.without(w, TEST).sites)], TEST).any()


def test_the_recipe_of_its_base_sees_twenty_lesions_of_a_class_and_no_test_class() -> None:
    recipe = read_recipe(RECIPE)
    assert recipe.atlas == 20 and recipe.meta_test == TEST and not recipe.measure
    lesion = np.array([f"{c}{i}" for c in recipe.base_classes for i in range(300)])
    label = np.array([c for c in recipe.base_classes for _ in range(300)])
    assert (~held_out(lesion, label, recipe)).sum() == 20 * len(recipe.base_classes)


def test_a_site_sends_exact_sums_or_the_engines_noise() -> None:
    place = Coordinates(np.zeros(6), np.eye(6)[:4], 1.0, 1.0)
    patients = np.random.default_rng(1).normal(size=(30, 6))
    patients[:, :4] /= np.linalg.norm(patients[:, :4], axis=1, keepdims=True)
    classes = np.arange(30) % 3
    release = shipped_release()
    exact = contribution(release, place, patients, classes, 3, None)
    assert np.allclose(pool(place, ("a", "b", "c"), [exact]).row(1), patients[classes == 1, :4].mean(0))
    sent = [contribution(release, place, patients, classes, 3, 3.0) for _ in range(30)]
    assert {s.sigma for s in sent} == {noise_multiplier(3.0)}
    difference = np.concatenate([np.append(s.rows - exact.rows, s.counts - exact.counts) for s in sent])
    assert difference.std() == pytest.approx(noise_multiplier(3.0), rel=0.15)
    assert len(np.unique(difference)) == difference.size


def test_its_scores_are_those_of_synthesis(small_release: Callable[..., Release]) -> None:
    release = small_release((), 30)
    made = release.memory()
    features = made.coordinates.lift(made.coordinates.radius * np.random.default_rng(2).normal(size=(12, 64)) / 8)
    pictures = Pictures.__new__(Pictures)
    object.__setattr__(pictures, "label", np.repeat(["df", "vasc"], 6))
    judge = Judge(Ours(release, pictures, dict(enumerate(features))))
    queries = list(range(1, 12))
    for disease, memory in (("df", made), ("vasc", made), ("df", Memory.empty(made.coordinates, made.ids))):
        assert judge.agree(disease, 0, queries, memory) < 1e-3
    wrong = Memory(**{**vars(made), "count": 2 * made.count})
    judge.prototypes = lambda d, e, m: Judge.prototypes(judge, d, e, wrong)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="differ from those of synthesis"):
        judge.agree("df", 0, queries, made)


def test_area_counts_ties_half() -> None:
    assert area(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == pytest.approx((1 + 0.5 + 1 + 1) / 4)


def test_bounds() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    assert bound(values) == pytest.approx(2.5 - 2.353363 * values.std(ddof=1) / 2, abs=1e-4)
    full = np.array([10.0, 11.0, 12.0, 9.0])
    assert kept_bound(0.8 * full, full) == pytest.approx(0.8, abs=0.006)
    assert kept_bound(0.8 * full + [1, -1, 1, -1], full) < 0.75
    assert kept_bound(-5 * full, full) == -1


def cells() -> list[dict[str, object]]:
    def one(split: int, arm: str, value: float, **more: object) -> dict[str, object]:
        found = {d: {"other": value, "all": value} for d in TEST}
        return {"split": split, "arm": arm, "draw": 0, "3w1s": value, "known": value, **more, **found}

    out = []
    for s in (0, 1, 2):
        out += [one(s, "public only", 0.7), one(s, "no noise", 0.9 + 0.01 * s), one(s, "epsilon 3", 0.8)]
        out += [one(s, "one site alone", v, site=i) for i, v in enumerate((0.68, 0.8))]
    return out


def test_summary_says_what_is_kept_and_lost() -> None:
    found = summary(cells(), TEST)
    assert list(found)[:2] == ["public only", "no noise"]
    assert found["epsilon 3"]["other"]["kept"] == pytest.approx(0.1 / 0.21)
    assert found["epsilon 3"]["other"]["kept at least"] <= found["epsilon 3"]["other"]["kept"]
    assert found["one site alone"]["lost a point"] == 0.5
    assert found["best site alone"]["other"]["gain"] == pytest.approx(0.1)


def test_curve_and_report(tmp_path: Path) -> None:
    rows = []
    for epsilon, gain in ((0, 0.2), (8.0, 0.19), (3.0, 0.1), (1.0, 0.02)):
        for n in (40, 80):
            rows.append(
                {"split": 0, "class": "df", "patients": n, "sites": 6, "rounds": 1, "epsilon": epsilon, "public": 0.7}
                | {"auroc": 0.7 + gain}
            )
    found = curve(rows, 32)
    at = {(p["patients"], p["epsilon"]): p for p in found["points"]}
    assert at[40, 3.0]["r"] == pytest.approx(40 * 0.719 / np.sqrt(6 * 32), rel=2e-3)
    assert at[40, 3.0]["gain"] / at[40, 3.0]["full"] == pytest.approx(0.5)
    assert all(b["low"] <= b["kept"] + 1e-9 and b["kept"] <= b["high"] + 1e-9 for b in found["bins"])
    setting = {"sites": SIZES, "dirichlet": 0.5, "delta": 1e-5, "splits": 3, "draws": 1}
    results = {
        "release": "a" * 64, "data": {"file": "x.zip", "sha256": "b" * 64}, "patients": {"df": 3},
        "setting": setting, "arms": summary(cells(), TEST), "curve": found,
    }  # fmt: skip
    text = report(results)
    assert "| epsilon 3 | 80.0 (+10.0" in text and "(50)" in text
    assert plot(found).startswith(b"<?xml") and plot(found) == plot(found)
