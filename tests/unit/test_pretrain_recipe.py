"""The recipe keeps the meta-test classes out of everything, and says what does not fit."""

from pathlib import Path

import pytest

from sgps.errors import ConfigError
from sgps.pretrain.recipe import SHIPPED, read_recipe, refuse_meta_test


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = SHIPPED.read_text()
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


def test_a_meta_test_class_in_a_pool_is_refused() -> None:
    recipe = read_recipe(None)
    refuse_meta_test(["nv", "mel"], recipe, "skin")
    with pytest.raises(ConfigError, match="skin: the meta-test class df is in the training pool"):
        refuse_meta_test(["nv", "df"], recipe, "skin")
