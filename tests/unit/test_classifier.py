import json
import stat

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from sgps.classifier import CALIBRATION, CARD, CONFIG, WEIGHTS, Classifier
from sgps.errors import InputError, SignatureError
from sgps.images import batch
from sgps.synthesis import synthesize

TEXT = "A red lesion with a sharp border."


@pytest.fixture(scope="module")
def one(small_release, drawn):
    return synthesize({"my disease": drawn(600)}, {"my disease": TEXT}, small_release(("body", "head", "text")))


@pytest.fixture(scope="module")
def saved(one, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    one.save(folder)
    return folder


def test_it_comes_back_as_it_was(one, saved, drawn):
    again = Classifier.load(saved)
    images = drawn(601, 0, 3)
    assert again.predict(images) == one.predict(images) and again.labels == one.labels and again.notes == one.notes
    assert all(torch.equal(t, again.state[n]) for n, t in one.state.items())


def test_plain_timm_reads_it_and_agrees(one, saved, drawn):
    images = drawn(602, 0, 4)
    r = one.record
    x = batch(images, r.size, r.mean, r.std)
    net = timm.create_model(r.architecture, num_classes=len(one.labels)).eval()
    net.load_state_dict(safetensors.torch.load_file(saved / WEIGHTS), strict=True)
    local = timm.create_model(f"local-dir:{saved}", pretrained=True).eval()
    ours = Classifier.load(saved).logits(images, 1)
    for stock in (net, local):
        with torch.no_grad():
            assert np.abs(stock(x).numpy() - ours).max() < 1e-4
    config = timm.data.resolve_model_data_config(local)
    assert (
        tuple(config["input_size"]) == (3, r.size, r.size)
        and tuple(config["mean"]) == r.mean
        and config["crop_pct"] == 1.0
    )
    assert local.pretrained_cfg["label_names"] == list(one.labels)


def test_the_card_and_the_logits_are_enough_to_decide(one, saved, drawn):
    record = json.loads((saved / CALIBRATION).read_text())
    net = timm.create_model(record["architecture"], num_classes=len(record["labels"])).eval()
    net.load_state_dict(safetensors.torch.load_file(saved / WEIGHTS), strict=True)
    images = drawn(603, 0, 6)
    x = batch(images, record["size"], record["mean"], record["std"])
    with torch.no_grad():
        turned = [torch.rot90(x, k, (2, 3)) for k in range(4)]
        l = torch.stack([net(t) for v in turned for t in (v, v.flip(3))]).mean(0).numpy()
    s = l[:, 0] - 0.6 * l[:, 1:].max(1)
    threshold, least = one.record.calibration.threshold, record["calibration"]["least"]
    card = (saved / CARD).read_text()
    assert f"{threshold:.4f}" in card and f"{least:.4f}" in card
    for p, score, best in zip(one.predict(images), s, l.max(1), strict=True):
        assert p.score == pytest.approx(float(score), abs=1e-4)
        assert p.accepted == (p.score > threshold and best >= least)


def test_one_query_alone_scores_as_in_a_batch(one, drawn):
    images = drawn(604, 0, 40)
    together = one.predict(images)
    for place in (0, 17, 39):
        alone = one.predict([images[place]])[0]
        assert alone.scores == pytest.approx(together[place].scores, abs=1e-4) and alone.label == together[place].label
    assert one.predict([]) == []


def test_the_folder_is_private(saved):
    assert stat.S_IMODE(saved.stat().st_mode) == 0o700
    assert {f.name: stat.S_IMODE(f.stat().st_mode) for f in saved.iterdir()} == dict.fromkeys(
        (WEIGHTS, CONFIG, CALIBRATION, CARD), 0o600
    )


def test_the_card_says_what_a_person_must_know(saved, one):
    card = (saved / CARD).read_text()
    for sentence in (
        "This folder is patient data",
        "not a medical device",
        "Sensitivity: unknown",
        "my disease",
        "Apache-2.0",
        TEXT,
        one.record.origin.release_sha256[:16],
        *one.labels,
        one.record.calibration.formula,
    ):
        assert sentence in card, sentence


def test_nothing_is_overwritten(saved, one):
    before = (saved / WEIGHTS).read_bytes()
    with pytest.raises(InputError, match="exists already"):
        one.save(saved)
    assert (saved / WEIGHTS).read_bytes() == before


def test_a_failed_save_leaves_nothing(one, tmp_path, monkeypatch):
    monkeypatch.setattr("sgps.classifier.card", lambda record: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, CARD])
def test_a_changed_file_is_refused(one, tmp_path, name):
    one.save(tmp_path / "model")
    with (tmp_path / "model" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(SignatureError, match=name):
        Classifier.load(tmp_path / "model")


@pytest.mark.parametrize("name", [WEIGHTS, CALIBRATION])
def test_a_missing_file_is_named(one, tmp_path, name):
    one.save(tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(InputError, match=name):
        Classifier.load(tmp_path / "model")


def test_a_broken_record_is_refused(one, tmp_path):
    one.save(tmp_path / "model")
    path = tmp_path / "model" / CALIBRATION
    path.write_text(path.read_text().replace('"views":', '"view":'))
    with pytest.raises(InputError, match="view"):
        Classifier.load(tmp_path / "model")
