import numpy as np
import pytest
from PIL import Image

from bench import hair
from bench.pictures import read_pictures
from sgps.draw import Camera, draw_profile, write_folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three drawn classes without hair or rulers."""
    folder = tmp_path_factory.mktemp("drawn") / "set"
    camera = Camera(hair=0, ruler=0, bubbles=0)
    write_folder(folder, [draw_profile(n) for n in (7000, 7001, 7002)], 21, 1, camera, size=150)
    return read_pictures(folder)


def _darkness(pictures, rows):
    """The share of dark pixels, which hair changes, and mean colours, which tell the classes apart."""
    pixels = [np.asarray(pictures.image(int(r)), np.float32) / 255 for r in rows]
    return np.stack([[*p.mean((0, 1)), 30 * (p.max(2) < 0.25).mean()] for p in pixels])


def test_hair_is_drawn_the_same_way_twice_and_the_same_picture_keeps_its_hash(drawn):
    for kind in hair.KINDS:
        one, two = hair.hairs(drawn, kind), hair.hairs(drawn, kind)
        assert one.sha256(0) == two.sha256(0) != drawn.sha256(0)
        assert (np.asarray(one.image(0)) == np.asarray(two.image(0))).all()
    bare = hair.cleaned(drawn)
    assert [bare.sha256(r) == drawn.sha256(r) for r in range(5)] == [bare.touched(np.array([r])) == 0 for r in range(5)]
    assert hair.cleaned(hair.hairs(drawn, "hair")).touched(np.arange(20)) > 0.5


def test_removal_brings_back_what_hair_costs(drawn, monkeypatch):
    monkeypatch.setattr(hair, "EPISODES", 60)
    r = hair.measure(drawn, np.arange(len(drawn.name)), _darkness, np.zeros(4), 3, ("hair",))
    assert r["pictures"] == 63 and set(r["by"]) == {"2w1s", "3w1s", "3w5s"}
    for by in r["by"].values():
        assert set(by) == {"clean", "clean, gain", "hair, loss", "hair, gain"}
        assert by["hair, loss"]["mean"] < -0.02 and by["hair, gain"]["mean"] > -0.5 * by["hair, loss"]["mean"]


def test_the_report_says_every_figure(drawn, monkeypatch):
    monkeypatch.setattr(hair, "EPISODES", 10)
    found = hair.measure(drawn, np.arange(len(drawn.name)), _darkness, np.zeros(4), 3, ())
    one = {"mean": 0.5, "half": 0.1}
    real = {"pictures": {"nv": 60, "mel": 40}, "held_out": 30, "share": [0.4, 0.02], "before": one, "gain": one}
    text = hair.report(
        {"release": "0" * 64, "sets": {"drawn": found}, "real": real, "milliseconds": 9.0, "milliseconds_clean": 5.0}
    )
    assert "clean, gain" in text and "2.0 to 40.0 % hair" in text and "60 nv, 40 mel" in text and "+50.0 ± 10.0" in text


@pytest.mark.parametrize("kind", ["soft", "light"])
def test_soft_hair_is_darker_and_light_hair_lighter(kind):
    skin = Image.new("RGB", (150, 150), (190, 150, 130))
    drawn = np.asarray(hair.KINDS[kind](skin, np.random.default_rng(0)), int).sum(2) - np.asarray(skin, int).sum(2)
    assert ((drawn > 0) if kind == "light" else (drawn < 0)).mean() > 0.02
