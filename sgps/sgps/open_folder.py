"""The folder of an encoder that a centre brings: its kind, hash, configuration and weights, and what is wrong with them in a line."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from sgps.errors import ConfigError, InputError
from sgps.files import read_limited, sha256_file

Kind = Literal["open_clip", "timm", "transformers"]
KINDS = get_args(Kind)
_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model"})  # configuration, weights, tokenizers
_TOKENIZERS = frozenset({"tokenizer.json", "vocab.txt", "vocab.json"})
_CONFIG_LIMIT, _WEIGHTS_LIMIT = 4 << 20, 8 << 30  # bytes


@dataclass(frozen=True)
class Spec:
    """Which library reads which folder."""

    kind: Kind
    folder: Path

    @classmethod
    def parse(cls, text: str, base: Path = Path()) -> "Spec":
        """`open_clip:DIR` and so on; DIR relative to `base`. Raises ConfigError for another kind, InputError for no folder."""
        kind, _, folder = text.partition(":")
        if kind not in KINDS or not folder.strip():
            forms = ", ".join(f"{k}:DIR" for k in KINDS)
            raise ConfigError(f"{text!r} names no encoder", where="encoders", do=f"write one of {forms}")
        path = base / folder.strip()
        if not path.is_dir():
            raise InputError("is not a folder", where=path, do=f"give the folder of a {kind} checkpoint")
        return cls(cast("Kind", kind), path)

    @property
    def name(self) -> str:
        """Kind and the folder's own name; not the way to it, which is of this computer."""
        return f"{self.kind}:{self.folder.resolve().name}"

    @cached_property
    def sha256(self) -> str:
        """Hash over names and hashes of every file of configuration, weights and tokenizer, in sub-folders too."""
        digest = hashlib.sha256()
        for path in sorted(p for p in self.folder.rglob("*") if p.suffix in _SUFFIXES and p.is_file()):
            digest.update(f"{path.relative_to(self.folder).as_posix()} {sha256_file(path)}\n".encode())
        return digest.hexdigest()

    def config(self, name: str) -> dict[str, Any]:
        """One JSON file of the folder. Raises InputError."""
        path = self.folder / name
        if not path.is_file():
            raise InputError(
                f"lacks {name}", where=self.folder, do=f"give the whole folder, of a checkpoint of {self.kind}"
            )
        try:
            found = json.loads(read_limited(path, _CONFIG_LIMIT))
        except (ValueError, RecursionError) as error:
            raise InputError("is not JSON", where=path, do="save the checkpoint again") from error
        if not isinstance(found, dict):
            raise InputError("is not a configuration", where=path, do="save the checkpoint again")
        return found

    def weights(self) -> dict[str, Tensor]:
        """The tensors of the one safetensors file. Raises InputError when there is none, or several."""
        found = sorted(self.folder.glob("*.safetensors"))
        if len(found) != 1:
            what = "holds no safetensors file" if not found else f"holds {len(found)} safetensors files"
            raise InputError(what, where=self.folder, do="save the whole state dict with safetensors.torch.save_file")
        if found[0].stat().st_size > _WEIGHTS_LIMIT:
            raise InputError(f"is larger than {_WEIGHTS_LIMIT:,} bytes", where=found[0], do="give a smaller encoder")
        try:
            return safetensors.torch.load_file(found[0])
        except SafetensorError as error:
            raise InputError("is not a safetensors file", where=found[0], do="save the checkpoint again") from error

    def fault(self, error: Exception) -> InputError:
        """What a library said about the folder, in one line."""
        said = str(error).strip().split("\n")[0].split(". ")[0][:200] or type(error).__name__
        return InputError(f"{self.kind} cannot read it: {said}", where=self.folder, do="save the checkpoint again")

    def differ(self, missing: Iterable[str], strange: Iterable[str], shapes: Mapping[str, str]) -> None:
        """Raises InputError for the first tensor that weights or configuration lack, or hold in another shape."""
        found = [f"lack {n}" for n in sorted(missing)[:1]] + [
            f"hold {n}, which it has not" for n in sorted(strange)[:1]
        ]
        if found or shapes:
            name, shape = next(iter(shapes.items()), ("", ""))
            what = found[0] if found else f"hold {name} as {shape}"
            do = "save both again; another architecture or picture size needs its own weights"
            raise InputError(f"weights and configuration differ: the weights {what}", where=self.folder, do=do)

    def needs_tokenizer(self) -> None:
        """Raises InputError without one: transformers would then make one up that knows no word."""
        if not any(p.name in _TOKENIZERS or p.suffix == ".model" for p in self.folder.iterdir()):
            raise InputError("holds no tokenizer", where=self.folder, do="copy tokenizer.json, or vocab.txt, beside it")
