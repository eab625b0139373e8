"""The configuration files of an `NVLM_D` checkpoint, with the keys that nvidia/NVLM-D-72B has. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .internvit import InternViT
from .qwen2 import Qwen2

if TYPE_CHECKING:
    from ..config import ModelConfig

PARTS = {"llm_config": Qwen2(), "vision_config": InternViT()}  # keys of config.json that hold another one
STILL = {"attention_dropout": 0.0}  # what neither part has while it is served
PROJECTOR_EPS = 1e-5  # torch's default, with which the projector's LayerNorm is built: no key says it


def config(model: ModelConfig) -> dict[str, Any]:
    """config.json of `model`, but for its dtype and the tokens' ids; the heads are the real ones, as published."""
    tiling, parts = model.tiling, {key: part.config(model) | STILL for key, part in PARTS.items()}
    parts["llm_config"] |= {"attention_bias": model.decoder.qkv_bias, "mlp_bias": False}
    parts["vision_config"] |= {"dropout": 0.0, "drop_path_rate": 0.0}
    return parts | {
        "architectures": ["NVLM_D"],
        "auto_map": {"AutoConfig": "configuration_nvlm_d.NVLM_D_Config"},
        "model_type": "NVLM_D",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": tiling.tile,
        "max_dynamic_patch": tiling.max_tiles,
        "min_dynamic_patch": tiling.min_tiles,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "chatml",
        "tie_word_embeddings": model.decoder.tied,
        "use_thumbnail": tiling.thumbnail,
    }


def preprocessor(model: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json: how a tile, already cut out, becomes pixels. No reader cuts images by it."""
    side = {"height": model.encoder.image_size, "width": model.encoder.image_size}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": side,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": list(model.encoder.mean),
        "image_std": list(model.encoder.std),
        "resample": 3,  # bicubic
        "size": side,
    }


def generation(tokens: dict[str, Any], padding: int) -> dict[str, Any]:
    """generation_config.json: greedy, as NVLM was evaluated, up to the token that ends an answer."""
    return tokens | {"do_sample": False, "pad_token_id": padding}
