"""Whether a model is one that the `NVLM_D` format can say: what its readers assume has no key. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megavlm.platform.errors import ConfigError

from ..data.templates.chatml import ChatML
from .demands import OWN, Demand, require
from .nvlm_d_config import PROJECTOR_EPS

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..data.templates.base import Template

DUMMY_HEADS = 7  # which vLLM adds to the encoder's heads, whatever their number
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
MARKS = {"image_start": "<Image>", "image_end": "</Image>"}


def demands(model: ModelConfig) -> list[Demand]:
    """What is taken for granted, the points of the axes first: another point has other keys."""
    return [
        Demand("decoder.name", ("qwen2",), "its language model is Qwen2ForCausalLM", trained=False),
        Demand("encoder.name", ("internvit",), "its vision encoder is InternViT", trained=False),
        Demand("connector.name", ("pixel_shuffle_mlp",), "its projector is a pixel shuffle and an MLP", trained=False),
        Demand("injection.name", ("inline",), "it has no cross-attention", trained=False),
        Demand("encoder.dummy_heads", (DUMMY_HEADS,), "vLLM builds the encoder with so many more heads"),
        Demand("encoder.trained_size", (None, model.encoder.image_size), "the table of positions is not resized"),
        Demand("encoder.mean", (MEAN,), "pixels are normalised with ImageNet's mean"),
        Demand("encoder.std", (STD,), "pixels are normalised with ImageNet's deviation"),
        Demand("connector.hidden", (model.decoder.ffn,), "the projector is as wide as the decoder's ffn"),
        Demand("connector.norm_eps", (PROJECTOR_EPS,), "the projector's LayerNorm has torch's eps"),
        Demand("injection.tags", ("1d",), "prompts are written with <tile_1>, <tile_2> and so on"),
        Demand("tiling.name", ("dynamic",), "images are cut into a grid of tiles"),
        Demand("tiling.thumbnail", (True,), "without one, an image's last tile gets no tag"),
    ]


def check_model(model: ModelConfig) -> None:
    """Raise ConfigError naming the first value that the format cannot say."""
    require(model, demands(model), "nvlm_d")


def check_template(template: Template) -> ChatML:
    """The template; raises ConfigError for one whose text the format's readers do not write."""
    if not isinstance(template, ChatML):
        raise ConfigError(
            f"template {template.name}: format nvlm_d is prompted in ChatML", where="data.template", fix=OWN
        )
    for key, wanted in MARKS.items():
        value = getattr(template, key)
        if value != wanted:
            raise ConfigError(
                f"{key} '{value}': vLLM writes '{wanted}' around an image",
                where=f"data.template.{key}",
                fix=f"train with data.template.{key}='{wanted}', or {OWN}",
            )
    return template
