"""The recipe keeps the meta-test classes out of everything, and says what does not fit."""

from pathlib import Path

import pytest

from sgps.errors import ConfigError
from sgps.pretrain.recipe import SHIPPED, read_recipe, refuse_meta_test

OPEN = Path(__file__).parents[2] / "bench" / "recipes" / "open.yaml"


def changed(tmp_path: Path, old: str, new: str, of: Path = SHIPPED) -> Path:
    text = of.read_text()
    assert old in text
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


def test_the_shipped_recipe_leaves_out_the_meta_test_classes_and_unlicensed_images() -> None:
    recipe = read_recipe(None)
    assert recipe.meta_test == ("akiec", "df", "vasc")
    assert set(recipe.meta_test) <= set(recipe.skin.leave_out)
    assert not set(recipe.meta_test) & set(recipe.base_classes)
    assert not any("brain" in (s.file or s.name) for s in recipe.sets)
    assert all(s.licence and s.source for s in recipe.sets)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("leave_out: [akiec, df, vasc]", "leave_out: [akiec, df]", "must hold the meta-test class vasc"),
        ("base_classes: [nv, mel", "base_classes: [nv, df", "share df"),
        ("role: skin", "role: other", "one set of role skin"),
        ("name: mild", "name: strong", "the name strong appears twice"),
        ("keep: [75]", "keep: [76]", "keep must name steps"),
        ("measure: true", "measured: true", "measured"),
        ("horizon: 2600", "horizon: 700", "steps must not exceed horizon"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_recipe(changed(tmp_path, old, new))


def test_the_open_recipe_reads_no_image_under_a_non_commercial_licence() -> None:
    recipe, shipped = read_recipe(OPEN), read_recipe(None)
    assert not any("NC" in s.licence or "ham" in f"{s.name} {s.file}".lower() for s in recipe.sets)
    assert recipe.base_classes == tuple(f"drawn-{n:04d}" for n in range(200))
    assert [f.model_copy(update={"site": 0.0}) for f in shipped.finetune] == list(recipe.finetune)
    assert (recipe.distil, recipe.size) == (shipped.distil, shipped.size)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("held_out: 0.2", "base_classes: [nv, mel]\nheld_out: 0.2", "base_classes: leave the line out"),
        ("profiles: 200", "profiles: 1", "sets.drawn.draw: two profiles"),
        ("patients: 20", "patients: 1", "two patients that are not held out"),
        ("measure: false", "measure: true", "measure: the frozen episodes are no images of sets.drawn"),
        ("draw: {first: 0, profiles: 200, patients: 20}", "file: moles", "base_classes: at least two are needed"),
    ],
)
def test_a_drawn_skin_set_that_does_not_fit_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_recipe(changed(tmp_path, old, new, OPEN))


def test_a_meta_test_class_in_a_pool_is_refused() -> None:
    recipe = read_recipe(None)
    refuse_meta_test(["nv", "mel"], recipe, "skin")
    with pytest.raises(ConfigError, match="skin: the meta-test class df is in the training pool"):
        refuse_meta_test(["nv", "df"], recipe, "skin")
