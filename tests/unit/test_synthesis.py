import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from sgps import synthesis
from sgps.asked import Asked, remarks
from sgps.bank import Bank
from sgps.encoders import ImageEncoder
from sgps.errors import InputError, SignatureError
from sgps.generator import KNOWN_KIND, STRANGE_KIND, linear_head, spread_of
from sgps.memory import Memory
from sgps.rehearsal import without_itself
from sgps.rivals import choose, domain_of, same_disease, unit
from sgps.synthesis import Synthesizer, synthesize

TEXTS = {
    "a": "Red lacunae, sharp border, no network.",
    "b": "Blue-grey veil, irregular streaks.",
    "c": "A central white patch.",
}
EVERYTHING = ("body", "head", "text")


@pytest.fixture(scope="module")
def abc(drawn):
    return {"a": drawn(600, 0, 2), "b": drawn(601), "c": drawn(602, 0, 3)}


def weights(classifier):
    return classifier.state["classifier.weight"].numpy()


def test_one_exemplar_gives_the_disease_and_its_rivals(small_release, drawn):
    c = synthesize({"a": drawn(600)}, {"a": TEXTS["a"]}, small_release())
    assert c.labels[0] == "a" and c.named == ("a",) and len(c.labels) == 6
    assert len(c.record.origin.rivals) == 5 and len(set(c.labels)) == 6
    assert len(synthesize({"a": drawn(600)}, {"a": TEXTS["a"]}, small_release(), rivals=2).labels) == 3


def test_zero_parts_give_the_base_and_centred_cosine_prototypes(small_release, abc):
    release = small_release()
    abc = {key: images[:1] for key, images in abc.items()}
    c = synthesize(abc, TEXTS, release)
    encoder, memory = ImageEncoder(release), release.memory()
    base = encoder.target.base
    assert all(torch.equal(c.state[n], t) for n, t in base.items())
    scale = float(release.tensors("generator.safetensors", "head.scale")[""].item())
    v = np.stack([encoder.features(images).mean(0) for images in abc.values()])
    assert np.allclose(weights(c), scale * unit(v - memory.coordinates.mean), atol=1e-5)
    assert np.allclose(c.state["classifier.bias"].numpy(), -weights(c) @ memory.coordinates.mean, atol=1e-4)


def test_exemplars_and_own_patients_of_several_diseases_say_what_counts_less(small_release, abc):
    release = small_release()
    encoder, centre = ImageEncoder(release), release.memory().coordinates.mean
    far = (centre + np.random.default_rng(0).normal(0, 0.1, (15, len(centre)))).astype(np.float32)
    own = {"b": far[:9], "c": far[9:]}
    seen = [np.concatenate([encoder.features(images), *([own[k]] if k in own else [])]) for k, images in abc.items()]
    assert [len(x) for x in seen] == [2, KNOWN_KIND.least, KNOWN_KIND.least - 1]
    directions = unit(seen[1] - centre)
    differ = directions - directions.mean(0)
    metric = np.linalg.inv(np.eye(len(centre)) + differ.T @ differ)
    z = np.stack([x.mean(0) for x in seen]) - centre
    scale = float(release.tensors("generator.safetensors", "head.scale")[""].item())
    expected = scale * z @ metric / np.sqrt(np.einsum("nf,fg,ng->n", z, metric, z))[:, None]
    plain = scale * unit(z)
    found = weights(synthesize(abc, TEXTS, release, own=own))
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected - plain).max()


def test_pictures_of_a_kind_that_the_bank_does_not_hold_are_named_and_show_their_spread_from_two_on(release):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    tints = {"a": [(1, 1, 1), (1, 0, 0)], "b": [(0.5, 0.5, 0.5), (0, 0, 1)]}
    noise = {k: [Image.fromarray((noise * np.array(t)).astype(np.uint8)) for t in by] for k, by in tints.items()}
    s = Synthesizer(release)
    c = s.compose(noise, {k: TEXTS[k] for k in noise})
    assert c.trust == STRANGE_KIND and "the exemplars look like no kind of picture in the" in " ".join(c.notes)
    alone = s.compose({"a": noise["a"][:1]}, {"a": TEXTS["a"]})
    assert "the exemplar looks like no kind of picture in the" in " ".join(alone.notes)
    groups = [torch.from_numpy(s.encoder.features(images)) for images in noise.values()]
    centre = torch.from_numpy(s.centre)
    v = torch.stack([g.mean(0) for g in groups])
    weight, bias = linear_head(v, centre, s.scale, spread_of(groups, centre, STRANGE_KIND))
    assert torch.allclose(c.weight, weight, atol=1e-4) and torch.allclose(c.bias, bias, atol=1e-3)
    assert not torch.allclose(c.weight, linear_head(v, centre, s.scale)[0], atol=1e-3)
    assert s.judged(c).trust == STRANGE_KIND


def test_known_kinds_bear_no_such_note(small_release, abc):
    c = Synthesizer(small_release()).compose(abc, TEXTS)
    assert c.trust == KNOWN_KIND and not any("no kind of picture" in n for n in c.notes)


def test_one_disease_of_several_exemplars_stays_centred_cosine(small_release, abc):
    release = small_release()
    scale = float(release.tensors("generator.safetensors", "head.scale")[""].item())
    z = ImageEncoder(release).features(abc["c"]).mean(0) - release.memory().coordinates.mean
    assert np.allclose(weights(synthesize({"c": abc["c"]}, {"c": TEXTS["c"]}, release))[0], scale * unit(z), atol=1e-5)


@pytest.mark.parametrize("learned", [(), EVERYTHING])
def test_another_order_of_classes_reorders_the_outputs_exactly(small_release, abc, learned):
    release = small_release(learned)
    one = synthesize(abc, TEXTS, release)
    other = synthesize(dict(reversed(abc.items())), TEXTS, release)
    assert other.labels == one.labels[::-1]
    assert np.array_equal(weights(one), weights(other)[::-1])
    assert all(torch.equal(t, other.state[n]) for n, t in one.state.items() if not n.startswith("classifier"))
    image = abc["b"]
    assert one.predict(image)[0].scores == pytest.approx(other.predict(image)[0].scores, abs=1e-5)


def test_exchanged_texts_change_every_kind_of_tensor(small_release, abc):
    release = small_release(EVERYTHING)
    one = synthesize(abc, TEXTS, release)
    other = synthesize(abc, {**TEXTS, "a": TEXTS["b"], "b": TEXTS["a"]}, release)
    for name in ("conv_stem.weight", "blocks.3.0.conv_dw.weight", "bn1.running_var", "bn2.weight", "classifier.weight"):
        assert not torch.equal(one.state[name], other.state[name]), name
    zero = small_release()
    assert np.array_equal(
        weights(synthesize(abc, TEXTS, zero)), weights(synthesize(abc, dict.fromkeys(TEXTS, "x"), zero))
    )


def test_a_part_that_is_off_changes_nothing(small_release, abc):
    plain, head = synthesize(abc, TEXTS, small_release()), synthesize(abc, TEXTS, small_release(("head",)))
    assert all(torch.equal(t, head.state[n]) for n, t in plain.state.items() if not n.startswith("classifier"))
    assert not np.allclose(weights(plain), weights(head))
    assert head.record.origin.cosine == 1 and synthesize(abc, TEXTS, small_release(("body",))).record.origin.cosine < 1


def test_a_row_moves_the_prototype_by_its_worth(small_release, drawn):
    release = small_release((), 30)
    memory, images = release.memory(), drawn(600)
    place = release.manifest.classes.index("df")
    worth = memory.worth(place)
    assert worth == pytest.approx(30)
    known, unknown = (synthesize({n: images}, {n: "A lesion."}, release) for n in ("dermatofibroma", "something new"))
    v = ImageEncoder(release).features(images)[0]
    centre = memory.coordinates.mean
    gap = memory.row(place) - memory.coordinates.place(
        v
    )  # without noise, as many patients in every coordinate that is used
    gap[memory.coordinates.used :] = 0
    expected = v + worth / (1 + worth) * gap @ memory.coordinates.directions
    assert np.allclose(unit(weights(known)[0]), unit(expected - centre), atol=1e-4)
    assert np.allclose(unit(weights(unknown)[0]), unit(v - centre), atol=1e-4)
    assert known.record.origin.diseases[0].worth == pytest.approx(30) and known.record.origin.diseases[0].id == "df"
    assert unknown.record.origin.diseases[0].worth == 0 and unknown.record.origin.diseases[0].id is None


def test_the_row_reaches_the_body(small_release, drawn):
    release = small_release(EVERYTHING, 30)
    empty = Memory.empty(release.memory().coordinates, release.manifest.classes)
    one, other = (synthesize({"df": drawn(600)}, {}, release, memory=m) for m in (None, empty))
    assert not torch.equal(one.state["conv_stem.weight"], other.state["conv_stem.weight"])


def test_notes_count_the_exemplars(small_release, drawn, monkeypatch):
    s = Synthesizer(small_release())
    monkeypatch.setattr(synthesis, "domain_of", lambda *_: "another kind")
    monkeypatch.setattr(s, "_kind", lambda *_: "skin")
    known, width = s.catalogue.entries[0], s.encoder.target.width
    for count, own, alone, looks in (
        (1, 0, "the exemplar stands alone", "the exemplar of x looks more"),
        (2, 0, "the exemplars stand alone", "the exemplars of x look more"),
        (1, 3, "the exemplar and own patients stand alone", "the exemplar of x looks more"),
    ):
        asked = Asked("x", known, "A lesion.", drawn(600, 0, count), np.zeros((own, width)), None, np.zeros(4), 0.0)
        assert remarks(asked, s.catalogue, s.text) == [f"the class memory holds nothing certain about x: {alone}"]
        assert s._domain(asked, s.centre)[2] == [f"{looks} like another kind than like skin"]


def test_an_unknown_name_is_told_its_nearest_entries(small_release, drawn):
    c = synthesize({"dermatofibrom": drawn(600)}, {"dermatofibrom": "A lesion."}, small_release((), 30))
    assert any("not in the catalogue" in n and "(df)" in n for n in c.notes)


def test_own_patients_count_exactly_like_exemplars(small_release, abc):
    release = small_release()
    features = ImageEncoder(release).features(abc["c"])
    together = synthesize({"c": abc["c"]}, {"c": TEXTS["c"]}, release)
    apart = synthesize({"c": abc["c"][:1]}, {"c": TEXTS["c"]}, release, own={"c": features[1:]})
    assert np.allclose(weights(together)[0], weights(apart)[0], atol=1e-5)
    assert apart.record.origin.diseases[0].own == 2


def test_the_disease_itself_is_no_rival(small_release, drawn):
    release = small_release()
    bank = Bank.of(release)
    by_name = synthesize({"drawn-0503": drawn(503, 50)}, {"drawn-0503": "A drawn lesion."}, release, rivals=7)
    assert "drawn-0503" not in by_name.record.origin.rivals and "drawn-0503" not in by_name.record.origin.negatives
    by_text = synthesize({"new": drawn(503, 50)}, {"new": bank.classes[3].text}, release, rivals=7)
    assert "drawn-0503" not in by_text.record.origin.rivals


def test_rivals_are_half_by_text_and_half_by_image(small_release):
    bank = Bank.of(small_release())
    r, centre = np.random.default_rng(0), bank.means.mean(0)
    text, prototype = unit(r.normal(size=384)), bank.means[2]
    chosen = choose(bank, range(8), prototype, text, centre, 5)
    by_text = np.argsort(-(unit(bank.embedding) @ text))[:3]
    assert set(chosen[:3]) == set(by_text.tolist()) and len(set(chosen)) == 5
    assert 2 in chosen and chosen == choose(bank, [7, 6, 5, 4, 3, 2, 1, 0], prototype, text, centre, 5)
    assert choose(bank, [1, 4], prototype, text, centre, 5) in ([1, 4], [4, 1])
    assert domain_of(bank, prototype, centre) == "drawn"
    assert same_disease(bank, ["Drawn 0502"], text) == {2}


def test_measured_false_alarms_are_those_of_the_half_kept_apart(small_release, drawn):
    release = small_release()
    c = synthesize({"a": drawn(600)}, {"a": TEXTS["a"]}, release, false_alarms=0.2)
    bank, cal = Bank.of(release), c.record.calibration
    rows = np.flatnonzero(bank.apart)
    logits = bank.features[rows] @ weights(c).T + c.state["classifier.bias"].numpy()
    hits = int(cal.decide(logits.astype(np.float64)).accepted.sum())
    assert (cal.measured[0].hits, cal.measured[0].n) == (hits, len(rows)) and len(cal.negatives) == len(rows)
    assert sum(s.hits for s in cal.measured[1:]) == hits


def test_a_calibrating_sample_is_not_in_its_own_rival(small_release, drawn):
    release = small_release()
    s = Synthesizer(release)
    rows = s.bank.samples(range(8), apart=False)
    judged = s.judged(s.compose({"a": drawn(600)}, {"a": TEXTS["a"]}))
    change = without_itself(dataclasses.replace(judged, beside=[0, 5]), rows)
    place = int(np.flatnonzero(s.bank.label[rows] == 5)[0])
    mates = [r for r in s.bank.samples([5], apart=False) if r != rows[place]]
    f, centre = s.bank.features[rows[place]] - s.centre, s.centre
    direct = s.scale * f @ (unit(s.bank.features[mates].mean(0) - centre) - unit(s.bank.means[5] - centre))
    assert change[place, 2] == pytest.approx(direct, abs=1e-3) and change[place, 2] < 0
    assert not change[:, 0].any() and not change[s.bank.label[rows] == 3].any()


def test_bad_requests_are_refused(small_release, abc):
    release = small_release()
    a = {"a": abc["a"]}
    with pytest.raises(InputError, match="no disease"):
        synthesize({}, {}, release)
    with pytest.raises(InputError, match="at least one picture"):
        synthesize({"a": []}, {"a": "x"}, release)
    with pytest.raises(InputError, match="no clinical text"):
        synthesize(a, {}, release)
    with pytest.raises(InputError, match="b has no exemplar"):
        synthesize(a, TEXTS, release)
    with pytest.raises(InputError, match="same disease"):
        synthesize({"df": abc["a"], "dermatofibroma": abc["b"]}, {}, release)
    with pytest.raises(InputError, match=r"public negatives.*0\.0"):
        synthesize(a, {"a": "x"}, release, false_alarms=0.001)
    with pytest.raises(InputError, match="one or more"):
        synthesize(a, {"a": "x"}, release, rivals=0)
    with pytest.raises(InputError, match="not features"):
        synthesize(a, {"a": "x"}, release, own={"a": np.zeros((2, 7))})
    other = release.memory()
    other = dataclasses.replace(other, coordinates=dataclasses.replace(other.coordinates, radius=1.0))
    with pytest.raises(InputError, match="another release"):
        synthesize(a, {"a": "x"}, release, memory=other)


def test_a_release_of_another_encoder_is_refused(small_release):
    release = small_release()
    for changes, what in (
        ({"encoder_sha256": "1" * 64}, "coordinates"),
        ({"architecture": release.manifest.architecture.model_copy(update={"learned": ("mind",)})}, "mind"),
    ):
        broken = dataclasses.replace(release, manifest=release.manifest.model_copy(update=changes))
        with pytest.raises(SignatureError, match=what):
            Synthesizer(broken)
    text = release.manifest.text_encoder.model_copy(update={"sha256": "2" * 64})
    with pytest.raises(SignatureError, match="text encoder"):
        Synthesizer(dataclasses.replace(release, manifest=release.manifest.model_copy(update={"text_encoder": text})))


def test_the_same_request_gives_the_same_numbers(small_release, drawn):
    release = small_release(EVERYTHING)
    one, two = (synthesize({"a": drawn(600)}, {"a": TEXTS["a"]}, release) for _ in range(2))
    assert all(torch.equal(t, two.state[n]) for n, t in one.state.items())
    assert one.record.calibration == two.record.calibration
