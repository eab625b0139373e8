"""How queries on one grid read from maps on the same or other grids: shapes and arithmetic. Loads no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..tower_costs import Forward, Values

if TYPE_CHECKING:
    from torch import nn

Grid = tuple[int, int]  # rows, columns
POOLED = 7  # PVTv2: a map is averaged to 7 x 7 cells, whatever its size


@dataclass(frozen=True)
class FuserAttention(ABC):
    """Attention of `channels` from the cells of `grid` to those of all `levels`; every map has `channels`."""

    channels: int
    heads: int
    points: int  # that a head of a query reads of each level, where the attention is deformable
    grid: Grid
    levels: tuple[Grid, ...]

    @property
    def queries(self) -> int:
        """Cells that ask."""
        return self.grid[0] * self.grid[1]

    @property
    def cells(self) -> int:
        """Cells that are read, of all levels."""
        return sum(rows * columns for rows, columns in self.levels)

    @abstractmethod
    def passed(self, f: Forward, queries: Values, cells: Values) -> Values:
        """What it does with one tile: as the module's forward."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The module: forward(queries [n, queries, channels], values [n, cells, channels]) -> as the queries."""


class Deformable(FuserAttention):
    """Deformable DETR's (arXiv 2010.04159): each head reads `points` points of each level around its own place."""

    @property
    def places(self) -> int:
        """Points that a query reads, of all heads and levels."""
        return self.heads * len(self.levels) * self.points

    def passed(self, f: Forward, queries: Values, cells: Values) -> Values:
        """Of each point two coordinates and a weight; a point is a sum of four cells, over one head's channels.

        As the kernel's plain twin does it, all sampled points in memory at once, in float32.
        """
        offsets = f.copy(f.copy(f.product(queries, 2 * self.places), size=4), size=4)
        shares = f.copy(f.product(queries, self.places), size=4)
        shares = f.make(shares.rows, shares.width, shares, size=4, itself=True)
        values = f.product(cells, self.channels)
        wide = f.copy(values, size=4)
        maps = f.copy(wide, size=4)
        locations = f.copy(offsets, size=4)
        points = self.places // self.heads
        sampled = f.make(points * self.queries, self.channels, maps, locations, keeps=(maps, locations), size=4)
        joined, ordered = f.copy(sampled, size=4), f.copy(shares, size=4)
        f.mixes(8 * self.queries * self.places * self.channels // self.heads)
        weighted = f.make(joined.rows, joined.width, joined, ordered, keeps=(joined, ordered), size=4)
        f.until_here(sampled, wide, values)
        return f.product(f.copy(f.make(self.queries, self.channels, weighted)), self.channels)

    def build(self) -> nn.Module:
        """See FuserAttention."""
        from .fuser_attention_model import DeformableAttention

        return DeformableAttention(self)


class Global(FuserAttention):
    """Ordinary multi-head attention to every cell of every level."""

    @property
    def keys(self) -> int:
        """Keys that every query sees."""
        return self.cells

    def read(self, f: Forward, cells: Values) -> Values:
        """What keys and values are made of."""
        return cells

    def passed(self, f: Forward, queries: Values, cells: Values) -> Values:
        """Queries, keys, values and what comes out."""
        pairs = f.product(self.read(f, cells), 2 * self.channels)
        asks = f.product(queries, self.channels)
        return f.product(f.attention(asks, pairs, pairs, self.heads, self.keys, self.channels), self.channels)

    def build(self) -> nn.Module:
        """See FuserAttention."""
        from .fuser_attention_model import GlobalAttention

        return GlobalAttention(self)


class LinearSRA(Global):
    """PVTv2's linear spatial reduction (arXiv 2106.13797, section 3.1): keys are 7 x 7 averages, of each level."""

    @property
    def keys(self) -> int:
        """Keys that every query sees."""
        return POOLED**2 * len(self.levels)

    def read(self, f: Forward, cells: Values) -> Values:
        """A linear and a norm more, over the averages; averaging itself is not counted."""
        averages = f.make(self.keys, self.channels, cells)
        return f.activation(f.norm(f.product(averages, self.channels)))

    def build(self) -> nn.Module:
        """See FuserAttention."""
        from .fuser_attention_model import LinearSRAttention

        return LinearSRAttention(self)


KINDS: dict[str, type[FuserAttention]] = {"deformable": Deformable, "global": Global, "linear_sra": LinearSRA}
