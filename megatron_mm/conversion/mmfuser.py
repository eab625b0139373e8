"""MMFuser's checkpoints (arXiv 2410.11829): LLaVA-1.5 with a fuser of CLIP's layers before its projector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import clip
from .clip_behind import behind
from .demands import Demand, require
from .formats import Constant
from .llama import LLAMA
from .llava import PROJECTOR, TOWER, LlavaLike, projector
from .rules import Rule, WeightMap

if TYPE_CHECKING:
    from ..config import ModelConfig

CLIP = f"{TOWER}vision_tower.{clip.PREFIX}"
FUSER = WeightMap([Rule("fuser.{any}", f"{PROJECTOR}0.{{any}}")])
FUSES = {
    "levels": 4,
    "attention": "deformable",
    "heads": 16,
    "points": 4,
    "self_attention": True,
    "norm_eps": 1e-6,
}
FILES = (3, 6)  # how many weight files the published reader knows, for 7B and 13B


class MMFuser(LlavaLike):
    """CLIP, the fuser and the MLP behind it as one nn.Sequential, and a Llama."""

    name = "mmfuser"
    model_type = "llava_llama"
    architectures = ("LlavaLlamaForCausalLM",)
    maps = {"encoder": clip.TOWER.under(CLIP), "connector": FUSER + projector(behind=1), "decoder": LLAMA}
    order = (*LlavaLike.order, "connector.fuser.gamma")  # the published reader looks for them in the last file
    marks = (f"{PROJECTOR}0.gamma1",)

    def fits(self, model: ModelConfig) -> None:
        """Raise ConfigError naming the first value that the published class would not look at."""
        require(model, self.demands(model), self.name)

    def demands(self, model: ModelConfig) -> list[Demand]:
        """Of the axes, points before their keys."""
        return [
            Demand("encoder.name", ("clip",), "its vision tower is CLIP's", trained=False),
            Demand("connector.name", ("mmfuser",), "its projector begins with a fuser of layers", trained=False),
            *super().demands(model),
            Demand("encoder.class_token", ("in_layers",), "CLIP runs with its class token"),
            Demand("encoder.trained_size", (model.encoder.image_size, None), "CLIP's positions are not resized"),
            Demand("connector.hidden", (None, model.decoder.hidden), "the projector is as wide as the decoder"),
            *(Demand(f"connector.{key}", (value,), f"its fuser has {key} {value}") for key, value in FUSES.items()),
        ]

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """As LLaVA's, with the width of one layer's features."""
        return super().config(model) | {"mm_hidden_size": model.encoder.hidden}

    def vision(self, model: ModelConfig) -> dict[str, Any]:
        """CLIP, its weights taken from the export, and the layers: a list, counted from the end."""
        of = model.encoder
        return {
            "mm_vision_tower": "openai/clip-vit-large-patch14-336",
            "mm_vision_select_layer": [depth - of.layers - 1 for depth in of.depths],
            "unfreeze_mm_vision_tower": True,  # otherwise the reader takes CLIP's own weights in place of these
        }

    def constants(self, model: ModelConfig) -> Sequence[Constant]:
        """CLIP's layers behind the last one that is read, and the norm after them."""
        return list(behind(model.encoder, CLIP))

    def notes(self, files: Sequence[str]) -> list[str]:
        """Its reader opens the last of 3 or of 6 files for the gammas."""
        if len(files) in FILES:
            return []
        return [
            f"the published reader takes gamma1 and gamma2 from the last of {' or '.join(map(str, FILES))} files, and "
            f"this is {len(files)}: choose --max-shard for one of those"
        ]
