"""Small encoders of every kind with random weights, saved as their libraries save them: real files, meanings of nothing."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from sgps.text import installed_folder


def _state(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone().contiguous() for n, t in net.state_dict().items()}


def tokenizer(folder: Path) -> None:
    """That of the installed text encoder."""
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (installed_folder() / name).is_file():
            shutil.copy(installed_folder() / name, folder / name)


def bert_config() -> dict[str, object]:
    return {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }


def open_clip(folder: Path, *, hf_text: bool = False, seed: int = 0, trunk: str = "test_vit") -> Path:
    """hf_text: as BiomedCLIP is built, a timm ViT (`trunk`) beside a BERT that a hub's name stands for."""
    import open_clip as library
    from transformers import BertConfig

    folder.mkdir(parents=True)
    text: dict[str, object] = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision: dict[str, object] = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    if hf_text:
        tokenizer(folder)
        (folder / "config.json").write_text(json.dumps(bert_config()))
        BertConfig(**bert_config()).save_pretrained(folder)
        text = {
            "hf_model_name": "a-hub/of-no-use",
            "hf_tokenizer_name": "a-hub/of-no-use",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 64,
        }
        vision = {
            "timm_model_name": trunk,
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 160,
        }
    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        local = text | ({"hf_model_name": str(folder), "hf_model_pretrained": False} if hf_text else {})
        made = library.CustomTextCLIP if hf_text else library.CLIP
        state = _state(made(embed_dim=24, vision_cfg=vision, text_cfg=local))
    if hf_text:  # older checkpoints hold this buffer, which the network no longer has
        state["text.transformer.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def timm(folder: Path, seed: int = 0) -> Path:
    """A small ViT with a classifier of seven outputs, as a timm repository holds it."""
    import timm as library

    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = library.create_model("test_vit", num_classes=7)
    save_file(_state(net), folder / "model.safetensors")
    config = {
        "architecture": "test_vit",
        "num_classes": 7,
        "pretrained_cfg": {
            "input_size": [3, 160, 160],
            "fixed_input_size": True,
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def transformers_text(folder: Path, seed: int = 0) -> Path:
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True)
    tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(BertConfig(**bert_config())).save_pretrained(folder)
    return folder


def transformers_image(folder: Path, seed: int = 0) -> Path:
    from transformers import ViTConfig, ViTModel

    folder.mkdir(parents=True)
    config = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ViTModel(ViTConfig(**config), add_pooling_layer=False).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return folder


def transformers_both(folder: Path, seed: int = 0) -> Path:
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True)
    tokenizer(folder)
    side = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "projection_dim": 24,
    }
    words = {
        "vocab_size": 30522,
        "max_position_embeddings": 64,
        "eos_token_id": 102,
        "bos_token_id": 101,
        "pad_token_id": 0,
    }
    config = CLIPConfig(
        text_config=side | words, vision_config=side | {"image_size": 32, "patch_size": 16}, projection_dim=24
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return folder
