"""Sentence embeddings: the same as transformers' own, quick to load, offline, and of one length."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sgps.errors import InputError
from sgps.text import WIDTH, TextEncoder, installed_folder

TEXTS = [
    "Red lacunae, well demarcated, no network.",
    "Chest x-ray with a dense lobar consolidation and an air bronchogram.",
    "melanoma",
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder()


def test_rows_are_unit_vectors(encoder: TextEncoder) -> None:
    rows = encoder.embed(TEXTS)
    assert rows.shape == (3, WIDTH) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_company_changes_nothing(encoder: TextEncoder) -> None:
    together = encoder.embed(TEXTS)
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_no_text_gives_no_row(encoder: TextEncoder) -> None:
    assert encoder.embed([]).shape == (0, WIDTH)


def test_meaning_is_near(encoder: TextEncoder) -> None:
    naevus, mole, xray = encoder.embed(["benign melanocytic naevus", "harmless mole of the skin", "chest x-ray"])
    assert naevus @ mole > naevus @ xray + 0.2


def test_long_text_is_cut_not_refused(encoder: TextEncoder) -> None:
    assert np.isfinite(encoder.embed(["atypical network " * 2000])).all()


def test_empty_text_is_named(encoder: TextEncoder) -> None:
    with pytest.raises(InputError, match="text 2: is empty"):
        encoder.embed(["a", "  "])


def test_hash_follows_the_bytes(tmp_path: Path, encoder: TextEncoder) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(encoder.folder / name, tmp_path / name)
    assert TextEncoder(tmp_path).sha256 == encoder.sha256
    with (tmp_path / "tokenizer.json").open("ab") as file:
        file.write(b"\n")
    assert TextEncoder(tmp_path).sha256 != encoder.sha256


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks config\.json, model\.safetensors, tokenizer\.json"):
        TextEncoder(tmp_path)


def test_other_architecture_is_refused(tmp_path: Path, encoder: TextEncoder) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copy(encoder.folder / name, tmp_path / name)
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "hidden_act": "gelu", "hidden_size": 384}')
    with pytest.raises(InputError, match="is not a BERT encoder of width 384"):
        TextEncoder(tmp_path).embed(["a"])


def test_loads_lazily_and_without_transformers() -> None:
    code = (
        "import sys; from sgps.text import TextEncoder; e = TextEncoder(); assert 'torch' not in sys.modules; "
        "e.embed(['red']); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_equals_transformers(encoder: TextEncoder) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = installed_folder()
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    np.testing.assert_allclose(encoder.embed(TEXTS), mean.numpy(), atol=1e-5)
