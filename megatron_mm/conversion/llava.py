"""What checkpoints of LLaVA's descendants have in common: a Llama, and beside it a vision tower and a projector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

from .demands import Demand
from .formats import Format, as_json
from .llama import Llama
from .rules import Rule, WeightMap

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..data.build import StageData

TOWER, PROJECTOR = "model.vision_tower.", "model.mm_projector."
LAYERS = 8  # of a projector, as many as anybody will want
# Of config.json, what was done in training, and what changes no weight.
TRAINING = {
    "freeze_mm_mlp_adapter": False,
    "mm_projector_lr": None,
    "mm_vision_select_feature": "patch",
    "tokenizer_padding_side": "right",
    "tune_mm_mlp_adapter": False,
    "use_cache": True,
    "use_mm_proj": True,
}
ASPECTS = {"pad": "pad", "crop": "square"}  # a square tiling's `fit`, in LLaVA's words


def projector(behind: int = 0) -> WeightMap:
    """Linear and GELU in turn, numbered as in nn.Sequential, `behind` so many other modules."""
    numbers = range(0, 2 * LAYERS, 2)
    return WeightMap(
        Rule(f"projector.{n}.{kind}", f"{PROJECTOR}{n + behind}.{kind}") for n in numbers for kind in ("weight", "bias")
    )


class LlavaLike(Format, ABC):
    """A subclass says its names, its maps, and what of its vision config.json has to say."""

    family: ClassVar[str]  # of its class: architectures
    model_type: ClassVar[str]
    loose = Llama.loose | TRAINING.keys() | {"image_aspect_ratio", "tokenizer_model_max_length"}
    order: ClassVar[tuple[str, ...]] = ("decoder.", "encoder.", "connector.")  # as published
    # How the names of an axis' tensors begin, the first that fits; any other is the decoder's.
    places: ClassVar[Mapping[str, str]] = {TOWER: "encoder", PROJECTOR: "connector"}

    def reading(self, names: Collection[str]) -> Format:
        """With the axes of which something is there: a first stage saves its projector alone (mm_projector.bin)."""
        own = copy(self)
        held = {self._axis(name) for name in names}
        own.maps = {axis: table for axis, table in self.maps.items() if axis in held}  # type: ignore[misc]
        return own

    def demands(self, model: ModelConfig) -> list[Demand]:
        """What the published classes take for granted."""
        return [
            Demand("decoder.name", ("llama",), "its language model is a LlamaForCausalLM", trained=False),
            Demand("tiling.name", ("square",), "it shows an image as one square", trained=False),
            Demand("injection.name", ("inline",), "it has no cross-attention", trained=False),
            Demand("injection.tags", ("none",), "it writes no text around an image's tokens"),
        ]

    @abstractmethod
    def vision(self, model: ModelConfig) -> dict[str, Any]:
        """The keys of config.json that say what is looked with."""

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """Llama's keys, and those that the published training scripts add."""
        layers = model.connector.layers
        return Llama().config(model) | TRAINING | self.vision(model) | {
            "architectures": list(self.architectures),
            "model_type": self.model_type,
            "mm_hidden_size": sum(each.channels for each in model.encoder.maps),
            "mm_patch_merge_type": "flat",
            "mm_projector_type": f"mlp{layers}x_gelu" if layers > 1 else "linear",
            "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False,
        }  # fmt: skip

    def files(self, spec: StageData, dtype: str) -> dict[str, bytes]:
        """config.json. The tokenizer's files are the language model's own, as published."""
        told = {
            "image_aspect_ratio": ASPECTS[spec.model.tiling.fit],
            "tokenizer_model_max_length": spec.stage.mixture.sequence_length,
            "torch_dtype": dtype,
        }
        return {"config.json": as_json(self.config(spec.model) | told)}

    def _axis(self, name: str) -> str:
        return next((axis for prefix, axis in self.places.items() if name.startswith(prefix)), "decoder")
