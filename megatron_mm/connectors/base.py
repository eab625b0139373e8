"""What every connector says of the feature maps that it takes. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from megavlm.platform.config import Config

if TYPE_CHECKING:
    import numpy as np


class Connector(Config):
    """Base of the connectors, which take the maps of tiles of one size unless they say otherwise."""

    any_size: ClassVar[bool] = False  # tiles may differ in size and in shape

    name: str

    def cell_places(self, rows: int, columns: int) -> np.ndarray | None:
        """int64 [rows, columns]: where each cell of a tile's map stands among the tile's tokens; None where they are
        no longer apart."""
        return None
