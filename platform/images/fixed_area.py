"""The whole image in one tile of a fixed area, its shape kept: as EVEv2 is trained (published code)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import PositiveInt

from .one_tile import OneTile


class FixedArea(OneTile):
    """Both sides scaled alike until there are tile x tile pixels, smaller images growing, then rounded up to steps.

    EVEv2: 800 and 1600 with steps of 32. A long thin image costs the tokens of its length: 1:1000 is 791 steps by one.
    """

    name: Literal["fixed_area"] = "fixed_area"
    tile: PositiveInt = 800  # side of the square of that area
    side_step: PositiveInt = 32

    def steps(self, width: int, height: int) -> tuple[int, int]:
        """As OneTile's. In floats on purpose, as published: exact arithmetic would send some sizes to another grid."""
        scale = math.sqrt(width * height) / self.tile
        columns, rows = (max(math.ceil(side / scale / self.side_step), 1) for side in (width, height))
        return columns, rows
