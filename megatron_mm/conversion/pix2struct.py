"""Pix2Struct's image encoder, that part of transformers' Pix2StructForConditionalGeneration. Its names are ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .one_encoder import ReadOnly
from .rules import Rule, WeightMap

if TYPE_CHECKING:
    from ..config import ModelConfig

TOWER = WeightMap([Rule("{any}", "{any}")])


class Pix2Struct(ReadOnly):
    """google/pix2struct-large and its like, of which the text decoder is left out."""

    name = "pix2struct"
    architectures = ("Pix2StructForConditionalGeneration", "Pix2StructVisionModel")
    maps = {"encoder": TOWER.under("encoder.") + WeightMap([], {"decoder.{any}": "of the text decoder"})}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """What no shape tells, of Pix2StructVisionConfig's keys."""
        of = self.expert(model)
        return {"layer_norm_eps": of.norm_eps, "num_attention_heads": of.heads}

    def compare(self, model: ModelConfig, published: Mapping[str, Any], where: str) -> None:
        """As every format, with the vision encoder's part of a whole model's configuration."""
        super().compare(model, published.get("vision_config") or published, where)
