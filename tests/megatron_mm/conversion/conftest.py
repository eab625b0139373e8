"""Published models of random weights, and the small models that they are for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from ranks import load
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megavlm.kernels import torchvision
from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.data.build import StageData
from megavlm.platform.config import load_recipe


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    """conversion_worker.py."""
    return load(Path(__file__).with_name("conversion_worker.py"))


@pytest.fixture(scope="session")
def shapes() -> ModuleType:
    """published_shapes.py."""
    return load(Path(__file__).with_name("published_shapes.py"))


@pytest.fixture(scope="session")
def stage_of() -> Callable[[dict[str, Any], Path], StageData]:
    """`stage_of(model, folder)`: the mini recipe's first stage with that model, its YAML written to the folder."""

    def make(model: dict[str, Any], folder: Path) -> StageData:
        shared = {"tiling": {"tile": 28}, "connector": {"name": "pixel_shuffle_mlp", "hidden": 64}}
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({"base": "nvlm-d-mini", "parameters": None, "model": {**shared, **model}}))
        return StageData.of(load_recipe(str(recipe)), "language")

    return make


@pytest.fixture(scope="session")
def publish_language() -> Callable[..., nn.Module]:
    """`publish_language(model, folder, shards)`: transformers' class of the model's decoder, saved there."""

    def make(model: ModelConfig, folder: Path, max_shard: str = "40KB") -> nn.Module:
        language = _language(model.decoder)
        language.save_pretrained(folder, max_shard_size=max_shard)
        return language

    return make


@pytest.fixture(scope="session")
def publish_vision() -> Callable[..., nn.Module]:
    """`publish_vision(model, folder)`: an independent class of the model's encoder, saved with the published names."""

    def make(model: ModelConfig, folder: Path) -> nn.Module:
        return {"internvit": _internvit, "clip": _tower, "siglip": _tower}[model.encoder.name](model.encoder, folder)

    return make


def _language(of: Any) -> nn.Module:
    torchvision.load()  # transformers imports it
    import transformers

    kind = {"qwen2": "Qwen2", "llama": "Llama"}[of.name]
    rope = {"rope_type": "default", "rope_theta": of.rope_base}
    if getattr(of, "rope_scaling", None):
        own = of.rope_scaling.model_dump()
        own["original_max_position_embeddings"] = own.pop("original_positions")
        rope |= own | {"rope_type": "llama3"}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=of.vocab, hidden_size=of.hidden, intermediate_size=of.ffn, num_hidden_layers=of.layers,
        num_attention_heads=of.heads, num_key_value_heads=of.kv_heads, rms_norm_eps=of.norm_eps, rope_parameters=rope,
        max_position_embeddings=of.max_positions, tie_word_embeddings=of.tied, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    return _shaken(getattr(transformers, f"{kind}ForCausalLM")(config).eval())


def _shaken(model: nn.Module) -> nn.Module:
    """transformers starts biases at 0 and norms at 1, which would hide mix-ups."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1 or "norm" in name:
                p.add_(torch.randn_like(p) * 0.3)
    return model


def _tower(of: Any, folder: Path) -> nn.Module:
    """CLIP or SigLIP as published: with the prefix that transformers 5 leaves out."""
    torchvision.load()
    import transformers

    kind = {"clip": "CLIPVision", "siglip": "SiglipVision"}[of.name]
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=of.hidden, intermediate_size=of.ffn, num_hidden_layers=of.layers, num_attention_heads=of.heads,
        image_size=of.image_size, patch_size=of.patch_size, layer_norm_eps=of.norm_eps,
    )  # fmt: skip
    torch.manual_seed(0)
    model = _shaken(getattr(transformers, f"{kind}Model")(config).eval())
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({f"vision_model.{name}": t for name, t in load_file(file).items()}, file)
    return model


PUBLISHED = {  # transformers' names of InternVL's encoder -> OpenGVLab's
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "encoder.layer.": "encoder.layers.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.projection_layer": "attn.proj",
    "attention.": "attn.",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
}


def _internvit(of: Any, folder: Path) -> nn.Module:
    torchvision.load()
    from transformers import InternVLVisionConfig
    from transformers.models.internvl.modeling_internvl import InternVLVisionModel

    config = InternVLVisionConfig(
        hidden_size=of.hidden, num_hidden_layers=of.layers, num_attention_heads=of.heads, intermediate_size=of.ffn,
        hidden_act="gelu", norm_type=f"{of.norm}_norm", layer_norm_eps=of.norm_eps, use_qk_norm=of.qk_norm,
        attention_bias=of.qkv_bias, use_mean_pooling=True, use_absolute_position_embeddings=True,
        image_size=[of.image_size] * 2, patch_size=[of.patch_size] * 2, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = _shaken(InternVLVisionModel(config).eval())
    folder.mkdir(parents=True)
    save_file(_opengvlab(dict(model.named_parameters())), folder / "model.safetensors")
    return model


def _opengvlab(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for theirs, published in PUBLISHED.items():
            name = name.replace(theirs, published)
        out[name] = tensor.detach().clone()
    for name in [name for name in out if ".attn.q_proj." in name]:
        parts = [out.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        out[name.replace("q_proj", "qkv")] = torch.cat(parts)
    return out
