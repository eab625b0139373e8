"""InternViT's layout: OpenGVLab's InternVisionModel (modeling_intern_vit.py), 6B and 300M."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .formats import Format, require_point
from .rules import Rule, WeightMap
from .transforms import QkvHeads, RealHeads, Unsqueezed

if TYPE_CHECKING:
    from ..config import ModelConfig

OURS, THEIRS = "block.layers.{n}.", "encoder.layers.{n}."

INTERNVIT = WeightMap(
    [
        Rule("embedding.class_token", "embeddings.class_embedding", Unsqueezed(2)),
        Rule("embedding.positions", "embeddings.position_embedding", Unsqueezed(1)),
        Rule("embedding.patches.weight", "embeddings.patch_embedding.weight"),
        Rule("embedding.patches.bias", "embeddings.patch_embedding.bias"),
        Rule(OURS + "input_layernorm.weight", THEIRS + "norm1.weight"),
        Rule(OURS + "input_layernorm.bias", THEIRS + "norm1.bias"),
        Rule(OURS + "self_attention.linear_qkv.weight", THEIRS + "attn.qkv.weight", QkvHeads()),
        Rule(OURS + "self_attention.linear_qkv.bias", THEIRS + "attn.qkv.bias", QkvHeads()),
        Rule(OURS + "self_attention.q_norm.weight", THEIRS + "attn.q_norm.weight", RealHeads()),
        Rule(OURS + "self_attention.k_norm.weight", THEIRS + "attn.k_norm.weight", RealHeads()),
        Rule(OURS + "self_attention.linear_proj.weight", THEIRS + "attn.proj.weight", RealHeads(axis=1)),
        Rule(OURS + "self_attention.linear_proj.bias", THEIRS + "attn.proj.bias"),
        Rule(OURS + "self_attn_bda.scale", THEIRS + "ls1"),
        Rule(OURS + "pre_mlp_layernorm.weight", THEIRS + "norm2.weight"),
        Rule(OURS + "pre_mlp_layernorm.bias", THEIRS + "norm2.bias"),
        Rule(OURS + "mlp.linear_fc1.weight", THEIRS + "mlp.fc1.weight"),
        Rule(OURS + "mlp.linear_fc1.bias", THEIRS + "mlp.fc1.bias"),
        Rule(OURS + "mlp.linear_fc2.weight", THEIRS + "mlp.fc2.weight"),
        Rule(OURS + "mlp.linear_fc2.bias", THEIRS + "mlp.fc2.bias"),
        Rule(OURS + "mlp_bda.scale", THEIRS + "ls2"),
    ]
)

WITH_DUMMY_HEADS = (
    WeightMap(  # as NVLM-D's release has them: q, k and v of all heads, real ones first
        [
            Rule(OURS + "self_attention.linear_qkv.weight", THEIRS + "attn.qkv.weight", QkvHeads(dummies=True)),
            Rule(OURS + "self_attention.linear_qkv.bias", THEIRS + "attn.qkv.bias", QkvHeads(dummies=True)),
            Rule(OURS + "self_attention.q_norm.weight", THEIRS + "attn.q_norm.weight"),
            Rule(OURS + "self_attention.k_norm.weight", THEIRS + "attn.k_norm.weight"),
            Rule(OURS + "self_attention.linear_proj.weight", THEIRS + "attn.proj.weight"),
        ]
    )
    + INTERNVIT
)


class InternViT(Format):
    """OpenGVLab's InternVisionModel."""

    name = "internvit"
    architectures = ("InternVisionModel",)
    maps = {"encoder": INTERNVIT}
    loose = frozenset({"architectures", "model_type", "initializer_factor"})

    def fits(self, model: ModelConfig) -> None:
        """Raise ConfigError for another encoder."""
        require_point("encoder", model, ("internvit",), self.name)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """InternVisionConfig's keys; of the real heads, dummy ones are not published."""
        of = model.encoder
        return {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "num_channels": 3,
            "image_size": of.image_size,
            "patch_size": of.patch_size,
            "hidden_size": of.hidden,
            "num_attention_heads": of.heads,
            "intermediate_size": of.ffn,
            "num_hidden_layers": of.layers,
            "qkv_bias": of.qkv_bias,
            "qk_normalization": of.qk_norm,
            "norm_type": f"{of.norm}_norm",
            "hidden_act": "gelu",
            "layer_norm_eps": of.norm_eps,
            "initializer_factor": of.layer_scale,
        }
