"""The project's own layout, which holds every model: for those that no published class can load.

safetensors whose tensors are this project's parameters, whole, named AXIS.PARAMETER as one process names them, and the
recipe. docs/conversion.md says how their rows are laid out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from megavlm.platform.config.tree import leaves
from megavlm.platform.errors import ConfigError, InputError

from ..config import AXES
from .formats import Format, as_json
from .rules import WeightMap
from .transforms import Same, Transform

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..data.build import StageData


class OwnNames(WeightMap):
    """Every parameter of an axis, as it is, under the axis' name."""

    def __init__(self, axis: str) -> None:
        super().__init__([])
        self.prefix = f"{axis}."

    def made_of(self, ours: str) -> tuple[tuple[str, ...], Transform]:
        """The parameter itself."""
        return (self.prefix + ours,), Same()

    def names(self, published: str) -> bool:
        """Whether a tensor is of this axis."""
        return published.startswith(self.prefix)


class MegaVLM(Format):
    """Any model of a recipe."""

    name = "megavlm"
    architectures = ("MegaVLM",)
    maps = {axis: OwnNames(axis) for axis in AXES}
    loose = frozenset({"decoder.max_positions", "injection.tags"})

    def fits(self, model: ModelConfig) -> None:
        """Every model does."""

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """The model's keys as recipes have them, defaults included."""
        return {"architectures": ["MegaVLM"], "model_type": "megavlm", "model": model.model_dump(mode="json")}

    def compare(self, model: ModelConfig, published: Mapping[str, Any], where: str) -> None:
        """Raise ConfigError naming the first key of an axis that differs; tiling and objectives are no weights.

        Raises InputError for a config.json that is of another format.
        """
        theirs, ours = (_keys(each, where) for each in (published, self.config(model)))
        for key in sorted(ours.keys() & theirs.keys() - self.loose, key=_names_first):
            if ours[key] != theirs[key]:
                raise ConfigError(
                    f"the weights are of a model with {key} {theirs[key]}, and the recipe's has {ours[key]}",
                    where=where,
                    fix=f"set model.{key}={theirs[key]}",
                )

    def files(self, spec: StageData, dtype: str) -> dict[str, bytes]:
        """config.json, the tokenizer, and the recipe of the stage that trained it, standing on its own."""
        alone = spec.stage.model_copy(update={"after": [], "watch": []})  # both name other stages
        recipe = {
            "seed": spec.seed,
            "model": spec.model.model_dump(mode="json"),
            "data": spec.data.model_dump(mode="json"),
            "stages": {spec.name: alone.model_dump(mode="json", exclude={"model", "template"})},
        }
        return {
            "config.json": as_json(self.config(spec.model) | {"torch_dtype": dtype}),
            "recipe.yaml": yaml.safe_dump(recipe, sort_keys=False).encode(),
            "tokenizer.json": spec.tokenizer().path.read_bytes(),
        }


def _keys(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    model = config.get("model")
    if not isinstance(model, Mapping) or not all(isinstance(model.get(axis), Mapping) for axis in AXES):
        raise InputError(f"it has no `model` with {', '.join(AXES)}", where=where, fix="is it of another format?")
    return dict(leaves({axis: model[axis] for axis in AXES}))


def _names_first(key: str) -> tuple[bool, str]:
    """Another point of an axis is said before its keys are."""
    return not key.endswith(".name"), key
