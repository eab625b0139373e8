"""What a published layout has to say about itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from megavlm.platform.errors import ConfigError, InputError

from . import FORMATS
from .rules import WeightMap

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import ModelConfig
    from ..data.build import StageData
    from .published import Published

DTYPE_KEYS = {"torch_dtype", "dtype"}


@dataclass(frozen=True)
class Constant:
    """A published tensor that no parameter of ours makes: nothing reads it, or it follows from the shape.

    An export writes it, so that the published class finds every name it has. An import leaves it out.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


class Format:
    """A published layout: its weight map for each axis it holds, and its configuration files."""

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]  # config.json's, by which `import` knows the format
    maps: ClassVar[Mapping[str, WeightMap]]  # axis -> map
    loose: ClassVar[frozenset[str]] = frozenset()  # keys of config.json that say nothing about the weights
    marks: ClassVar[tuple[str, ...]] = ()  # tensors by which `import` knows the format where no config.json says it
    # How names of parameters begin ("connector.fuser."), in the order of files, the longest last; () for the model's
    order: ClassVar[tuple[str, ...]] = ()
    written: ClassVar[bool] = True  # whether `export` writes it too

    def reading(self, names: Collection[str]) -> Format:
        """This format as it reads tensors of these published names, where those are written in several ways."""
        return self

    def of(self, model: ModelConfig) -> Format:
        """This format with the names that it has for `model`, which it fits."""
        return self

    def covers(self, axis: str, name: str) -> bool:
        """Whether a parameter of one of its axes is one that this format holds: of a mixture, perhaps one expert's."""
        return True

    def spec(self, model: ModelConfig, axis: str) -> Any:
        """The Config that its transforms are given."""
        return getattr(model, axis)

    def constants(self, model: ModelConfig) -> Sequence[Constant]:
        """What an export has beside the model's parameters."""
        return ()

    def notes(self, files: Sequence[str]) -> list[str]:
        """What whoever loads an export of these weight files has to know."""
        return []

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


def for_export(spec: StageData, fmt: Format, with_objectives: bool) -> StageData:
    """The stage, without what only training needs where a format has room for that and nobody asked for it.

    Raises ConfigError where it was asked for and there is no room.
    """
    has_room = "objectives" in fmt.maps
    if with_objectives and not has_room:
        what = f"format {fmt.name} has no room for what only training needs"
        raise ConfigError(what, where="--with-objectives", fix="leave it out, or choose the format of the whole model")
    if with_objectives or not has_room:
        return spec
    return replace(spec, model=spec.model.changed({"objectives": ["next_token"]}, where="model.objectives"))


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


def format_of(published: Published, name: str | None = None) -> Format:
    """The format that was asked for, the one of config.json's architecture, or the one that has such tensors.

    Raises ConfigError or InputError.
    """
    if name is not None:
        asked: Format = FORMATS.load(name)()
        return asked.reading(published.tensors)
    every: list[Format] = [FORMATS.load(each)() for each in FORMATS]
    named = (fmt for fmt in every if set(fmt.architectures) & set(published.architectures))
    marked = (fmt for fmt in every if set(fmt.marks) & published.tensors.keys())
    found = next(named, None) or next(marked, None)
    if found is not None:
        return found.reading(published.tensors)
    said = f"says {', '.join(published.architectures)}" if published.architectures else "is not there, or says nothing"
    raise InputError(
        f"config.json {said}: no format has that architecture",
        where=str(published.path),
        fix=f"give --format, one of {', '.join(FORMATS)}",
    )
