"""What EVE's and EVEv2's checkpoints have beside their weights. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Engine

from ..data.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..data.build import StageData

PLACED = "EVE's code looks for preprocessor_config.json in the folder that config.json's mm_vision_tower names: copy it"


def token_ids(spec: StageData, begin: str, end: str) -> dict[str, int | None]:
    """config.json's ids of tokens; null where the training's tokenizer has none of that name."""
    tokenizer = load_tokenizer(spec.data.tokenizer)
    found = Engine.from_file(str(tokenizer.path)).token_to_id
    return {"bos_token_id": found(begin), "eos_token_id": found(end), "pad_token_id": tokenizer.padding}


def preprocessor(model: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json but for sizes: EVE's code resizes by itself, and its processor only normalises."""
    return {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_center_crop": False,
        "do_normalize": True,
        "do_resize": False,
        "image_mean": list(model.encoder.mean),
        "image_std": list(model.encoder.std),
        "patch_stride": model.encoder.patch_size,
        "resample": 3,  # bicubic
    }
