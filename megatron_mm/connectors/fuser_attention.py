"""How queries on one grid read from maps on the same or other grids: shapes and arithmetic. Loads no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..flops import Flops

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

    def flops(self) -> Flops:
        """Forward FLOPs of one tile."""
        return Flops(weights=2.0 * self.weighted, mixing=2.0 * self.mixed)

    @property
    @abstractmethod
    def weighted(self) -> int:
        """Multiply-adds with weights."""

    @property
    @abstractmethod
    def mixed(self) -> int:
        """Multiply-adds of activations with each other."""

    @abstractmethod
    def parameters(self) -> int:
        """Its parameters, biases included."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The module: forward(queries [n, queries, channels], values [n, cells, channels]) -> as the queries."""


class Deformable(FuserAttention):
    """Deformable DETR's (arXiv 2010.04159): each head reads `points` points of each level around its own place."""

    @property
    def places(self) -> int:
        """Points that a query reads, of all heads and levels."""
        return self.heads * len(self.levels) * self.points

    @property
    def weighted(self) -> int:
        """What comes out, and of each point two coordinates and a weight; the values."""
        return self.channels * (self.queries * (self.channels + 3 * self.places) + self.cells * self.channels)

    @property
    def mixed(self) -> int:
        """A point is a sum of four cells, each over one head's channels."""
        return 4 * self.queries * self.places * self.channels // self.heads

    def parameters(self) -> int:
        """Values, what comes out, and of each point two coordinates and a weight."""
        return (self.channels + 1) * (2 * self.channels + 3 * self.places)

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

    @property
    def weighted(self) -> int:
        """Queries and what comes out; keys and values."""
        return 2 * (self.queries + self.keys) * self.channels**2

    @property
    def mixed(self) -> int:
        """Queries with keys, and their weights with the values."""
        return 2 * self.queries * self.keys * self.channels

    def parameters(self) -> int:
        """Queries, keys, values and what comes out."""
        return 4 * (self.channels + 1) * self.channels

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

    @property
    def weighted(self) -> int:
        """One linear more, over the averages; averaging itself is not counted."""
        return super().weighted + self.keys * self.channels**2

    def parameters(self) -> int:
        """One linear and a norm more."""
        return super().parameters() + (self.channels + 1) * self.channels + 2 * self.channels

    def build(self) -> nn.Module:
        """See FuserAttention."""
        from .fuser_attention_model import LinearSRAttention

        return LinearSRAttention(self)


KINDS: dict[str, type[FuserAttention]] = {"deformable": Deformable, "global": Global, "linear_sra": LinearSRA}
