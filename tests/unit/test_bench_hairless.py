"""Hair is found and filled, and what only looks a little like it stays."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from bench import hairless
from bench.hairless import found, without

SKIN, BROWN = (205, 160, 145), (120, 75, 50)


def _skin(size=(160, 150), seed=0):
    """Uneven skin with a blurred lesion in the middle."""
    image = Image.new("RGB", size, SKIN)
    w, h = size
    ImageDraw.Draw(image).ellipse((0.3 * w, 0.3 * h, 0.7 * w, 0.7 * h), fill=BROWN)
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(0.02 * h)), np.float32)
    grain = np.random.default_rng(seed).normal(0, 2, (h, w, 1))
    return Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8))


def _line(image, degrees, width=2, colour=(25, 19, 15), reach=0.45, middle=(0.5, 0.5)):
    """A straight hair; where it is."""
    out, where = image.copy(), Image.new("1", image.size)
    side = min(image.size)
    step = reach * side * np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))])
    ends = [tuple(np.multiply(middle, image.size) - step), tuple(np.multiply(middle, image.size) + step)]
    for picture, fill in ((out, colour), (where, 1)):
        ImageDraw.Draw(picture).line(ends, fill=fill, width=width)
    return out, np.asarray(where)


@pytest.fixture
def little(monkeypatch):
    """Even a little hair is removed."""
    monkeypatch.setattr(hairless, "LEAST", 0.001)


@pytest.mark.parametrize("degrees", range(0, 180, 12))
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.usefixtures("little")
def test_a_hair_of_any_direction_is_found_and_filled(degrees, width):
    plain = _skin()
    hairy, where = _line(plain, degrees, width)
    assert (found(np.asarray(hairy)) & where).sum() > 0.9 * where.sum()
    before, after = np.asarray(plain, int), np.asarray(without(hairy), int)
    assert np.abs(after - before)[where].mean() < 0.1 * np.abs(np.asarray(hairy, int) - before)[where].mean()


def test_a_bent_hair_and_crossing_hairs_are_found():
    hairy, truth = _skin(), Image.new("1", (160, 150))
    for picture, fill in ((hairy, (25, 19, 15)), (truth, 1)):
        pen = ImageDraw.Draw(picture)
        pen.arc((20, 10, 200, 190), 150, 260, fill=fill, width=2)
        pen.arc((-60, -40, 100, 120), 0, 90, fill=fill, width=1)
    where = np.asarray(truth)
    assert (found(np.asarray(hairy)) & where).sum() > 0.85 * where.sum()


def test_a_picture_without_hair_is_the_very_same():
    for size in ((160, 150), (640, 600), (16, 16), (17, 300)):
        image = _skin(size)
        assert without(image) is image


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("colour", [(250, 240, 220), (150, 115, 105)])
def test_light_and_faint_hair_stays(colour):
    hairy, _ = _line(_skin(), 70, colour=colour)
    assert without(hairy) is hairy


def test_only_hair_and_what_is_beside_it_changes():
    hairy, where = _line(_skin(), 30, width=3)
    changed = (np.asarray(without(hairy)) != np.asarray(hairy)).any(2)
    near = np.asarray(Image.fromarray(where).convert("L").filter(ImageFilter.MaxFilter(9))) > 0
    assert changed.any() and not (changed & ~near).any()


def test_a_large_picture_keeps_its_size_and_its_pixels_beside_the_hair():
    plain = _skin((1200, 900))
    hairy, where = _line(plain, 60, width=18)
    out = without(hairy)
    assert out.size == hairy.size
    changed = (np.asarray(out) != np.asarray(hairy)).any(2)
    near = np.asarray(Image.fromarray(where).convert("L").filter(ImageFilter.MaxFilter(61))) > 0
    assert not (changed & ~near).any()
    before, after = np.asarray(plain, int), np.asarray(out, int)
    assert np.abs(after - before)[where].mean() < 0.15 * np.abs(np.asarray(hairy, int) - before)[where].mean()


def test_network_dots_streaks_and_borders_are_no_hair():
    network = _skin()
    pen = ImageDraw.Draw(network)
    pen.ellipse((40, 35, 120, 115), fill=(95, 60, 40))
    for row in range(9):
        for column in range(9):
            x, y = 44 + 9 * column + 4 * (row % 2), 39 + 8 * row
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(190, 150, 120))
    dots = _skin()
    for x, y in np.random.default_rng(1).uniform(20, 130, (60, 2)):
        ImageDraw.Draw(dots).ellipse((x - 2, y - 2, x + 2, y + 2), fill=(60, 40, 30))
    streaks = _skin()
    for degrees in range(0, 360, 15):
        u = np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))])
        ImageDraw.Draw(streaks).line([tuple(80 + 30 * u), tuple(80 + 44 * u)], fill=(70, 45, 30), width=2)
    ring = Image.new("RGB", (160, 150))
    ring.paste(_skin(), mask=Image.eval(Image.radial_gradient("L").resize((160, 150)), lambda v: 255 * (v < 125)))
    for image in (network, dots, streaks, ring):
        assert without(image) is image


def test_vessels_are_no_hair():
    """As thin and as long, but red: dark in green and blue only."""
    red, where = _line(_skin(), 20, colour=(190, 70, 70))
    assert without(red) is red
    assert np.abs(np.asarray(red, int) - np.asarray(_skin(), int))[where].max() > 60


def test_too_little_hair_is_left_where_it_is(monkeypatch):
    hairy, _ = _line(_skin(), 40, width=2, reach=0.2)
    monkeypatch.setattr(hairless, "LEAST", 0.001)
    assert without(hairy) is not hairy
    monkeypatch.setattr(hairless, "LEAST", 0.02)
    assert without(hairy) is hairy


def test_a_tuft_is_filled_with_skin():
    """Hairs so close that nothing is seen between them: deep inside there is no neighbour to take a colour from."""
    tuft = Image.new("RGB", (160, 150), SKIN)
    for x in range(0, 80, 4):
        ImageDraw.Draw(tuft).line((x, 0, x, 150), fill=(40, 30, 25), width=2)
    assert np.abs(np.asarray(without(tuft), int) - SKIN).max() <= 2


def test_a_picture_all_over_hair_stays_a_picture():
    stripes = np.zeros((150, 160, 3), np.uint8) + np.array(SKIN, np.uint8)
    stripes[::4] = (40, 30, 25)
    out = np.asarray(without(Image.fromarray(stripes)))
    assert out.shape == stripes.shape and out.dtype == np.uint8


def test_grey_pictures_are_taken_too():
    hairy, _ = _line(_skin(), 10)
    assert without(hairy.convert("L")).mode == "RGB"
