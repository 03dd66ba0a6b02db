"""Public image sets: zip or folder, metadata, classes left out, decoded once; and the pool that is drawn from them."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgps.errors import ConfigError, InputError
from sgps.pretrain import images
from sgps.pretrain.images import Images, read_images, read_named
from sgps.pretrain.pool import Pool, held_out, step_random
from sgps.pretrain.recipe import Draw, ImageSet, Recipe, Table, read_recipe

TABLE = Table(file="metadata.csv", image="image_id", label="dx", lesion="lesion_id", site="localization")
SKIN = ImageSet(
    name="skin",
    file="skin",
    role="skin",
    frame=(40, 30),
    turn=True,
    leave_out=("akiec", "df", "vasc"),
    table=TABLE,
    licence="CC0-1.0",
    source="test",
)
DRAWN = ImageSet(
    name="drawn",
    draw=Draw(first=0, profiles=2, patients=3),
    role="other",
    frame=(40, 40),
    turn=True,
    leave_out=(),
    licence="Apache-2.0",
    source="test",
)


def make_skin(folder: Path, lesions: int = 10) -> None:
    """Folder of class folders with two images a lesion and a metadata table."""
    random, table = np.random.default_rng(0), io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["lesion_id", "image_id", "dx", "localization"])
    for label in ("nv", "mel", "df"):
        (folder / label).mkdir(parents=True)
        for place in range(2 * lesions):
            name = f"{label}-{place:02d}"
            pixels = random.integers(0, 256, (30, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{name}.png")
            rows.writerow([f"{label}-lesion-{place // 2}", name, label, "back" if place % 3 else "face"])
    (folder / "metadata.csv").write_text(table.getvalue())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_skin(tmp_path / "data" / "skin")
    return tmp_path / "data"


@pytest.fixture
def recipe() -> Recipe:
    values = read_recipe(None).model_dump() | {"base_classes": ("nv", "mel"), "sets": (SKIN, DRAWN), "size": 32}
    return Recipe.model_validate(values)


def test_a_left_out_class_is_never_decoded(data: Path, tmp_path: Path) -> None:
    (data / "skin" / "df" / "df-00.png").write_bytes(b"not an image")
    found = read_images(data, SKIN, tmp_path / "cache")
    assert set(found.label) == {"nv", "mel"}
    assert found.pixels.shape == (40, 30, 40, 3)


def test_zip_and_folder_give_the_same_images(data: Path, tmp_path: Path) -> None:
    folder = read_images(data, SKIN, tmp_path / "a")
    packed = tmp_path / "packed"
    packed.mkdir()
    with zipfile.ZipFile(packed / "skin.zip", "w") as archive:
        for file in sorted((data / "skin").rglob("*")):
            archive.write(file, file.relative_to(data / "skin"))
    zipped = read_images(packed, SKIN, tmp_path / "b")
    assert np.array_equal(folder.pixels, zipped.pixels)
    assert folder.lesion.tolist() == zipped.lesion.tolist()
    assert folder.site.tolist() == zipped.site.tolist()


def test_images_are_decoded_once_until_the_file_changes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, fit = [], images.fit

    def counted(*arguments: object) -> object:
        calls.append(1)
        return fit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "fit", counted)
    read_images(data, SKIN, tmp_path / "cache")
    read_images(data, SKIN, tmp_path / "cache")
    assert len(calls) == 40
    Image.new("RGB", (40, 30)).save(data / "skin" / "nv" / "nv-00.png")
    assert read_images(data, SKIN, tmp_path / "cache").pixels.min(axis=(1, 2, 3)).tolist().count(0) >= 1
    assert len(calls) == 80


def test_larger_images_lose_their_margin_before_they_are_resized() -> None:
    wide = np.zeros((30, 120, 3), np.uint8)
    wide[:, 40:80] = 255  # the middle with the frame's aspect
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "PNG")
    assert images.fit(file.getvalue(), (40, 30), "x").min() == 255


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda skin: (skin / "nv" / "nv-00.png").write_bytes(b"x" * 100), r"nv-00\.png"),
        (lambda skin: (skin / "metadata.csv").unlink(), "metadata.csv is missing"),
        (lambda skin: (skin / "metadata.csv").write_text("image_id,dx\n"), "no column lesion_id, localization"),
        (lambda skin: (skin / "nv" / "new.png").write_bytes(b""), r"new\.png: has no row"),
    ],
)
def test_a_damaged_set_is_one_line_and_leaves_no_cache(data: Path, tmp_path: Path, damage: object, says: str) -> None:
    damage(data / "skin")  # type: ignore[operator]
    with pytest.raises(InputError, match=says):
        read_images(data, SKIN, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.json"))


def test_named_images_come_in_the_order_asked_for_and_missing_ones_are_named(data: Path, tmp_path: Path) -> None:
    whole = read_images(data, SKIN, tmp_path / "cache")
    names = [whole.name[5], whole.name[2]]
    assert np.array_equal(read_named(data, SKIN, names), whole.pixels[[5, 2]])
    with pytest.raises(InputError, match=r"1 of 1 images are missing, first nv/none\.png"):
        read_named(data, SKIN, ["nv/none.png"])


def test_drawn_images_are_a_class_for_each_profile(tmp_path: Path) -> None:
    found = read_images(tmp_path, DRAWN, tmp_path / "cache")
    assert sorted(set(found.label)) == ["drawn-0000", "drawn-0001"]
    assert len(np.unique(found.pixels.reshape(6, -1), axis=0)) == 6
    again = read_images(tmp_path, DRAWN, tmp_path / "other")
    assert again.sha256 == found.sha256


def test_held_out_lesions_never_enter_the_pool(data: Path, tmp_path: Path, recipe: Recipe) -> None:
    sets = {k.name: read_images(data, k, tmp_path / "cache") for k in recipe.sets}
    skin = sets["skin"]
    held = held_out(skin.lesion, skin.label, recipe)
    assert held.sum() == 8  # two of ten lesions of two classes, two images each
    pool = Pool(sets, recipe)
    trained = set(skin.lesion[pool.members[0].rows])
    assert trained.isdisjoint(skin.lesion[held])
    assert len(trained) == 16
    assert pool.counts() == {"drawn:drawn-0000": 3, "drawn:drawn-0001": 3, "skin:mel": 16, "skin:nv": 16}


def test_a_meta_test_class_in_the_pool_is_refused(data: Path, tmp_path: Path, recipe: Recipe) -> None:
    sets = {k.name: read_images(data, k, tmp_path / "cache") for k in recipe.sets}
    drawn = sets["drawn"]
    label = np.where(np.arange(len(drawn)) == 3, "df", drawn.label)
    sets["drawn"] = Images(drawn.pixels, drawn.name, label, drawn.lesion, drawn.site, drawn.sha256)
    with pytest.raises(ConfigError, match="drawn: the meta-test class df is in the training pool"):
        Pool(sets, recipe)


def test_a_step_draws_the_same_batch_again(data: Path, tmp_path: Path, recipe: Recipe) -> None:
    pool = Pool({k.name: read_images(data, k, tmp_path / "cache") for k in recipe.sets}, recipe)

    def batch(step: int) -> np.ndarray:
        random, generator = step_random(3, 1, step)
        found = pool.batch(pool.draw(10, random, 0.7), 32, generator, 1.0, (0.3, 1.0))
        assert found.x.shape == (10, 3, 32, 32)
        assert found.x.abs().max() <= 1
        assert (found.site[:7] >= 0).all() and (found.site[7:] == -1).all()
        return found.x.numpy()

    assert np.array_equal(batch(5), batch(5))
    assert not np.array_equal(batch(5), batch(6))


def test_an_atlas_keeps_so_many_lesions_of_a_class_and_none_that_the_recipe_holds_out(recipe: Recipe) -> None:
    lesion = np.array([f"{c}-{i // 2}" for c in recipe.base_classes for i in range(60)])
    label = np.array([c for c in recipe.base_classes for _ in range(60)])
    usual = held_out(lesion, label, recipe)
    small = held_out(lesion, label, recipe.model_copy(update={"atlas": 4}))
    assert not (usual & ~small).any()
    assert all(len(np.unique(lesion[~small & (label == c)])) == 4 for c in recipe.base_classes)
    assert (held_out(lesion, label, recipe.model_copy(update={"atlas": 99})) == usual).all()


def test_a_damaged_member_of_a_zip_is_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("nv/a.png", bytes(range(256)) * 40)
    data = bytearray((tmp_path / "set.zip").read_bytes())
    data[45:60] = b"\xff" * 15
    (tmp_path / "set.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"nv/a\.png: is damaged"):
        images.Source(tmp_path, "set").read("nv/a.png")
