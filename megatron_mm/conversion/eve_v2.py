"""EVEv2's checkpoints (arXiv 2502.06788): EVEQwen2ForCausalLM, a Qwen2 with second weights for visual tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

from .demands import Demand, require
from .eve_files import PLACED, preprocessor, token_ids
from .formats import Format, as_json
from .llama import OURS, THEIRS
from .llava import TOWER
from .qwen2 import QWEN2, Qwen2
from .rules import Rule, WeightMap
from .transforms import QueryGroups, Stacked

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..data.build import StageData

ATTENTION = tuple(f"{THEIRS}self_attn.moe_{part}_proj" for part in "qkv")
SECOND = f"{THEIRS}moe_"
QKV = f"{OURS}self_attention.linear_qkv.visual"
PATCHES = WeightMap([Rule("patch_embedding.{any}", f"{TOWER}patch_embedding.{{any}}")])
ROWS = WeightMap([Rule(each, f"{TOWER}{each}") for each in ("class_embedding", "split_embedding")])
VISUAL = WeightMap(
    [
        Rule(OURS + "input_layernorm.visual.weight", SECOND + "input_layernorm.weight"),
        *(
            Rule(f"{QKV}.{kind}", tuple(f"{name}.{kind}" for name in ATTENTION), QueryGroups())
            for kind in ("weight", "bias")
        ),
        Rule(OURS + "self_attention.linear_proj.visual.weight", THEIRS + "self_attn.moe_o_proj.weight"),
        Rule(OURS + "pre_mlp_layernorm.visual.weight", SECOND + "post_attention_layernorm.weight"),
        Rule(
            OURS + "mlp.visual.linear_fc1.weight",
            (SECOND + "mlp.gate_proj.weight", SECOND + "mlp.up_proj.weight"),
            Stacked(2),
        ),
        Rule(OURS + "mlp.visual.linear_fc2.weight", SECOND + "mlp.down_proj.weight"),
    ]
)
TWICE, PARTS = "modality_weights", "layernorm-self_attn-mlp"  # the injection, and what it has twice
# Of config.json, what was trained, which changes no weight.
TRAINING = {"tune_LLM": True, "tune_MOE": True, "tune_VE": True, "vision_tower_lr": None}


class EveV2(Format):
    """Of any area of tiles, since no weight depends on it."""

    name = "eve_v2"
    architectures = ("EVEQwen2ForCausalLM",)
    maps: ClassVar[Mapping[str, WeightMap]] = {
        "encoder": PATCHES,
        "connector": ROWS,
        "injection": VISUAL,
        "decoder": QWEN2,
    }
    marks = (f"{TOWER}patch_embedding.2.weight",)
    loose = Qwen2.loose | TRAINING.keys() | {"add_moe", "mm_vision_tower", "moe_part"}
    order = ("decoder.", "injection.", "encoder.", "connector.")

    def reading(self, names: Collection[str]) -> Format:
        """Without the second weights where there are none: a first stage has one set, and the second begins as it."""
        own = copy(self)
        held = {axis: each for axis, each in self.maps.items() if any(map(each.names, names))}
        own.maps = held or self.maps  # type: ignore[misc]
        return own

    def fits(self, model: ModelConfig) -> None:
        """Raise ConfigError naming the first value that the published class would not look at."""
        require(model, self.demands(), self.name)

    def demands(self) -> list[Demand]:
        """Of the axes, points before their keys."""
        inside = "the embedding gives what the decoder reads"
        return [
            Demand("encoder.name", ("eve_v2",), "its vision tower is two convolutions", trained=False),
            Demand("connector.name", ("image_rows",), "rows of an image have ends", trained=False),
            Demand("injection.name", ("inline", TWICE), "visual tokens stand in the sequence", trained=False),
            Demand("decoder.name", ("qwen2",), "its language model is a Qwen2ForCausalLM", trained=False),
            Demand("tiling.name", ("fixed_area",), "it fixes the area of an image", trained=False),
            Demand("injection.tags", ("none",), "it writes no text around an image's tokens"),
            Demand("connector.layers", (0,), inside, trained=False),
            Demand("connector.class_attention", (False,), "its class token is a plain one"),
        ]

    def spec(self, model: ModelConfig, axis: str) -> Any:
        """The second weights are laid out as the decoder's."""
        return model.decoder if axis == "injection" else super().spec(model, axis)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """Qwen2Config's keys, and those that the published training scripts add."""
        return Qwen2().config(model) | TRAINING | {
            "architectures": list(self.architectures),
            "model_type": "eve-qwen2",
            "add_moe": model.injection.name == TWICE,
            "mm_hidden_size": model.encoder.hidden,
            "mm_vision_tower": f"openai/eve-anyratio-res{model.tiling.tile}-patch{model.encoder.patch_size}",
            "moe_part": PARTS,
        }  # fmt: skip

    def files(self, spec: StageData, dtype: str) -> dict[str, bytes]:
        """config.json, and the sizes of images for the folder that `mm_vision_tower` names."""
        told = token_ids(spec, "<|endoftext|>", "<|im_end|>") | {"torch_dtype": dtype}
        sizes = {"dense_stride": spec.model.encoder.pool, "max_size": spec.model.tiling.tile}
        return {
            "config.json": as_json(self.config(spec.model) | told),
            "preprocessor_config.json": as_json(preprocessor(spec.model) | sizes),
        }

    def notes(self, files: Sequence[str]) -> list[str]:
        """Where a file has to stand."""
        return [PLACED]
