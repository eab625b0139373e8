"""CLIP's vision tower, transformers' CLIPVisionModel, alone or in a whole CLIP. Its names are ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

from .formats import Format, as_json
from .one_encoder import OneEncoder
from .rules import Rule, WeightMap

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..data.build import StageData

PREFIX = "vision_model."
TOWER = WeightMap(
    [Rule("vision_model.{any}", "{any}")],
    {
        "encoder.layers.{n}.{any}": "of a layer behind the one that is read",
        "post_layernorm.{any}": "comes after the features that are read",
        "embeddings.position_ids": "a list of all positions",
        "embeddings.class_embedding": "is taken out before the layers",
        "head.{any}": "of the pooling head",
    },
)
OTHERS = {
    "text_model.{any}": "of the text tower",
    "text_projection.weight": "of the text tower",
    "visual_projection.weight": "of the contrastive loss",
    "logit_scale": "of the contrastive loss",
    "logit_bias": "of the contrastive loss",
}
TAUGHT = ("encoder", "objectives")  # where a model may have it: it looks, or is what others learn from
WHOLE = TOWER.under(PREFIX) + WeightMap([], OTHERS)


class VisionTower(OneEncoder):
    """A ViT that is built of transformers' own layers, and keeps their names."""

    family: ClassVar[str]  # in transformers' class names
    loose = frozenset({"architectures", "model_type"})

    def reading(self, names: Collection[str]) -> Format:
        """Published files have the prefix; what transformers 5 writes of a vision model alone has not."""
        if any(name.startswith(PREFIX) for name in names):
            return self
        bare = copy(self)
        bare.maps = dict.fromkeys(TAUGHT, TOWER)  # type: ignore[misc]
        return bare

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """The keys of transformers' vision configurations."""
        of = self.expert(model)
        return {
            "architectures": [f"{self.family}VisionModel"],
            "model_type": f"{self.name}_vision_model",
            "hidden_act": of.activation,
            "hidden_size": of.hidden,
            "image_size": of.trained_size or of.image_size,
            "intermediate_size": of.ffn,
            "layer_norm_eps": of.norm_eps,
            "num_attention_heads": of.heads,
            "num_hidden_layers": of.layers,
            "patch_size": of.patch_size,
        }

    def compare(self, model: ModelConfig, published: Mapping[str, Any], where: str) -> None:
        """As every format, with the vision model's part of a whole model's configuration."""
        super().compare(model, published.get("vision_config") or published, where)

    def files(self, spec: StageData, dtype: str) -> dict[str, bytes]:
        """config.json, of the layers that are there: up to the one that is read."""
        config = self.config(spec.model) | {"num_hidden_layers": self.expert(spec.model).depth, "torch_dtype": dtype}
        return {"config.json": as_json(config)}


class Clip(VisionTower):
    """OpenAI's CLIP."""

    name = "clip"
    family = "CLIP"
    architectures = ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel")
    maps = dict.fromkeys(TAUGHT, WHOLE)
