"""EVE's checkpoints (arXiv 2406.11832): EVELlamaForCausalLM, a Llama with patch embedding and patch aligning layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

from .clip_behind import behind
from .demands import Demand, require
from .eve_aligning import BACKBONE, PLACE, SELECTED, TEACHERS, Held, aligner, aligning, require_published
from .eve_files import PLACED, preprocessor, token_ids
from .formats import Constant, Format, as_json
from .llama import LLAMA
from .llava import PROJECTOR, TOWER, LlavaLike, projector
from .rules import Rule, WeightMap

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..data.build import StageData

PATCH = f"{TOWER}patch_embedding.weight"
LOCAL = f"{TOWER}local_attention."
ROWS = WeightMap(
    [
        Rule("class_embedding", f"{TOWER}class_embedding"),
        Rule("split_embedding", f"{TOWER}split_embedding"),
        Rule("global_attention.{any}", f"{TOWER}global_attention.{{any}}"),
    ]
)


class Eve(LlavaLike):
    """Of any size of tile, since no weight depends on it."""

    name = "eve"
    model_type = "eve"
    architectures = ("EVELlamaForCausalLM",)
    maps: ClassVar[Mapping[str, WeightMap]] = {
        "encoder": WeightMap([Rule("patch_embedding.weight", PATCH), Rule("local_attention.{any}", f"{LOCAL}{{any}}")]),
        "connector": ROWS + projector(),
        "objectives": WeightMap([]),  # `of` says it for a model
        "decoder": LLAMA,
    }
    marks = (PATCH,)
    # what training shows and learns by, and the size of an image: the weights are the same
    loose = LlavaLike.loose | {"mm_vision_tower", "mm_vision_tower_clip", "requires_cliploss", "vision_tower_lr"}
    order = ("decoder.", "encoder.", "connector.", "objectives.")
    places: ClassVar[Mapping[str, str]] = {
        PATCH: "encoder",
        LOCAL: "encoder",
        TOWER: "connector",
        PROJECTOR: "connector",
        PLACE: "objectives",
        TEACHERS[0]: "objectives",
    }
    held = Held()

    def reading(self, names: Collection[str]) -> Format:
        """As LLaVA's, with what there is of the aligning layer and its teacher."""
        own = super().reading(names)
        own.held = Held.of(names)  # type: ignore[attr-defined]
        return own

    def of(self, model: ModelConfig) -> Format:
        """With the norms of as many layers as the decoder has."""
        own = copy(self)
        made = {**self.maps, "objectives": aligning(model, self.held)}
        own.maps = {axis: made[axis] for axis in self.maps}  # type: ignore[misc]
        return own

    def fits(self, model: ModelConfig) -> None:
        """Raise ConfigError naming the first value that the published class would not look at."""
        require(model, self.demands(model), self.name)
        require_published(model)

    def demands(self, model: ModelConfig) -> list[Demand]:
        """Of the axes, points before their keys."""
        return [
            Demand("encoder.name", ("eve",), "its vision tower is a patch embedding layer", trained=False),
            Demand("connector.name", ("image_rows",), "rows of an image have ends", trained=False),
            Demand("decoder.name", ("llama",), "its language model is a LlamaForCausalLM", trained=False),
            Demand("tiling.name", ("longer_side",), "it fixes the longer side of an image", trained=False),
            Demand("injection.name", ("inline",), "it has one set of weights, and no cross-attention", trained=False),
            Demand("injection.tags", ("none",), "it writes no text around an image's tokens"),
            Demand("encoder.window_attention", (True,), "means of windows read from their windows"),
            Demand("encoder.heads", (8,), "its class has no key for them"),
            Demand("connector.class_attention", (True,), "the class token reads from the whole image"),
            Demand("connector.heads", (8,), "its class has no key for them"),
            Demand("connector.layers", (2,), "a class token of the tower's width needs an MLP"),
            Demand("connector.hidden", (None, model.decoder.hidden), "the projector is as wide as the decoder"),
        ]

    def vision(self, model: ModelConfig) -> dict[str, Any]:
        """The patch embedding, by a name that says its sizes, and the teacher."""
        of = aligner(model)
        return {
            "mm_vision_select_layer": of.teacher.layer if of else SELECTED,
            "mm_vision_tower": f"openai/eve-patch{model.encoder.patch_size}-anypixel-{model.tiling.tile}",
            "mm_vision_tower_clip": BACKBONE,
            "requires_cliploss": of is not None,
            "vision_tower_lr": None,
        }

    def files(self, spec: StageData, dtype: str) -> dict[str, bytes]:
        """config.json, and the sizes of images for the folder that `mm_vision_tower` names."""
        told = token_ids(spec, "<s>", "</s>") | {"image_aspect_ratio": "square", "torch_dtype": dtype}
        model = spec.model
        clip = aligner(model).teacher.patch_size if aligner(model) else model.encoder.patch_size
        sizes = {
            "conv_stride": model.encoder.pool,
            "image_size": model.tiling.tile,
            "image_size_clip": model.tiling.tile // model.tiling.side_step * clip,  # a step is a patch of the teacher
            "patch_stride_clip": clip,
        }
        return {
            "config.json": as_json(self.config(model) | told),
            "preprocessor_config.json": as_json(preprocessor(model) | sizes),
        }

    def constants(self, model: ModelConfig) -> Sequence[Constant]:
        """The teacher's layers behind the one that is read."""
        of = aligner(model)
        return list(behind(of.teacher, TEACHERS[0])) if of else []

    def notes(self, files: Sequence[str]) -> list[str]:
        """Where a file has to stand."""
        return [PLACED]
