"""Encoders that a centre brings: `open_clip:DIR`, `timm:DIR`, `transformers:DIR`, as their libraries save them.

    open_clip      open_clip_config.json, *.safetensors; where the text side is a transformers network also its config.json and
                   tokenizer. Pictures and texts.
    timm           config.json and model.safetensors of `timm.models.save_for_hf`. Pictures.
    transformers   config.json, model.safetensors, tokenizer files; preprocessor_config.json where it reads pictures. One or both.

Weights are safetensors, never a pickle; no code of the folder is run; nothing is looked up anywhere else. What an encoder may do is
decided in docs/adr/0007: read texts, and teach the base network.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgps.command import OFFLINE
from sgps.errors import InputError, StateError
from sgps.open_folder import Spec
from sgps.text import refuse_empty

__all__ = ["ImageTower", "OpenText", "Spec"]
_TEACHES = "a network for pictures teaches the base (sgps pretrain base --encoders) and is no class token of its own"
_BATCH = 32
_MOST_TOKENS = 256


class OpenText:
    """Texts -> unit vectors, as `sgps.text.TextEncoder` does it. Loaded at the first use."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.folder, self.name = spec, spec.folder, spec.name
        if spec.kind == "timm":
            raise InputError(
                "timm networks read no texts",
                where=spec.folder,
                do=f"use open_clip:DIR or transformers:DIR; {_TEACHES}",
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
        try:
            parts = [
                F.normalize(self._encode(list(texts[i : i + _BATCH])).float(), dim=-1).numpy()
                for i in range(0, len(texts), _BATCH)
            ]
        except (IndexError, RuntimeError) as error:  # a tokenizer with more words than the network
            raise self.spec.fault(error) from error
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
        try:
            self.num_features = int(self(torch.zeros(1, 3, self.size, self.size)).shape[1])
        except (AssertionError, RuntimeError, ValueError) as error:  # weights for pictures of another size
            raise spec.fault(error) from error

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
    os.environ.update(OFFLINE)
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
    shapes = {n: (t.shape, wanted[n].shape) for n, t in kept.items() if n in wanted and t.shape != wanted[n].shape}
    spec.differ(set(wanted) - set(kept), set(kept) - set(wanted), {n: _shapes(*s) for n, s in shapes.items()})
    net.load_state_dict({n: t.to(wanted[n].dtype) for n, t in kept.items()}, strict=True)
    if bad := next((n for n, t in net.state_dict().items() if t.is_floating_point() and not t.isfinite().all()), None):
        raise InputError(f"{bad} holds numbers that are not finite", where=spec.folder, do="give a sound checkpoint")
    return net.eval().requires_grad_(False)


def _shapes(stored: Sequence[int], wanted: Sequence[int]) -> str:
    return f"{list(stored)} instead of {list(wanted)}"


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
            vision |= {"timm_model_name": _of_timm(vision["timm_model_name"], spec), "timm_model_pretrained": False}
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
        spec.needs_tokenizer()
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
        net = library.create_model(_of_timm(config["architecture"], spec), pretrained=False, **options)
        known = library.data.resolve_data_config(said, model=net)
        head = tuple(f"{n}." for n in _names(said.get("classifier")))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise spec.fault(error) from error
    _fill(net, spec.weights(), spec, head or ("head.", "fc.", "classifier."))
    return net, int(known["input_size"][-1]), known["mean"], known["std"]


def _of_timm(name: Any, spec: Spec) -> str:
    """A name of timm's own: `hf-hub:X` would be fetched, `local-dir:X` is another folder than the one that is hashed."""
    if ":" in str(name):
        do = "write one of timm.list_models() in its configuration"
        raise InputError(f"names the network {name}, which is none of timm's", where=spec.folder, do=do)
    return str(name)


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
                ignore_mismatched_sizes=True,  # said below, in a line
            )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise spec.fault(error) from error
    missing = set(info["missing_keys"])
    shapes = {name: _shapes(stored, wanted) for name, stored, wanted in sorted(info["mismatched_keys"])}
    spec.differ({n for n in missing - set(shapes) if not n.startswith("pooler.")}, (), shapes)
    return net.eval().requires_grad_(False), not missing


def _transformers_text(spec: Spec) -> Any:
    library, (net, _) = _library("transformers"), _transformers(spec)
    both = hasattr(net, "get_text_features")
    if not both and net.main_input_name != "input_ids":
        raise InputError("reads no texts", where=spec.folder, do=f"use a folder with a text encoder; {_TEACHES}")
    spec.needs_tokenizer()
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
        raise InputError(
            "reads no pictures",
            where=spec.folder,
            do="use a folder with a network for pictures; its texts are read by `sgps pretrain release --encoders`",
        )
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
