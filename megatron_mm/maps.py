"""What an encoder gives of each tile, in shapes: what connectors are counted and built from. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from megavlm.platform.errors import ConfigError


class MapShape(NamedTuple):
    """One feature map of one tile: `rows` x `columns` cells of `channels`, by which expert and from which layer."""

    expert: str
    layer: int
    rows: int
    columns: int
    channels: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns


def the_only(maps: Sequence[MapShape], connector: str) -> MapShape:
    """The map, where a connector takes one; raises ConfigError when there are several."""
    if len(maps) != 1:
        names = ", ".join(f"{each.expert} layer {each.layer}" for each in maps)
        raise ConfigError(
            f"{connector} takes one feature map, and the encoder gives {len(maps)}: {names}",
            where="model.connector.name",
            fix="choose a connector of several maps: channel_concat, sequence_append, mmfuser",
        )
    return maps[0]
