"""Formats of one encoder's published weights: for a model that has it, alone or as an expert of its mixture."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from megavlm.platform.errors import ConfigError

from .formats import Format, require_point

if TYPE_CHECKING:
    from ..config import ModelConfig

MIXTURE = "mixture"


class OneEncoder(Format):
    """A subclass' `maps` are for parameters by the names that they have in the encoder itself."""

    prefix = ""  # of the parameters that it makes

    def expert(self, model: ModelConfig) -> Any:
        """The Config of the model's encoder, or of the one expert that is of this format.

        Raises ConfigError where there is none, or where there are several.
        """
        if model.encoder.name != MIXTURE:
            require_point("encoder", model, (self.name,), self.name)
            return model.encoder
        return model.encoder.used[self._key(model)]

    def _key(self, model: ModelConfig) -> str:
        found = [key for key, expert in model.encoder.used.items() if expert.name == self.name]
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
        """With the expert's place in a mixture before its names."""
        if model.encoder.name != MIXTURE:
            return self
        own = copy(self)
        own.prefix = f"experts.{self._key(model)}."
        own.maps = {"encoder": self.maps["encoder"].inside(own.prefix)}  # type: ignore[misc]
        return own

    def covers(self, axis: str, name: str) -> bool:
        """The encoder's, or the expert's."""
        return name.startswith(self.prefix)

    def spec(self, model: ModelConfig, axis: str) -> Any:
        """The encoder's Config, or the expert's."""
        return self.expert(model)


class ReadOnly(OneEncoder):
    """Weights that a training starts from, and that are not written: a model's export holds them."""

    written = False

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """Nothing to compare: names and shapes tell these encoders apart."""
        return {}
