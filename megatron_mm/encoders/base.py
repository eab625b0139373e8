"""What every encoder says of the tiles that it looks at. Loads no torch."""

from __future__ import annotations

from typing import ClassVar, Self

from megavlm.platform.config import Config


class Encoder(Config):
    """Base of the encoders, which look at square tiles of one size unless they say otherwise."""

    any_size: ClassVar[bool] = False  # tiles may differ in size and in shape

    name: str

    @property
    def cell(self) -> int:
        """Where tiles may differ: both sides of each have to be multiples of so many pixels."""
        raise NotImplementedError

    def at(self, height: int, width: int) -> Self:
        """The same encoder, whose `maps` and `flops` are those of a tile of height x width pixels."""
        return self
