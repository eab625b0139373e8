"""SAM's image encoder, that part of transformers' SamModel. Its names are ours."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from .formats import Format
from .one_encoder import ReadOnly
from .rules import Rule, WeightMap

if TYPE_CHECKING:
    from ..config import ModelConfig

PREFIX = "vision_encoder."
TOWER = WeightMap([Rule("{any}", "{any}")])
OTHERS = {
    "shared_image_embedding.{any}": "of the prompts",
    "prompt_encoder.{any}": "of the prompts",
    "mask_decoder.{any}": "of the masks",
}
# As Eagle's code has it: of the published neck nothing is taken, though half of it would fit.
NEW_NECK = WeightMap([], {"neck.{any}": "Eagle's short neck is drawn anew"}, drawn=("neck.{any}",))


class Sam(ReadOnly):
    """facebook/sam-vit-large and its like. A short neck is drawn, as in Eagle; the published one is read."""

    name = "sam"
    architectures = ("SamModel",)
    maps = {"encoder": TOWER.under(PREFIX) + WeightMap([], OTHERS)}

    def of(self, model: ModelConfig) -> Format:
        """Without the neck, where the model has a short one."""
        if self.expert(model).neck != "short":
            return super().of(model)
        own = copy(self)
        own.maps = {"encoder": NEW_NECK.under(PREFIX) + self.maps["encoder"]}  # type: ignore[misc]
        return super(Sam, own).of(model)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """What no shape tells, of SamVisionConfig's keys."""
        of = self.expert(model)
        return {
            "global_attn_indexes": list(of.global_layers),
            "layer_norm_eps": of.norm_eps,
            "num_attention_heads": of.heads,
            "window_size": of.window,
        }

    def compare(self, model: ModelConfig, published: Mapping[str, Any], where: str) -> None:
        """As every format, with the vision encoder's part of a whole model's configuration."""
        super().compare(model, published.get("vision_config") or published, where)
