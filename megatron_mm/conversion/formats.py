"""What a published layout has to say about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from megavlm.platform.errors import ConfigError

from .rules import WeightMap

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..data.build import StageData

DTYPE_KEYS = {"torch_dtype", "dtype"}


class Format:
    """A published layout: its weight map for each axis it holds, and its configuration files."""

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]  # config.json's, by which `import` knows the format
    maps: ClassVar[Mapping[str, WeightMap]]  # axis -> map
    loose: ClassVar[frozenset[str]] = frozenset()  # keys of config.json that say nothing about the weights

    def fits(self, model: ModelConfig) -> None:
        """Raise ConfigError where `model` is not of this format."""
        raise NotImplementedError

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """config.json of `model`, but for its dtype."""
        raise NotImplementedError

    def files(self, spec: StageData, dtype: str) -> dict[str, bytes]:
        """Name -> content of all that an export has beside its weights, which are of `dtype` (torch's name for it)."""
        return {"config.json": as_json(self.config(spec.model) | {"torch_dtype": dtype})}

    def compare(self, model: ModelConfig, published: Mapping[str, Any], where: str) -> None:
        """Raise ConfigError naming the first value of a published config.json that `model` contradicts."""
        for key, ours in self.config(model).items():
            theirs = _value(published, key)
            if key not in self.loose and theirs is not None and theirs != ours:
                raise ConfigError(
                    f"config.json says {key} {theirs}, and the recipe's model comes to {ours}",
                    where=where,
                    fix="change the recipe's model, or give the weights it is meant for",
                )


def require_point(axis: str, model: ModelConfig, names: tuple[str, ...], format_name: str) -> None:
    """Raise ConfigError unless the model's `axis` is one of the points `names`."""
    name = getattr(model, axis).name
    if name not in names:
        raise ConfigError(
            f"format {format_name} holds the weights of {', '.join(names)}, and the model's {axis} is {name}",
            where=f"model.{axis}.name",
            fix=f"set model.{axis}.name={names[0]}, or choose another format",
        )


def as_json(value: Any) -> bytes:
    """A configuration file's bytes."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _value(config: Mapping[str, Any], key: str) -> Any:
    """`key` of a config.json; the rotary base may stand among the `rope_parameters` (transformers 5)."""
    return config.get(key, (config.get("rope_parameters") or {}).get(key))
