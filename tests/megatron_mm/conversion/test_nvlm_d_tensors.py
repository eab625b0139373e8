"""NVLM_D's tensors by name and shape, and what the format refuses.

`asked` lists what vLLM 0.33 loads, out of config.json alone: it knows nothing of our model or of its maps.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import pytest

from megavlm.megatron_mm.backend import shutdown
from megavlm.megatron_mm.config import AXES, ModelConfig
from megavlm.megatron_mm.conversion.accounts import pair_up
from megavlm.megatron_mm.conversion.nvlm_d import NVLMD
from megavlm.megatron_mm.conversion.nvlm_d_check import check_template
from megavlm.megatron_mm.conversion.ours import slots
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.data.templates.vicuna_v1 import VicunaV1
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError

DUMMY_HEADS = 7  # what vLLM pads the encoder with, whatever config.json says


def asked(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor that vLLM 0.33 loads for a config.json, by its name in the files."""
    see, say = config["vision_config"], config["llm_config"]
    wide = see["hidden_size"] * round(1 / config["downsample_ratio"]) ** 2
    mlp1 = {
        "0.weight": (wide,), "0.bias": (wide,),
        "1.weight": (say["intermediate_size"], wide), "3.weight": (say["hidden_size"], say["intermediate_size"]),
    }  # fmt: skip
    parts = {"vision_model": encoder(see), "mlp1": mlp1, "language_model": language(say)}
    return {f"{part}.{name}": shape for part, tensors in parts.items() for name, shape in tensors.items()}


def encoder(of: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, ffn, patch = of["hidden_size"], of["intermediate_size"], of["patch_size"]
    padded = width // of["num_attention_heads"] * (of["num_attention_heads"] + DUMMY_HEADS)
    layer = {
        "attn.qkv.weight": (3 * padded, width),
        "attn.q_norm.weight": (padded,), "attn.k_norm.weight": (padded,),
        "attn.proj.weight": (width, padded), "attn.proj.bias": (width,),
        "norm1.weight": (width,), "norm2.weight": (width,), "ls1": (width,), "ls2": (width,),
        "mlp.fc1.weight": (ffn, width), "mlp.fc1.bias": (ffn,),
        "mlp.fc2.weight": (width, ffn), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    return {
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding": (1, (of["image_size"] // patch) ** 2 + 1, width),
        **{f"encoder.layers.{k}.{n}": shape for k in range(of["num_hidden_layers"]) for n, shape in layer.items()},
    }


def language(of: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, ffn = of["hidden_size"], of["intermediate_size"]
    keys = width // of["num_attention_heads"] * of["num_key_value_heads"]
    layer = {
        "self_attn.q_proj.weight": (width, width), "self_attn.q_proj.bias": (width,),
        "self_attn.k_proj.weight": (keys, width), "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, width), "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (ffn, width), "mlp.up_proj.weight": (ffn, width), "mlp.down_proj.weight": (width, ffn),
        "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
    }  # fmt: skip
    return {
        "model.embed_tokens.weight": (of["vocab_size"], width),
        "model.norm.weight": (width,),
        "lm_head.weight": (of["vocab_size"], width),
        **{f"model.layers.{k}.{n}": shape for k in range(of["num_hidden_layers"]) for n, shape in layer.items()},
    }


@pytest.fixture
def nvlm_d() -> Callable[..., ModelConfig]:
    """`nvlm_d("a.b=c"-like mappings)`: a small model that the format can say, but for the given keys."""

    def make(**axes: dict[str, Any]) -> ModelConfig:
        tree: dict[str, dict[str, Any]] = {
            "tiling": {"tile": 28},
            "encoder": {
                "name": "internvit", "image_size": 28, "patch_size": 7, "layers": 2, "hidden": 45, "heads": 9,
                "dummy_heads": 7, "ffn": 56,
            },
            "connector": {"name": "pixel_shuffle_mlp", "hidden": 80, "norm_eps": 1e-5},
            "injection": {"name": "inline", "tags": "1d"},
            "decoder": {
                "name": "qwen2", "layers": 3, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 80, "vocab": 97,
            },
        }  # fmt: skip
        return ModelConfig.parse({axis: keys | axes.get(axis, {}) for axis, keys in tree.items()})

    return make


@pytest.fixture
def published() -> Any:
    """Names and shapes that our maps make of a model, which stays on the meta device."""

    def make(model: ModelConfig) -> dict[str, tuple[int, ...]]:
        pairs = pair_up(NVLMD(), model, slots(model), AXES)
        return {name: shape for pair in pairs for name, shape in zip(pair.theirs, pair.published_shapes(), strict=True)}

    yield make
    shutdown()


def test_a_small_model_has_exactly_what_is_asked_for(
    nvlm_d: Callable[..., ModelConfig], published: Callable[[ModelConfig], dict[str, tuple[int, ...]]]
) -> None:
    model = nvlm_d()
    assert published(model) == asked(NVLMD().config(model))


def test_the_72b_has_the_released_counts(
    published: Callable[[ModelConfig], dict[str, tuple[int, ...]]],
) -> None:
    """79.38 B, as the release says; its vision encoder holds the dummy heads."""
    spec = StageData.of(load_recipe("nvlm-d-72b"), "sft")
    model, template = spec.model, check_template(spec.data.template)
    assert template.system == "Follow the user's instruction and answer questions."
    NVLMD().fits(model)
    tensors = published(model)
    assert tensors == asked(NVLMD().config(model))
    counts = {
        part: sum(prod(shape) for name, shape in tensors.items() if name.startswith(part))
        for part in ("vision_model.", "mlp1.", "language_model.")
    }
    assert counts == {"vision_model.": 6_052_672_640, "mlp1.": 620_717_056, "language_model.": 72_706_203_648}
    assert sum(counts.values()) == 79_379_593_344
    config = NVLMD().config(model)
    assert [config["vision_config"]["num_attention_heads"], config["llm_config"]["rope_theta"]] == [25, 1e6]
    assert [config["ps_version"], config["use_thumbnail"], config["max_dynamic_patch"]] == ["v2", True, 6]


@pytest.mark.parametrize(
    ("axis", "change", "said", "way"),
    [
        ("connector", {"norm_eps": 1e-6}, "connector.norm_eps 1e-06: .* needs 1e-05", "norm_eps=1e-05"),
        ("connector", {"hidden": 96}, "connector.hidden 96: .* needs 80", "connector.hidden=80"),
        ("injection", {"tags": "2d_grid"}, "injection.tags 2d_grid: .* needs 1d", "injection.tags=1d"),
        ("injection", {"tags": "none"}, "injection.tags none: .* needs 1d", "injection.tags=1d"),
        ("encoder", {"dummy_heads": 0}, "encoder.dummy_heads 0: .* needs 7", "dummy_heads=7"),
        ("encoder", {"trained_size": 56}, "encoder.trained_size 56: .* needs 28", "trained_size=28"),
        ("encoder", {"mean": (0.5, 0.5, 0.5)}, r"encoder.mean \(0.5, .* needs \(0.485", "megavlm"),
    ],
)
def test_what_the_format_cannot_say_is_refused(
    nvlm_d: Callable[..., ModelConfig], axis: str, change: dict[str, Any], said: str, way: str
) -> None:
    NVLMD().fits(nvlm_d())
    with pytest.raises(ConfigError, match=said) as error:
        NVLMD().fits(nvlm_d(**{axis: change}))
    assert way in str(error.value.fix) and "--format megavlm" in str(error.value.fix)


def test_without_thumbnails_it_is_refused(nvlm_d: Callable[..., ModelConfig]) -> None:
    """The recipe's own check lets tags stand only beside thumbnails; a model made otherwise is refused here."""
    model = nvlm_d()
    without = model.model_copy(update={"tiling": model.tiling.model_copy(update={"thumbnail": False})})
    with pytest.raises(ConfigError, match="tiling.thumbnail False"):
        NVLMD().fits(without)


def test_another_decoder_is_refused(nvlm_d: Callable[..., ModelConfig]) -> None:
    """The 34B's is Llama's: transformers' class takes Qwen2 alone."""
    with pytest.raises(ConfigError, match="decoder.name llama: .* needs qwen2, since .*Qwen2ForCausalLM"):
        NVLMD().fits(nvlm_d(decoder={"name": "llama", "max_positions": 64, "rope_base": 1e4, "norm_eps": 1e-5}))


def test_another_template_is_refused() -> None:
    with pytest.raises(ConfigError, match="vicuna_v1: format nvlm_d is prompted in ChatML"):
        check_template(VicunaV1())


def test_a_released_configuration_is_compared_key_by_key(nvlm_d: Callable[..., ModelConfig]) -> None:
    """What nvidia/NVLM-D-72B writes otherwise and does not matter passes; a size inside either part does not."""
    model = nvlm_d()
    theirs = NVLMD().config(model) | {"max_dynamic_patch": 12, "template": None, "_commit_hash": None}
    theirs["llm_config"] |= {"model_type": "llama", "_name_or_path": "Qwen/Qwen2-72B-Instruct"}
    NVLMD().compare(model, theirs, "config.json")
    for part, key in (("vision_config", "num_attention_heads"), ("llm_config", "intermediate_size")):
        changed = theirs | {part: theirs[part] | {key: 32}}
        with pytest.raises(ConfigError, match=f"{key} 32") as error:
            NVLMD().compare(model, changed, "config.json")
        assert part in str(error.value.where)
    with pytest.raises(ConfigError, match="ps_version v1"):
        NVLMD().compare(model, theirs | {"ps_version": "v1"}, "config.json")
