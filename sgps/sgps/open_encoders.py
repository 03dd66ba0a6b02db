"""Encoders that a centre brings: `open_clip:DIR`, `timm:DIR`, `transformers:DIR`, as their libraries save them.

    open_clip      open_clip_config.json, *.safetensors; where the text side is a transformers network also its config.json and
                   tokenizer. Pictures and texts.
    timm           config.json and model.safetensors of `timm.models.save_for_hf`. Pictures.
    transformers   config.json, model.safetensors, tokenizer files; preprocessor_config.json where it reads pictures. One or both.

Weights are safetensors, never a pickle; no code of the folder is run; nothing is looked up anywhere else. What an encoder may do is
decided in docs/adr/0007: read texts, and teach the base network.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from sgps.errors import ConfigError, InputError, StateError
from sgps.files import read_limited, sha256_file
from sgps.text import refuse_empty

Kind = Literal["open_clip", "timm", "transformers"]
KINDS = get_args(Kind)
_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model"})  # configuration, weights, tokenizers
_CONFIG_LIMIT, _WEIGHTS_LIMIT = 4 << 20, 8 << 30  # bytes
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_BATCH = 32
_MOST_TOKENS = 256


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
        said = str(error).strip().split("\n")[0][:200] or type(error).__name__
        return InputError(f"{self.kind} cannot read it: {said}", where=self.folder, do="save the checkpoint again")


class OpenText:
    """Texts -> unit vectors, as `sgps.text.TextEncoder` does it. Loaded at the first use."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.folder, self.name = spec, spec.folder, spec.name
        if spec.kind == "timm":
            raise InputError(
                "timm networks read no texts", where=spec.folder, do="use open_clip:DIR or transformers:DIR"
            )

    @property
    def kind(self) -> str:
        return self.spec.kind

    @property
    def sha256(self) -> str:
        return self.spec.sha256

    @cached_property
    def width(self) -> int:
        return int(self.embed(["a"]).shape[1])

    @cached_property
    def _encode(self) -> Any:
        return _clip_text(self.spec) if self.spec.kind == "open_clip" else _transformers_text(self.spec)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [n, width], rows of length 1. What a text has beyond the encoder's length does not count. Raises InputError for
        an empty text or a folder that does not hold a text encoder."""
        refuse_empty(texts)
        parts = [
            F.normalize(self._encode(list(texts[i : i + _BATCH])).float(), dim=-1).numpy()
            for i in range(0, len(texts), _BATCH)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.width), np.float32)


class ImageTower(nn.Module):
    """A frozen network for pictures of any square size with mean = std = 0.5. num_features: of its output."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Spec) -> None:
        """Raises InputError when the folder does not hold a network for pictures."""
        super().__init__()
        self.spec = spec
        build = {"open_clip": _clip_image, "timm": _timm_image, "transformers": _transformers_image}[spec.kind]
        self.net, self.size, mean, std = build(spec)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(np.isfinite(values)) or (name == "std" and min(values) <= 0):
                raise InputError(f"its {name} are not three numbers", where=spec.folder, do="correct its configuration")
            self.register_buffer(name, torch.tensor([float(v) for v in values]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)
        self.num_features = int(self(torch.zeros(1, 3, self.size, self.size)).shape[1])

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, s, s] in -1..1 -> [n, num_features]."""
        if x.shape[-1] != self.size:
            size = (self.size, self.size)
            x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        found: Tensor = self.net(((x + 1) / 2 - self.mean) / self.std)
        return found


class _Call(nn.Module):
    """A module whose forward is a method of another."""

    def __init__(self, net: nn.Module, call: Any) -> None:
        super().__init__()
        self.net, self.call = net, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)  # type: ignore[no-any-return]


Built = tuple[nn.Module, int, Sequence[float], Sequence[float]]


def _library(name: str) -> Any:
    """An encoder library, imported with every look-up switched off. What it would say besides, the caller says in one line."""
    os.environ.update(_OFFLINE)
    try:
        library = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise StateError("is not installed", where=name, do="install sgps[encoders]") from error
    if name == "transformers":
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
    return library


def _fill(net: nn.Module, tensors: Mapping[str, Tensor], spec: Spec, drop: tuple[str, ...] = ()) -> nn.Module:
    """Load every tensor. drop: beginnings of names that the network may lack."""
    wanted = net.state_dict()
    kept = {n: t for n, t in tensors.items() if n in wanted or not (n.startswith(drop) or n.endswith(".position_ids"))}
    try:
        net.load_state_dict({n: t.to(wanted[n].dtype) if n in wanted else t for n, t in kept.items()}, strict=True)
    except RuntimeError as error:
        first = str(error).split("\n")[1:2] or [str(error)]
        raise InputError(
            f"weights and configuration differ: {first[0].strip()[:200]}", where=spec.folder, do="save both again"
        ) from error
    if bad := next((n for n, t in net.state_dict().items() if t.is_floating_point() and not t.isfinite().all()), None):
        raise InputError(f"{bad} holds numbers that are not finite", where=spec.folder, do="give a sound checkpoint")
    return net.eval().requires_grad_(False)


def _clip(spec: Spec) -> tuple[nn.Module, dict[str, Any]]:
    """open_clip's network and its whole configuration. A text side of transformers is built from the folder's own config.json:
    the name in open_clip's configuration is one of a hub."""
    library = _library("open_clip")
    config = spec.config("open_clip_config.json")
    try:
        model = dict(config["model_cfg"])
        text, vision = dict(model.pop("text_cfg")), dict(model.pop("vision_cfg"))
        custom = bool(model.pop("custom_text", False)) or "hf_model_name" in text
        if "hf_model_name" in text:
            spec.config("config.json")
            text |= {"hf_model_name": str(spec.folder), "hf_model_pretrained": False}
        if "timm_model_name" in vision:
            vision["timm_model_pretrained"] = False
        made = library.CustomTextCLIP if custom else library.CLIP
        net: nn.Module = made(**model, text_cfg=text, vision_cfg=vision)
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError, OSError, AttributeError) as error:
        raise spec.fault(error) from error
    return _fill(net, spec.weights(), spec), config


def _clip_text(spec: Spec) -> Any:
    net, config = _clip(spec)
    text = config["model_cfg"]["text_cfg"]
    length = int(text.get("context_length", getattr(net, "context_length", 77)))
    library = _library("open_clip")
    if "hf_model_name" in text or "hf_tokenizer_name" in text:
        options = text.get("tokenizer_kwargs", {})
        try:
            tokenize = library.tokenizer.HFTokenizer(
                str(spec.folder), context_length=length, local_files_only=True, **options
            )
        except (OSError, ValueError, TypeError) as error:
            raise spec.fault(error) from error
    else:
        tokenize = library.SimpleTokenizer(context_length=length)
    return lambda texts: cast(Any, net).encode_text(tokenize(texts))


def _clip_image(spec: Spec) -> Built:
    net, config = _clip(spec)
    said, standard = config.get("preprocess_cfg", {}), _library("open_clip")
    size = cast(Any, net).visual.image_size
    mean, std = said.get("mean", standard.OPENAI_DATASET_MEAN), said.get("std", standard.OPENAI_DATASET_STD)
    return _Call(net, cast(Any, net).encode_image), int(size[0] if isinstance(size, list | tuple) else size), mean, std


def _timm_image(spec: Spec) -> Built:
    library, config = _library("timm"), spec.config("config.json")
    try:
        said, options = dict(config.get("pretrained_cfg", {})), dict(config.get("model_args", {}))
        options |= {"num_classes": 0, "pretrained_cfg": said or None}
        net = library.create_model(config["architecture"], pretrained=False, **options)
        known = library.data.resolve_data_config(said, model=net)
        head = tuple(f"{n}." for n in _names(said.get("classifier")))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise spec.fault(error) from error
    _fill(net, spec.weights(), spec, head or ("head.", "fc.", "classifier."))
    return net, int(known["input_size"][-1]), known["mean"], known["std"]


def _names(classifier: Any) -> tuple[str, ...]:
    return (classifier,) if isinstance(classifier, str) else tuple(classifier or ())


def _transformers(spec: Spec) -> tuple[Any, bool]:
    """The network with the folder's own weights, in float32, and whether its pooler is among them.

    transformers draws missing weights at random, which would be another encoder in every process: here they are an error.
    """
    library = _library("transformers")
    spec.config("config.json")
    spec.weights()
    try:
        with torch.random.fork_rng(devices=[]):
            net, info = library.AutoModel.from_pretrained(
                str(spec.folder),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise spec.fault(error) from error
    missing = sorted(info["missing_keys"])
    if other := [n for n in missing if not n.startswith("pooler.")]:
        raise InputError(f"lacks {other[0]}", where=spec.folder, do="save the whole checkpoint")
    return net.eval().requires_grad_(False), not missing


def _transformers_text(spec: Spec) -> Any:
    library, (net, _) = _library("transformers"), _transformers(spec)
    both = hasattr(net, "get_text_features")
    if not both and net.main_input_name != "input_ids":
        raise InputError("reads no texts", where=spec.folder, do="use a folder with a text encoder")
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(
            str(spec.folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise spec.fault(error) from error
    inner = getattr(net.config, "text_config", net.config)
    length = min(_MOST_TOKENS, int(getattr(inner, "max_position_embeddings", _MOST_TOKENS)))
    first = _first_token(spec)

    def encode(texts: list[str]) -> Tensor:
        padding = "max_length" if both else True  # dual encoders are trained on padded texts
        tokens = tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        if both:
            return _pooled(
                net.get_text_features(**{n: t for n, t in tokens.items() if n in {"input_ids", "attention_mask"}})
            )
        hidden: Tensor = net(**tokens).last_hidden_state
        if first:
            return hidden[:, 0]
        mask: Tensor = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    return encode


def _first_token(spec: Spec) -> bool:
    """Whether a sentence-transformers folder asks for the first token's state; else the mean over tokens is taken."""
    pooling = spec.folder / "1_Pooling" / "config.json"
    return pooling.is_file() and bool(spec.config("1_Pooling/config.json").get("pooling_mode_cls_token"))


def _transformers_image(spec: Spec) -> Built:
    net, pooler = _transformers(spec)
    both = hasattr(net, "get_image_features")
    if not both and net.main_input_name != "pixel_values":
        raise InputError("reads no pictures", where=spec.folder, do="use a folder with a network for pictures")
    said = spec.config("preprocessor_config.json")
    side = getattr(getattr(net.config, "vision_config", net.config), "image_size", 224)
    try:
        mean, std = said["image_mean"], said["image_std"]
    except KeyError as error:
        raise InputError(
            f"lacks {error.args[0]}", where=spec.folder / "preprocessor_config.json", do="copy the whole folder"
        ) from error

    def features(x: Tensor) -> Tensor:
        if both:
            return _pooled(net.get_image_features(pixel_values=x))
        out = net(pixel_values=x)
        pooled = getattr(out, "pooler_output", None) if pooler else None
        found: Tensor = out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return found

    return _Call(net, features), int(side[0] if isinstance(side, list | tuple) else side), mean, std


def _pooled(found: Any) -> Tensor:
    """Of a dual encoder: the features themselves, or inside the output that later versions of transformers give."""
    out: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return out
