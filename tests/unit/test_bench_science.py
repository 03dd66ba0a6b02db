"""The benches on a few drawn pictures and the small release: same episodes, same code as the product, figures that add up."""

import io
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import multivariate_normal

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # bench is a folder of the repository, not a package that is installed

from bench import ablation, exemplar_report, fewshot, judge, networks, one_exemplar
from bench.figures import brier, compared, ece, holm
from bench.peers import against, literal, trained
from bench.peers.closed import HEADS
from bench.peers.public import Public, tuned
from bench.pictures import read_pictures
from bench.shifts import SHIFTS, Shifted
from bench.shipped import Ours
from sgps.bank import Bank
from sgps.encoders import ImageEncoder
from sgps.episodes import Interval, read_episodes, sample_episodes
from sgps.errors import InputError
from sgps.memory import Memory
from sgps.pretrain.frozen import HELD_OUT, TEST, frozen_episodes
from sgps.shipped import shipped_release
from sgps.synthesis import synthesize

DISEASES = {"akiec": 700, "df": 701, "vasc": 702}


@pytest.fixture(scope="module")
def data(tmp_path_factory, drawn):
    """Eight lesions of each of three diseases, the first with two pictures, and six of another class."""
    path = tmp_path_factory.mktemp("data") / "drawn.zip"
    rows = ["image_id,lesion_id,dx"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, profile in {**DISEASES, "wart": 703}.items():
            lesions = [*range(8), 0] if name in DISEASES else range(6)
            for place, (lesion, image) in enumerate(zip(lesions, drawn(profile, 0, len(lesions)), strict=True)):
                packed = io.BytesIO()
                image.save(packed, "PNG")
                archive.writestr(f"{name}/{name}-{place}.png", packed.getvalue())
                rows.append(f"{name}-{place},{name}-{lesion},{name}")
        archive.writestr("table.csv", "\n".join(rows))
    return path


@pytest.fixture(scope="module")
def pictures(data):
    return read_pictures(data)


@pytest.fixture(scope="module")
def known(pictures, small_release):
    rows = np.arange(len(pictures.name))
    features = ImageEncoder(small_release()).features([pictures.image(r) for r in rows])
    return dict(zip(rows.tolist(), features, strict=True))


def test_a_folder_is_read_like_the_zip_of_it(pictures, data, tmp_path):
    with zipfile.ZipFile(data) as archive:
        archive.extractall(tmp_path)
    folder = read_pictures(tmp_path)
    for column in ("name", "label", "lesion"):
        assert getattr(folder, column).tolist() == getattr(pictures, column).tolist()
    assert folder.sha256(3) == pictures.sha256(3) and len(folder.digest) == 64


def test_pictures_know_their_lesions(pictures):
    assert len(pictures.name) == 33 and len(set(pictures.lesion.tolist())) == 30
    assert pictures.others(list(DISEASES), trained=False).tolist() == np.flatnonzero(pictures.label == "wart").tolist()
    assert not len(pictures.others(list(DISEASES), trained=True))
    assert not len(pictures.others([*DISEASES, "wart"], trained=False))
    with pytest.raises(InputError, match="nv"):
        pictures.of(["nv"])


@pytest.mark.parametrize("learned", [(), ("body", "head", "text")])
def test_ours_is_what_the_product_writes(pictures, known, small_release, learned):
    release = small_release(learned)
    ours, names = Ours(release, pictures, known), ["df", "akiec"]
    rows = {n: np.flatnonzero(pictures.label == n)[:2].tolist() for n in names}
    made = ours.compose(rows)
    c = synthesize({n: [pictures.image(r) for r in rows[n]] for n in names}, {}, release)
    query = [5, 20]
    logits = ours.logits(made, query, names)
    told = c.predict([pictures.image(r) for r in query])
    assert np.allclose(logits, [[p.scores[n] for n in names] for p in told], atol=2e-3)
    assert ours.temperature(made) == pytest.approx(c.record.calibration.temperature)


def small(methods, **more):
    return fewshot.Plan([2], [1, 3], 6, 3, queries=4, methods=methods, **more)


def test_fewshot_gives_every_method_the_same_episodes(data, small_release, tmp_path):
    chosen = [
        "ours",
        "ours-other-text",
        "ours-other-exemplar",
        "ours-no-body",
        "prototype-centred",
        "ridge",
        "knn",
        "protonet",
    ]
    chosen += ["simpleshot-centred", "text-only", "tip-adapter", "tip-adapter-other-text", "bd-cspn-centred", "tim"]

    def run(out, methods):
        return fewshot.run(data, out, list(DISEASES), small(methods), small_release())

    r = run(tmp_path / "a", chosen)
    sets = read_episodes(tmp_path / "a" / "episodes.json.gz")["test"]
    for e in sets.episodes:
        for index in e.index:
            assert len(set(sets.lesion[index.ravel()].tolist())) == index.size
    ours = r["methods"]["ours"]
    centred = r["methods"]["prototype-centred"]
    assert ours["2w1s"]["episodes"] == centred["2w1s"]["episodes"]  # no part is learned: the same rule
    assert ours["2w1s"]["episodes"] == r["methods"]["simpleshot-centred"]["2w1s"]["episodes"]
    assert list(r["left out"]) == ["ours-no-body"] and r["ours minus"]["ours-other-text 2w3s"]["ours"] == "tie"
    wrong = r["methods"]["ours-other-exemplar"]["2w1s"]["episodes"]  # of two classes: every answer turns round
    assert np.allclose(np.array(ours["2w1s"]["episodes"]) + wrong, 1)
    assert len(ours["2w1s"]["episodes"]) == 6
    for by in r["methods"].values():
        for one in by.values():
            assert one["accuracy"]["mean"] == pytest.approx(one["balanced accuracy"]["mean"])
            assert 0 <= one["ece"] <= 1 and one["recall"][one["worst class"]] == min(one["recall"].values())
            assert sum(b["share"] for b in one["reliability"]) == pytest.approx(1)
    assert json.loads((tmp_path / "a" / "results.json").read_text())["methods"] == r["methods"]
    assert "ridge probe" in (tmp_path / "a" / "results.md").read_text()
    assert (tmp_path / "a" / "accuracy.svg").is_file() and (tmp_path / "a" / "reliability.svg").is_file()
    again = run(tmp_path / "a", ["knn"])
    assert all(again["methods"][m] == r["methods"][m] for m in ("ours", "knn")) and again["episodes"] == r["episodes"]


def test_answers_are_kept_until_something_that_they_depend_on_changes(data, small_release, tmp_path, monkeypatch):
    def run(seed=0):
        return fewshot.run(data, tmp_path, list(DISEASES), small(["knn"], seed=seed), small_release())

    first = run()
    monkeypatch.setattr(fewshot, "answer", lambda *a: pytest.fail("made again"))
    assert run()["methods"] == first["methods"]
    with pytest.raises(pytest.fail.Exception, match="made again"):
        run(seed=1)


@pytest.mark.slow
def test_methods_that_learn_across_tasks_and_bodies(data, small_release, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "TRAINING_TASKS", 3)
    monkeypatch.setattr(literal, "STEPS", 2)
    chosen = [*trained.NAMES, "feat-centred", "fit", "literal", "ours-no-body", "ours-other-body", "ours-random-body"]
    plan = fewshot.Plan([2], [1], 3, 2, queries=4, methods=chosen)
    release = small_release(("body", "head", "text"))
    r = fewshot.run(data, tmp_path, list(DISEASES), plan, release, shifts=False)
    assert set(r["methods"]) == {"ours", *chosen} and not r["left out"]
    assert all(0 <= by["2w1s"]["accuracy"]["mean"] <= 1 for by in r["methods"].values())
    assert len(r["methods"]["ours-no-body"]["2w1s"]["episodes"]) == 3  # zeroed: no body to make
    assert len(r["methods"]["ours"]["2w1s"]["episodes"]) == 2


def test_fewshot_makes_the_best_of_odd_data(drawn, small_release, tmp_path):
    """Folders without a table, a small class, a grey and a broken picture, hidden files, three ways of two classes."""
    for name, profile, count in (("spot", 710, 9), ("wart", 711, 7), ("rare", 712, 3)):
        folder = tmp_path / "in" / "deep" / name
        folder.mkdir(parents=True)
        for place, image in enumerate(drawn(profile, 0, count)):
            (image.convert("L") if place == 0 else image).save(folder / f"{place}.png")
    (tmp_path / "in" / "deep" / "spot" / "9.jpg").write_bytes(b"no picture")
    (tmp_path / "in" / "deep" / "spot" / "._0.png").write_bytes(b"of another system")
    (tmp_path / "in" / "deep" / "wart" / "copy.png").write_bytes(
        (tmp_path / "in" / "deep" / "wart" / "3.png").read_bytes()
    )
    plan = fewshot.Plan([2, 3], [1, 5], 4, 2, methods=["prototype", "knn"])
    r = fewshot.run(tmp_path / "in", tmp_path / "out", (), plan, small_release())
    assert list(r["methods"]["ours"]) == ["2w1s"] and r["episodes"]["queries"] == {"2w1s": 6}
    notes = " ".join(r["notes"])
    assert (
        "1 pictures cannot be read" in notes
        and "1 pictures are copies" in notes
        and "without rare" in notes
        and "no 3-way 1-shot" in notes
    )
    assert "no 2-way 5-shot" in notes and "6 queries" in notes
    with pytest.raises(InputError, match="too few lesions"):
        fewshot.run(tmp_path / "in", tmp_path / "out", (), fewshot.Plan([2], [9], 4), small_release())


def test_a_table_names_lesions_and_where_folders_do_not_hold_the_classes_the_classes(drawn, tmp_path):
    rows = ["filename,patient_id,diagnosis"]
    for place, image in enumerate(drawn(713, 0, 4)):
        (tmp_path / "part").mkdir(exist_ok=True)
        image.save(tmp_path / "part" / f"{place}.png")
        rows.append(f"{place}.png,p{place // 2},{'a' if place < 2 else 'b'}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    found = read_pictures(tmp_path)
    assert found.label.tolist() == ["a", "a", "b", "b"] and found.lesion.tolist() == ["p0", "p0", "p1", "p1"]
    (tmp_path / "more").mkdir()
    (tmp_path / "part" / "3.png").rename(tmp_path / "more" / "3.png")
    assert read_pictures(tmp_path).label.tolist() == ["more", "part", "part", "part"]
    assert sorted(read_pictures(tmp_path, ["a", "b"]).label.tolist()) == ["a", "a", "b", "b"]


def test_shifts_change_the_queries_and_nothing_else(pictures):
    plain = np.asarray(pictures.image(0), np.float32)
    hashes = {pictures.sha256(0)}
    for name in SHIFTS:
        shifted = Shifted.under(pictures, name)
        image = shifted.image(0)
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(shifted.image(0)))
        changed = image.size != pictures.image(0).size or np.abs(np.asarray(image, np.float32) - plain).mean() > 0.5
        assert changed, name
        hashes.add(shifted.sha256(0))
    assert len(hashes) == 1 + len(SHIFTS)


def test_fewshot_refuses_what_it_does_not_know(data, small_release, tmp_path):
    with pytest.raises(InputError, match="magic"):
        fewshot.run(data, tmp_path, ["df", "vasc"], small(["magic"]), small_release())
    with pytest.raises(InputError, match="two classes"):
        fewshot.run(data, tmp_path, ["df", "vasc"], fewshot.Plan([1], [1], 4), small_release())
    command = ["--data", str(data), "--meta-test", "df,vasc", "--ways", "2", "--shots", "9", "--out", str(tmp_path)]
    assert fewshot.main(command) == 2


def test_canonical_episodes_are_the_frozen_ones(shared_data, tmp_path):
    pictures = read_pictures(shared_data / "ham10000_200x150.zip")
    test = ["akiec", "df", "vasc"]
    rows, frozen = pictures.of(test), frozen_episodes()[TEST]
    assert pictures.name[rows].tolist() == frozen.name.tolist()
    made = sample_episodes(pictures.label[rows], pictures.lesion[rows], test, 3, 5)
    same = next(e for e in frozen.episodes if (e.ways, e.shots) == (3, 5))
    assert np.array_equal(np.sort(made.index[:, :, :5], 2), same.index[:, :, :5])
    held, trained = (set(pictures.lesion[pictures.others(test, trained=t)].tolist()) for t in (False, True))
    assert held and trained and not held & trained
    other = frozen_episodes()[HELD_OUT]  # of nv another sample of 250
    assert set(other.lesion[other.label != "nv"].tolist()) == {
        n for n in held if n in set(pictures.lesion[pictures.label != "nv"].tolist())
    }


def test_one_exemplar(data, small_release, tmp_path):
    r = one_exemplar.run(
        data,
        tmp_path,
        list(DISEASES),
        exemplars=2,
        splits=2,
        draws=2,
        level=0.2,
        release=small_release(),
        domains=[data],
    )
    assert set(r["methods"]) == set(one_exemplar.METHODS) - {
        one_exemplar.NO_TEXT
    }  # one other class gives Lite0 its centre
    assert r["exemplars"] == {d: 2 for d in DISEASES}
    assert r["queries"] == {"akiec": 8, "df": 8, "vasc": 8, "wart": 6}
    for d in DISEASES:
        found = r["decisions"][d]
        assert set(found["accepted"]) == set(r["queries"]) and found["none of known"] <= 1
        assert found["levels"]["0.2"] == found["accepted"]  # the level of this run
        assert all(found["levels"]["0.05"][c] <= found["levels"]["0.2"][c] for c in r["queries"])
        assert all(0 <= share <= 1 for share in found["coverage"].values())
        shown = found["shown"][data.name]  # the small release knows one kind only, and so no other
        assert shown["refused"] == shown["refused by logits"] and found["other kind"] == 0
    arms = r["memory arms"]
    assert [arms[a]["runs"] for a in ("no row", "no noise", "epsilon 8", "epsilon 3", "epsilon 1")] == [2, 2, 4, 4, 4]
    assert arms["no row"]["auroc other"]["kept"] == 0 and arms["no noise"]["auroc other"]["kept"] in (0, 1)
    assert all(sum(c["patients"]) == 4 and len(c["patients"]) == 6 for c in r["memory"]["cells"])
    worth = {a: [c["worth"] for c in r["memory"]["cells"] if c["arm"] == a] for a in arms}
    assert (
        not any(worth["no row"]) and min(worth["no noise"]) > 1 and not any(worth["epsilon 1"])
    )  # four patients are too few
    text = (tmp_path / "results.md").read_text()
    assert "conformal threshold" in text and "epsilon 3" in text


def test_a_row_without_noise_is_the_mean_of_the_patients(pictures, known, small_release):
    memory = Memory.empty(small_release().memory().coordinates, small_release().manifest.classes)
    rows = pictures.of(list(DISEASES))
    world = one_exemplar.World(pictures, tuple(DISEASES), rows, known, rows)
    held, given = one_exemplar.shares(world, np.random.default_rng(0))
    assert len(given) == 12 and all(sum(map(len, sites)) == 4 for sites in held.values())
    sums = one_exemplar.exact_sums(world, memory, held, {d: d for d in DISEASES})
    exact = one_exemplar.noised(sums, memory, None, np.random.default_rng(0))
    place = memory.ids.index("df")
    by_site = [
        [world.stack(rows[pictures.lesion[rows] == n]).mean(0) - memory.coordinates.mean for n in site]
        for site in held["df"]
    ]
    z = [np.array(s) @ memory.coordinates.directions[: memory.coordinates.used].T for s in by_site if s]
    z = [memory.coordinates.radius * x / np.linalg.norm(x, axis=1, keepdims=True) for x in z]
    weight = [len(x) for x in z]
    expected = sum(w * x.sum(0) for w, x in zip(weight, z, strict=True)) / sum(
        w * len(x) for w, x in zip(weight, z, strict=True)
    )
    assert np.allclose(exact.row(place)[: memory.coordinates.used], expected, atol=1e-4)
    noisy = [one_exemplar.noised(sums, memory, e, np.random.default_rng(1)) for e in (8.0, 1.0)]
    off = [np.linalg.norm(m.total[place] - exact.total[place]) for m in noisy]
    assert off[0] < off[1]


def test_ranking_weighs_classes_alike():
    label = np.array(["a"] * 4 + ["b"] * 2 + ["c"] * 100)
    scores = np.concatenate([[4, 3, 2, 1], [5, 5], np.zeros(100)])
    found = exemplar_report.ranked(scores, label, "a", ["a", "b"])
    assert found["auroc other"] == 0 and found["auroc all"] == 0.5
    assert found["sensitivity 0.1 all"] == 0
    scores[4] = scores[5] = 2.5
    assert exemplar_report.ranked(scores, label, "a", ["a", "c"])["sensitivity 0.05 other"] == 1
    assert exemplar_report.ranked(scores, label, "a", ["a", "b"])["sensitivity 0.05 all"] == 0.5


def test_plda_is_the_likelihood_ratio():
    random, label = np.random.default_rng(0), np.repeat(np.arange(6), 20)
    x = (3 * random.normal(size=(6, 4)))[label] + random.normal(size=(120, 4)) * [1, 2, 1, 0.5]
    bank, centre = SimpleNamespace(features=x, label=label, classes=range(6)), x.mean(0)
    means = np.stack([x[label == i].mean(0) for i in range(6)])
    within = np.cov((x - means[label]).T, bias=True)
    within = (1 - against.SHRINK) * within + against.SHRINK * np.trace(within) / 4 * np.eye(4)
    between = means.var(0).mean() * np.eye(4)
    one = multivariate_normal(np.zeros(4), between + within)
    two = multivariate_normal(np.zeros(8), np.block([[between + within, between], [between, between + within]]))
    e, q = x[0], x[1:40]
    pairs = np.hstack([np.tile(e - centre, (len(q), 1)), q - centre])
    expected = two.logpdf(pairs) - one.logpdf(e - centre) - one.logpdf(q - centre)
    off = against.plda(bank, centre)(e, q) - expected
    assert np.allclose(off, off[0])


def test_heads_answer_an_easy_task():
    random, label = np.random.default_rng(0), np.repeat(np.arange(5), 12)
    centres = 4 * random.normal(size=(5, 20))
    public = Public(centres[label] + random.normal(size=(60, 20)), label)
    support, queries = (np.stack([c + random.normal(size=(n, 20)) for c in centres[:3]]) for n in (2, 6))
    truth = np.repeat(np.arange(3), 6)
    for heads in HEADS.values():
        head, temperature = tuned(heads, public, 3, 2)
        scores = head(support, queries.reshape(-1, 20))
        assert (scores.argmax(1) == truth).mean() > 0.9 and temperature > 0
        two = head(support[:2], queries[:2].reshape(-1, 20))
        assert (two.argmax(1) == truth[:12]).mean() > 0.9
    assert tuned(HEADS["ridge"], Public(public.features[:4], label[:4]), 3, 2) == (HEADS["ridge"][0], 1.0)


def test_figures_by_hand():
    p, truth = np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 0])
    assert brier(p, truth) == pytest.approx((0.08 + 0.72) / 2)
    assert ece(np.array([0.8, 0.6]), np.array([True, False])) == pytest.approx((0.2 + 0.6) / 2)
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    found = compared(
        {"x": Interval(0.1, 0.02), "y": Interval(-0.1, 0.02), "z": Interval(0.01, 0.02), "w": Interval(0.0, 0.0)}
    )
    assert [found[k]["ours"] for k in "xyzw"] == ["better", "worse", "tie", "tie"]


@pytest.mark.slow
def test_ablation_changes_one_part_at_a_time(data, small_release, tmp_path):
    r = ablation.run(
        data, tmp_path, list(DISEASES), 4, 2, 2, release=small_release(("text",)), drawn=range(8000, 8003), patients=12
    )
    test, drawn = r["sides"].values()
    assert not {"row of the class memory, no noise", ablation.RIVAL_FREE} - set(test["arms"])
    assert "row of the class memory, no noise" not in drawn["arms"]  # the catalogue does not know these classes
    assert {len(by) for t, by in drawn["arms"].items() if "body" not in t and t != ablation.RIVAL_FREE} == {5}
    assert drawn["minus"]["one view, body from a random generator 2w1s"]["mean"] != 0
    assert (tmp_path / "results.md").read_text().count("| shipped |") == 2


def test_the_judge_uses_public_classes_alone_and_hides_those_of_a_task(tmp_path):
    r = judge.run(tmp_path, tasks=8, pairs=40)
    by = r["text"]["dermoscopy"]["2w1s"]
    assert by["5.5, 1"]["mean"] != by[judge.EXCHANGED]["mean"] and len(by) == 9
    sides = r["rivals"]["drawn"]
    assert sides["in the bank"]["0"] == sides["not in the bank"]["0"]  # without rivals nobody asks whom the bank knows
    assert sides["in the bank"]["1"] != sides["not in the bank"]["1"]
    assert not {"akiec", "df", "vasc"} & {c.id for c in Bank.of(shipped_release()).classes}


@pytest.mark.slow
def test_networks_are_judged_on_what_none_was_trained_on(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "EPISODES", 10)
    monkeypatch.setattr(networks, "DRAWN", range(7000, 7004))
    monkeypatch.setattr(networks, "networks", lambda _: {"mean colour": ("colour", _mean_colour)})
    r = networks.run(shared_data, tmp_path)
    assert {k for by in r["networks"]["mean colour"].values() for k in by} == {"2w1s", "3w1s", "3w5s"}
    asked = {j.name: j for j in networks.judges(shared_data, tmp_path, 11)}
    skin = asked["skin"]
    assert not set(skin.pictures.lesion[skin.rows]) & set(skin.pictures.lesion[skin.centre])
    assert set(skin.pictures.label[skin.rows]) == {"bcc", "bkl", "mel", "nv"}
    given = {"mean colour": ("colour", _mean_colour), "nothing": ("nothing", lambda images: _mean_colour(images) ** 0)}
    own = {"mean colour": skin.middle("colour", _mean_colour, tmp_path)}
    r = networks.frozen(shared_data, list(asked.values()), given, own, "mean colour", tmp_path)
    assert list(r["mean colour"]) == [networks.OWN, "drawn", "skin"] and list(r["nothing"]) == ["drawn", "skin"]
    assert r["mean colour"]["skin"]["by"]["3w1s"]["minus"] == {"mean": 0.0, "half": 0.0}
    assert r["mean colour"]["skin"]["close"] and not r["nothing"]["skin"]["close"]
    assert "below by 1 or more" in "".join(networks._frozen_report(r))
    with pytest.raises(InputError, match="is not there"):
        networks.run(tmp_path / "nothing", tmp_path / "out")


def _mean_colour(images):
    return np.stack([np.asarray(i.resize((8, 8)), np.float32).mean((0, 1)) for i in images])
