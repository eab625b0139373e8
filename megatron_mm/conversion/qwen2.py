"""Qwen2's layout, transformers' Qwen2ForCausalLM: Llama's, with biases of queries, keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .formats import Format, require_point
from .llama import ATTENTION, LLAMA, OURS, Llama, shape
from .rules import Rule, WeightMap
from .transforms import QueryGroups

if TYPE_CHECKING:
    from ..config import ModelConfig

BIASES = Rule(OURS + "self_attention.linear_qkv.bias", tuple(f"{name}.bias" for name in ATTENTION), QueryGroups())
QWEN2 = LLAMA + WeightMap([BIASES])


class Qwen2(Format):
    """transformers' Qwen2ForCausalLM, which Qwen2.5 is too."""

    name = "qwen2"
    architectures = ("Qwen2ForCausalLM",)
    maps = {"decoder": QWEN2}
    loose = Llama.loose

    def fits(self, model: ModelConfig) -> None:
        """Raise ConfigError for another decoder."""
        require_point("decoder", model, ("qwen2",), self.name)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """Qwen2Config's keys."""
        return shape(model) | {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "rope_scaling": None,
            "use_sliding_window": False,
        }
