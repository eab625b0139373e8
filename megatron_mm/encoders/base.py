"""What every encoder says of the tiles that it looks at. Loads no torch."""

from __future__ import annotations

from typing import ClassVar, Self

from megavlm.platform.config import Config

from ..costs import Cost, Setting
from ..flops import Flops
from ..tower_costs import total


class Encoder(Config):
    """Base of the encoders, which look at square tiles of one size unless they say otherwise."""

    any_size: ClassVar[bool] = False  # tiles may differ in size and in shape

    name: str

    @property
    def cell(self) -> int:
        """Where tiles may differ: both sides of each have to be multiples of so many pixels."""
        raise NotImplementedError

    def at(self, height: int, width: int) -> Self:
        """The same encoder, whose `maps`, `costs` and `flops` are those of a tile of height x width pixels."""
        return self

    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """Of one tile, block by block. The first one's input is the pixels, which want no gradient."""
        raise NotImplementedError

    def parameters(self) -> int:
        """Parameters of what is built."""
        return total(self.costs(Setting())).weights

    def flops(self) -> Flops:
        """Forward FLOPs of one tile."""
        whole = total(self.costs(Setting()))
        return Flops(weights=whole.products - whole.entering, mixing=whole.mixing, entrance=whole.entering)
