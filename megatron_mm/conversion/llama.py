"""Llama's layout, which Vicuna, Yi and many others share: transformers' LlamaForCausalLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .formats import Format, require_point
from .rules import Rule, WeightMap
from .transforms import QueryGroups, Stacked, VocabRows

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..decoders.llama import RopeScaling

OURS, THEIRS = "decoder.layers.{n}.", "model.layers.{n}."
ATTENTION = tuple(f"{THEIRS}self_attn.{part}_proj" for part in "qkv")

LLAMA = WeightMap(
    [
        Rule("embedding.word_embeddings.weight", "model.embed_tokens.weight", VocabRows()),
        Rule(OURS + "input_layernorm.weight", THEIRS + "input_layernorm.weight"),
        Rule(OURS + "self_attention.linear_qkv.weight", tuple(f"{name}.weight" for name in ATTENTION), QueryGroups()),
        Rule(OURS + "self_attention.linear_proj.weight", THEIRS + "self_attn.o_proj.weight"),
        Rule(OURS + "pre_mlp_layernorm.weight", THEIRS + "post_attention_layernorm.weight"),
        Rule(
            OURS + "mlp.linear_fc1.weight",
            (THEIRS + "mlp.gate_proj.weight", THEIRS + "mlp.up_proj.weight"),
            Stacked(2),
        ),
        Rule(OURS + "mlp.linear_fc2.weight", THEIRS + "mlp.down_proj.weight"),
        Rule("decoder.final_layernorm.weight", "model.norm.weight"),
        Rule("output_layer.weight", "lm_head.weight", VocabRows()),
    ],
    ignored={
        THEIRS + "self_attn.rotary_emb.inv_freq": "follows from the rotary base",
        "lm_head.weight": "the output layer is the embedding",
    },
)


class Llama(Format):
    """transformers' LlamaForCausalLM."""

    name = "llama"
    architectures = ("LlamaForCausalLM",)
    maps = {"decoder": LLAMA}
    # how long samples may be is the recipe's, and more rows than published are allowed
    loose = frozenset({"architectures", "model_type", "max_position_embeddings", "vocab_size"})

    def fits(self, model: ModelConfig) -> None:
        """Raise ConfigError for another decoder."""
        require_point("decoder", model, ("llama",), self.name)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """LlamaConfig's keys."""
        return shape(model) | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
            "rope_scaling": _rope_scaling(model.decoder.rope_scaling),
        }


def _rope_scaling(of: RopeScaling | None) -> dict[str, Any] | None:
    if of is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": of.factor,
        "low_freq_factor": of.low_freq_factor,
        "high_freq_factor": of.high_freq_factor,
        "original_max_position_embeddings": of.original_positions,
    }


def shape(model: ModelConfig) -> dict[str, Any]:
    """The keys that transformers' Llama and Qwen2 share."""
    of = model.decoder
    return {
        "hidden_act": "silu",
        "hidden_size": of.hidden,
        "intermediate_size": of.ffn,
        "max_position_embeddings": of.max_positions,
        "num_attention_heads": of.heads,
        "num_hidden_layers": of.layers,
        "num_key_value_heads": of.kv_heads,
        "rms_norm_eps": of.norm_eps,
        "rope_theta": of.rope_base,
        "tie_word_embeddings": of.tied,
        "vocab_size": of.vocab,
    }
