"""NVEagle's X models (Eagle 1, arXiv 2408.15998): EagleLlamaForCausalLM, of a mixture, a projector and a Llama."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from megavlm.platform.errors import ConfigError

from .demands import OWN, Demand, require
from .eagle_towers import TOWERS, X5, place, towers
from .formats import Constant, Format
from .llama import LLAMA
from .llava import PROJECTOR, LlavaLike, projector

if TYPE_CHECKING:
    from ..config import ModelConfig


class Eagle(LlavaLike):
    """X4, X5 and any other set of the released experts; towers are numbered in the order of the mixture."""

    name = "eagle"
    model_type = "eagle_llama"
    architectures = ("EagleLlamaForCausalLM",)
    maps = {"encoder": towers(zip(X5, X5, strict=True)), "connector": projector(), "decoder": LLAMA}
    marks = (f"{PROJECTOR}0.weight",)
    loose = LlavaLike.loose | {"mm_vision_select_layer"}  # no tower of a mixture looks at it

    def of(self, model: ModelConfig) -> Format:
        """With this mixture's towers."""
        own = copy(self)
        made = {**self.maps, "encoder": towers((key, expert.name) for key, expert in model.encoder.used.items())}
        own.maps = {axis: made[axis] for axis in self.maps}  # type: ignore[misc]
        return own

    def fits(self, model: ModelConfig) -> None:
        """Raise ConfigError naming the first value that the published class would not look at."""
        require(model, self.demands(model), self.name)
        for key, expert in model.encoder.used.items():
            if expert.name not in TOWERS:
                raise ConfigError(
                    f"format {self.name} has no tower for expert {key}, {expert.name}: it has {', '.join(TOWERS)}",
                    where="model.encoder.use",
                    fix=OWN,
                )
        require(model, _of_experts(model), self.name)

    def demands(self, model: ModelConfig) -> list[Demand]:
        """Of the axes, points before their keys."""
        return [
            Demand("encoder.name", ("mixture",), "its vision tower is a mixture", trained=False),
            Demand("connector.name", ("channel_concat",), "channels are concatenated", trained=False),
            *super().demands(model),
            Demand("encoder.normalisation", ("shared",), "one tensor, normalised as CLIP's, goes to all towers"),
            Demand("connector.hidden", (None, model.decoder.hidden), "the projector is as wide as the decoder"),
            Demand("connector.layers", (*range(3, 9), 2), "a single Linear has other names"),
        ]

    def vision(self, model: ModelConfig) -> dict[str, Any]:
        """The towers' tags."""
        tags = [TOWERS[expert.name].tag for expert in model.encoder.used.values()]
        return {"mm_vision_tower": ";".join(tags), "mm_vision_select_layer": -2}

    def constants(self, model: ModelConfig) -> Sequence[Constant]:
        """Class token, heads and rotary tables: nothing is read from them, yet they are in the released files."""
        return [
            Constant(place(index) + name, shape, make)
            for index, expert in enumerate(model.encoder.used.values())
            for name, shape, make in map(_fields, TOWERS[expert.name].beside(expert))
        ]


def _fields(constant: Constant) -> tuple[str, tuple[int, ...], Any]:
    return constant.name, constant.shape, constant.make


def _of_experts(model: ModelConfig) -> list[Demand]:
    """What its towers do whatever config.json says."""
    found = []
    for key, expert in model.encoder.used.items():
        where = f"encoder.experts.{key}"
        if expert.name == "clip":
            found += [
                Demand(f"{where}.class_token", ("dropped",), "the class token goes before the layers"),
                Demand(f"{where}.layer", (expert.layers, -1), "what the last layer gives is read"),
                Demand(f"{where}.trained_size", (expert.image_size, None), "CLIP is fed the size of its table, 336 px"),
            ]
        if expert.name == "sam":
            found += [
                Demand(f"{where}.neck", ("short",), "SAM has a short neck"),
                Demand(f"{where}.unshuffle", (2,), "SAM's map is unshuffled to half its side"),
            ]
    return found
