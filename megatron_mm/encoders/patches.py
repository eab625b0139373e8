"""Encoders that are a patch embedding alone, of tiles of any size. Loads no torch."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import PositiveInt, PrivateAttr, model_validator

from megavlm.platform.errors import ConfigError

from ..maps import MapShape
from ..tower_blocks import normalised
from ..tower_costs import Forward, Values
from .expert import CLIP_MEAN, CLIP_STD, Expert


class PatchEmbedding(Expert):
    """pool x pool patches become a cell of the one feature map; no cell knows its position.

    A subclass says `costs` and `build`.
    """

    any_size: ClassVar[bool] = True

    patch_size: PositiveInt
    pool: PositiveInt = 2  # patches along each side of a cell
    channels: PositiveInt
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    _size: tuple[int, int] | None = PrivateAttr(default=None)  # height and width, where `at` said so

    @model_validator(mode="after")
    def _whole_cells(self) -> Self:
        if self.image_size % self.cell:
            raise ConfigError(
                f"encoder.image_size {self.image_size} does not divide by {self.cell}, the side of a cell of "
                f"{self.pool} x {self.pool} patches",
                where="encoder.image_size",
                fix=f"set it to {-(-self.image_size // self.cell) * self.cell}, and model.tiling.tile with it",
            )
        return self

    @property
    def cell(self) -> int:
        """Pixels along each side of a cell."""
        return self.patch_size * self.pool

    def at(self, height: int, width: int) -> Self:
        """As Encoder's; raises ConfigError for sides that are not made of whole cells."""
        self.grid_of(height, width)
        copy = self.model_copy()
        copy._size = (height, width)
        return copy

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of cells in a tile of so many pixels; raises as `at` does."""
        if height % self.cell or width % self.cell:
            raise ConfigError(
                f"a tile of {height} x {width} pixels is not made of whole cells of {self.cell} x {self.cell}",
                where="model.tiling",
                fix=f"choose longer_side or fixed_area, with model.tiling.side_step a multiple of {self.cell}",
            )
        return height // self.cell, width // self.cell

    @property
    def cells(self) -> int:
        """Of one tile: tokens, as yet without those of the connector."""
        (shape,) = self.maps
        return shape.rows * shape.columns

    def embedded(self, f: Forward, width: int, bias: bool = True) -> Values:
        """A tile's patches, `width` channels of each: where all such encoders begin."""
        patches = self.cells * self.pool**2
        return f.product(normalised(f, patches * self.patch_size**2, patches), width, bias)

    @property
    def maps(self) -> tuple[MapShape, ...]:
        """The one feature map of a tile."""
        grid = self.grid_of(*(self._size or (self.image_size, self.image_size)))
        return (MapShape(self.name, -1, *grid, self.channels),)
