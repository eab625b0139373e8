"""One point in the space of the model's axes: a recipe's section `model`. Loads no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from megavlm.platform.config import Config, merge, point, points
from megavlm.platform.errors import ConfigError, did_you_mean
from megavlm.platform.images import TILINGS, ImageTiles

from ..connectors import CONNECTORS
from ..decoders import DECODERS
from ..encoders import ENCODERS
from ..injection import INJECTIONS
from ..objectives import OBJECTIVES
from ..objectives.base import Objective
from ..parts import AXES, axis_of


class ModelConfig(Config):
    """One point in the space of the four axes, plus auxiliary objectives."""

    tiling: point(TILINGS, default="dynamic") = Field(default="dynamic")  # type: ignore[valid-type]
    encoder: point(ENCODERS)  # type: ignore[valid-type]
    connector: point(CONNECTORS)  # type: ignore[valid-type]
    injection: point(INJECTIONS)  # type: ignore[valid-type]
    decoder: point(DECODERS)  # type: ignore[valid-type]
    objectives: points(OBJECTIVES) = Field(default=["next_token"])  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.encoder.image_size != self.tiling.tile:
            raise ConfigError(
                f"encoder.image_size {self.encoder.image_size} is not the tile's side {self.tiling.tile}",
                where="model.tiling.tile",
                fix=f"set model.tiling.tile={self.encoder.image_size}",
            )
        self._takes_sizes()
        digits = len(str(self.tiling.most_tiles))
        if self.injection.tags == "1d" and digits > self.injection.tag_digits:
            raise ConfigError(
                f"up to {self.tiling.most_tiles} tiles, and tags of {self.injection.tag_digits} digit(s): those of one "
                "image would differ in length",
                where="model.injection.tag_digits",
                fix=f"set model.injection.tag_digits={digits}",
            )
        return self

    def _takes_sizes(self) -> None:
        """Raise ConfigError where tiles differ in size and the model wants them alike."""
        step = self.tiling.step
        if step is None:
            return
        what = next((axis for axis in ("encoder", "connector") if not getattr(self, axis).any_size), None)
        what = "injection" if self.injection.has_context else what
        if what is not None:
            raise ConfigError(
                f"tiling '{self.tiling.name}' makes tiles of many sizes, and {what} '{getattr(self, what).name}' wants "
                "them alike",
                where="model.tiling.name",
                fix="choose the tiling dynamic or square, or EVE's encoders and connectors",
            )
        if step % self.encoder.cell:
            raise ConfigError(
                f"tiling.side_step {step} does not divide by the encoder's cells of {self.encoder.cell} pixels",
                where="model.tiling.side_step",
                fix=f"set model.tiling.side_step={-(-step // self.encoder.cell) * self.encoder.cell}",
            )

    @field_validator("objectives")
    @classmethod
    def _each_once(cls, objectives: list[Objective]) -> list[Objective]:
        names = [each.name for each in objectives]
        if not names or len(set(names)) < len(names) or sum(each.taps_layers for each in objectives) > 1:
            raise ConfigError(
                f"objectives {names}: none, one twice, or two that tap the decoder's layers",
                where="model.objectives",
                fix=f"name each once, of {', '.join(OBJECTIVES)}",
            )
        return objectives

    @model_validator(mode="after")
    def _objectives_fit(self) -> ModelConfig:
        for objective in self.objectives:
            objective.fits(self)
        return self

    def changed(self, changes: Mapping[str, Any], where: str) -> ModelConfig:
        """This model with a stage's `changes` on top; raises ConfigError whose `where` begins with the given one."""
        return self if not changes else ModelConfig.parse(merge(self.model_dump(mode="json"), changes), where=where)

    def answering(self) -> ModelConfig:
        """The same model without what only training needs: the objectives' weights, and a teacher."""
        return self.changed({"objectives": ["next_token"]}, "model")

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens that one tile of the encoder's own size costs in the decoder, tags not counted."""
        return self.connector.tokens_per_tile(self.encoder.maps)

    def tile_tokens(self, image: ImageTiles) -> int:
        """Visual tokens of each tile of an image that is cut like this."""
        return self.tokens_of(self.tiling.size(image))

    def tokens_of(self, size: tuple[int, int]) -> int:
        """Visual tokens of a tile of this height and width in pixels."""
        if self.tiling.step is None:
            return self.tokens_per_tile
        return self.connector.tokens_per_tile(self.encoder.at(*size).maps)

    @property
    def parts(self) -> dict[str, int]:
        """Every part that a stage can name, with its parameters: the axes, and what their specs say of their own."""
        counts = self.parameter_counts()
        inside = {"encoder": self.encoder.parts, "connector": self.connector.parts(self.encoder.maps, self.width)}
        named = {f"{axis}.{part}": count for axis, parts in inside.items() for part, count in parts.items()}
        return {axis: counts[axis] for axis in AXES} | {"objectives": counts["auxiliary"]} | named

    def require_parts(self, names: Collection[str], where: str) -> None:
        """Raise ConfigError for a name that is no part of this model."""
        known = self.parts
        for name in names:
            if name not in known:
                raise ConfigError(f"the model has no part '{name}'", where=where, fix=did_you_mean(name, known))

    def trained_parameters(self, train: Collection[str]) -> int:
        """Parameters of the parts `train`, of which none is inside another."""
        known = self.parts
        return sum(known[part] for part in train)

    def trained_share(self, axis: str, train: Collection[str]) -> float:
        """Which share of an axis' parameters the parts `train` are, from 0 to 1."""
        known = self.parts
        trained = sum(known[part] for part in train if axis_of(part) == axis)
        return trained / known[axis] if known[axis] else 0.0

    @property
    def width(self) -> int:
        """Width of the decoder, which visual tokens have too."""
        return self.decoder.hidden

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by arithmetic: each axis, `auxiliary` (the objectives' own), their `teacher`, `total`, `exported`.

        Counted is what is built: an encoder's dummy heads are, a vocabulary's padding is not. An export holds the axes
        and not the objectives.
        """
        axes = {
            "encoder": self.encoder.parameters(),
            "connector": self.connector.parameters(self.encoder.maps, self.width),
            "injection": self.injection.parameters(self.decoder),
            "decoder": self.decoder.parameters(),
        }
        exported, auxiliary = sum(axes.values()), sum(each.parameters(self.decoder) for each in self.objectives)
        teacher = sum(each.teacher_parameters() for each in self.objectives)
        total = {"total": exported + auxiliary + teacher, "exported": exported}
        return axes | {"auxiliary": auxiliary} | ({"teacher": teacher} if teacher else {}) | total
