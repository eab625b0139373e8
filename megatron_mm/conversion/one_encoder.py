"""Formats of one encoder's published weights: for a model that has it, alone, in its mixture, or as a teacher."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from megavlm.platform.errors import ConfigError

from .formats import Format, require_point

if TYPE_CHECKING:
    from ..config import ModelConfig

MIXTURE = "mixture"
TEACHER = "teacher."  # before its parameters' names


class Place(NamedTuple):
    """Where a model has an encoder: the axis, how its parameters' names begin there, and its Config."""

    axis: str
    prefix: str
    spec: Any


class OneEncoder(Format):
    """A subclass' `maps` are for parameters by the names that they have in the encoder itself."""

    place = Place("encoder", "", None)  # of the parameters that it makes

    def expert(self, model: ModelConfig) -> Any:
        """The Config of the model's encoder, of the one expert that is of this format, or of the teacher that is.

        Raises ConfigError where there is none, or where there are several.
        """
        return self._place(model).spec

    def _place(self, model: ModelConfig) -> Place:
        mixed = model.encoder.name == MIXTURE
        there = {f"experts.{key}.": each for key, each in model.encoder.used.items()} if mixed else {"": model.encoder}
        found = [Place("encoder", prefix, each) for prefix, each in there.items() if each.name == self.name]
        found = found or [Place("objectives", TEACHER, each) for each in teachers(model) if each.name == self.name]
        if not found and not mixed:
            require_point("encoder", model, (self.name,), self.name)
        if len(found) != 1:
            used = ", ".join(f"{key} ({expert.name})" for key, expert in model.encoder.used.items())
            raise ConfigError(
                f"format {self.name} holds one {self.name}, and {len(found)} of the mixture's experts are: {used}",
                where="model.encoder.use",
                fix=f"use one expert of name {self.name}, or leave these weights out",
            )
        return found[0]

    def fits(self, model: ModelConfig) -> None:
        """Raise ConfigError for another encoder."""
        self.expert(model)

    def of(self, model: ModelConfig) -> Format:
        """With the place in a mixture, or in the objectives, before its names."""
        own = copy(self)
        own.place = self._place(model)
        own.maps = {own.place.axis: self.maps["encoder"].inside(own.place.prefix)}  # type: ignore[misc]
        return own

    def covers(self, axis: str, name: str) -> bool:
        """The encoder's, the expert's, or the teacher's."""
        return axis == self.place.axis and name.startswith(self.place.prefix)

    def spec(self, model: ModelConfig, axis: str) -> Any:
        """The Config of what it makes."""
        return self.expert(model)


def teachers(model: ModelConfig) -> list[Any]:
    """The Configs of the encoders that objectives learn from."""
    return [teacher for each in model.objectives if (teacher := getattr(each, "teacher", None)) is not None]


class ReadOnly(OneEncoder):
    """Weights that a training starts from, and that are not written: a model's export holds them."""

    written = False

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """Nothing to compare: names and shapes tell these encoders apart."""
        return {}
