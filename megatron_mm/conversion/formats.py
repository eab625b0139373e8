"""What a published layout has to say about itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
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

    def reading(self, names: Collection[str]) -> Format:
        """This format as it reads tensors of these published names, where those are written in several ways."""
        return self

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
        found = _with_rope(published)
        for key, ours in self.config(model).items():
            if key in found and key not in self.loose and found[key] != ours:
                raise ConfigError(
                    f"config.json says {key} {found[key]}, and the recipe's model comes to {ours}",
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


def _with_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """With the rotary base and its scaling at the top, where transformers 4 wrote them and 5 reads them too."""
    found, scaling = dict(config), config.get("rope_parameters", config.get("rope_scaling")) or {}
    if "rope_theta" in scaling:
        found["rope_theta"] = scaling["rope_theta"]
    scaling = {"rope_type": scaling.get("type"), **scaling}
    of_none = scaling["rope_type"] in {None, "default"}
    own = {key: value for key, value in scaling.items() if key not in {"rope_theta", "type"}}
    return found | {"rope_scaling": None if of_none else own}
