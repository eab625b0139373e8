"""DINOv2 with registers, transformers' Dinov2WithRegistersModel. Ours has the names of its module since version 5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .one_encoder import ReadOnly
from .rules import Rule, WeightMap

if TYPE_CHECKING:
    from ..config import ModelConfig

LAYER = "encoder.layer.{n}.attention."
PUBLISHED = {
    "attention.query": "q_proj",
    "attention.key": "k_proj",
    "attention.value": "v_proj",
    "output.dense": "o_proj",
}
NATIVE = WeightMap(
    [
        *(Rule(f"{LAYER}{ours}.{{any}}", f"{LAYER}{theirs}.{{any}}") for theirs, ours in PUBLISHED.items()),
        Rule("{any}", "{any}"),
    ],
    {"embeddings.mask_token": "is for pretraining"},
)


class Dinov2(ReadOnly):
    """facebook/dinov2-with-registers-large and its like."""

    name = "dinov2"
    architectures = ("Dinov2WithRegistersModel",)
    maps = {"encoder": NATIVE}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """What no shape tells, of Dinov2WithRegistersConfig's keys."""
        of = self.expert(model)
        return {"layer_norm_eps": of.norm_eps, "num_attention_heads": of.heads}
