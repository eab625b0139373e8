"""EVE's release with hardly any width: its 1,159 names, and models that it is for."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import Tensor

from megavlm.megatron_mm.backend import shutdown
from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.conversion.accounts import pair_up
from megavlm.megatron_mm.conversion.eve import Eve
from megavlm.megatron_mm.conversion.ours import slots
from megavlm.megatron_mm.conversion.verb import import_main

Sizes = dict[str, Any]
CLIP_L = {"image_size": 336, "patch_size": 14, "layers": 24, "hidden": 1024, "heads": 16, "ffn": 4096}
VICUNA_7B = {"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 32, "ffn": 11008, "vocab": 32000}
EVE_7B = {"channels": 1024, "patch_size": 14}
# Few layers, of hardly any width; and of that width as many as the release has.
CLIP = {"image_size": 28, "patch_size": 14, "layers": 3, "hidden": 16, "heads": 2, "ffn": 24}
TEXT = {"layers": 4, "hidden": 16, "heads": 4, "kv_heads": 4, "ffn": 24, "vocab": 512}
ALL_CLIP, ALL_TEXT = CLIP | {"layers": 24}, TEXT | {"layers": 32}
SMALL = {"channels": 8, "patch_size": 4}
INDEX = "pytorch_model.bin.index.json"
STAGE = {
    "train": ["connector"], "steps": 1, "optimizer": {"lr": 1e-3},
    "mixture": {"weights": {"pairs": 1}, "sequence_length": 512, "packs_per_batch": 1},
}  # fmt: skip
COMPRESSOR, TEACHER, TWIN = (
    "model.vision_tower_compressor.",
    "model.vision_clip.",
    "model.vision_tower_compressor.clip_layer.",
)


def model_of(sight: Sizes, text: Sizes, tile: int = 16, **axes: Any) -> dict[str, Any]:
    step = sight["patch_size"] * 2 * max(1, tile // 672)
    return {
        "tiling": {"name": "longer_side", "tile": tile, "side_step": step} | axes.get("tiling", {}),
        "encoder": {"name": "eve", "image_size": tile, **sight} | axes.get("encoder", {}),
        "connector": {"name": "image_rows"} | axes.get("connector", {}),
        "injection": {"name": "inline", "tags": "none"} | axes.get("injection", {}),
        "decoder": {"name": "llama", "rope_base": 1e4, "norm_eps": 1e-5, "max_positions": 512} | text,
    }


def aligned(text: Sizes = TEXT, clip: Sizes = CLIP, **changes: Any) -> dict[str, Any]:
    """A small model with the release's aligning layer."""
    layer = {"name": "patch_aligning", "width": 16, "side": 28, "teacher": {"name": "clip", **clip}} | changes
    return model_of(SMALL, text) | {"objectives": [{"name": "next_token"}, layer]}


def write_recipe(home: Path, model: dict[str, Any], name: str = "recipe.yaml") -> None:
    recipe = {"model": model, "data": {"tokenizer": "mini", "template": "vicuna_v1", "sets": {"pairs": "somewhere"}}}
    (home / name).write_text(yaml.safe_dump({**recipe, "stages": {"sft": STAGE}}))


def publish(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Two .bin files and their index, as transformers writes them."""
    folder.mkdir(exist_ok=True)
    files = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    table = {name: files[name > "model.layers.24"] for name in tensors}
    for file in files:
        torch.save({name: tensors[name] for name, where in table.items() if where == file}, folder / file)
    index = {"metadata": {"total_size": 2 * sum(t.numel() for t in tensors.values())}, "weight_map": table}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def publish_release(home: Path, shapes: ModuleType, text: Sizes = TEXT, clip: Sizes = CLIP) -> Path:
    """All tensors of such a release in model/, and recipe.yaml for a model that aligns nothing; returns `home`."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(s, generator=draw).bfloat16() for name, s in shapes.eve(SMALL, text, clip).items()}
    twins = {name: tensors[name.replace(TWIN, TEACHER)] for name in tensors if name.startswith(TWIN)}
    publish(home / "model", tensors | twins)
    config = {
        "architectures": ["EVELlamaForCausalLM"], "model_type": "eve", "hidden_size": 16, "mm_hidden_size": 8,
        "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "requires_cliploss": True,
        "mm_vision_tower": "openai/eve-patch4-anypixel-16", "num_attention_heads": 4, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (home / "model" / "config.json").write_text(json.dumps(config))
    write_recipe(home, model_of(SMALL, text))
    return home


def imported(home: Path, out: Path, *words: str, path: str = "model", recipe: str = "recipe.yaml") -> int:
    return import_main([str(home / path), "--recipe", str(home / recipe), "--out", str(out), *words])


def held(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.bin") for name, tensor in torch.load(file).items()}


def tensors_of(model: ModelConfig) -> dict[str, Any]:
    """What an export of a model has, by published name: shapes of parameters and of constants, on the meta device."""
    Eve().fits(model)
    fmt = Eve().of(model)
    pairs = pair_up(fmt, model, slots(model), fmt.maps)
    shutdown()
    found = {name: shape for pair in pairs for name, shape in zip(pair.theirs, pair.published_shapes(), strict=True)}
    still = {constant.name: constant.shape for constant in fmt.constants(model)}
    assert not still.keys() & found.keys()
    return found | still
