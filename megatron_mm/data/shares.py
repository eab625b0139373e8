"""Who looks at which tile: the global batch's tiles in equal shares over all processes. Arithmetic only, no torch.

A text-only pack beside one of many images, or a replica that got all the images, changes nothing: every process encodes
as many tiles as any other, to within one; where tiles differ in size its visual tokens are an equal share's to within
a tile's. All of them work it out alike, from the tiles of each pack.
"""

from __future__ import annotations

import dataclasses
import functools
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Grid:
    """The parallel sizes without tp, and a process' coordinates in them."""

    dp: int = 1
    pp: int = 1
    cp: int = 1

    @property
    def size(self) -> int:
        """How many processes share out the tiles; each stands for the tensor-parallel ranks of its place."""
        return self.dp * self.pp * self.cp

    def place(self, member: int) -> tuple[int, int, int]:
        """(dp, pp, cp) of a member, in the order in which megatron-core numbers ranks: cp fastest, pp slowest."""
        return member // self.cp % self.dp, member // (self.cp * self.dp), member % self.cp


@dataclasses.dataclass(frozen=True)
class Seat:
    """One process' place: its member among those that share out the tiles, and its rank among that one's tp."""

    grid: Grid = Grid()
    member: int = 0
    tp: int = 1
    tp_rank: int = 0

    @property
    def is_alone(self) -> bool:
        """Whether it goes through its packs with no other process: they are cut along no axis."""
        return self.tp == self.grid.pp == self.grid.cp == 1


@dataclasses.dataclass(frozen=True)
class Shares:
    """Tiles are numbered through the global batch: replica after replica, pack after pack, in the packs' order.

    `counts[d][k]`: tiles in pack k of data-parallel replica d. `wanted_by`: the pipeline stages that want the tiles of
    their replica. `work`: of each tile, how much it costs to look at, from 1; None where all cost the same.
    """

    grid: Grid
    counts: Sequence[Sequence[int]]
    wanted_by: Literal["first", "last", "all"] = "first"
    work: Sequence[int] | None = None

    @functools.cached_property
    def ends(self) -> list[int]:
        """Tiles of replicas 0..d together."""
        return list(accumulate(sum(packs) for packs in self.counts))

    @property
    def total(self) -> int:
        """Tiles of the global batch."""
        return self.ends[-1]

    def looks_at(self, member: int) -> range:
        """What a member encodes. The members of one replica are neighbours here: most tiles stay within it."""
        dp, pp, cp = self.grid.place(member)
        share = (dp * self.grid.pp + pp) * self.grid.cp + cp
        return range(self._share_starts[share], self._share_starts[share + 1])

    @functools.cached_property
    def _share_starts(self) -> list[int]:
        """The first tile of each share, and behind the last one how many tiles there are."""
        size = self.grid.size
        if self.work is None:
            return [share * self.total // size for share in range(size + 1)]
        done = list(accumulate(self.work, initial=0))  # a share ends before the tile that would take it past its end
        return [0] + [bisect_right(done, share * done[-1] // size) - 1 for share in range(1, size)] + [self.total]

    def wants(self, member: int) -> bool:
        """Whether it is a pipeline stage that wants the tiles of its replica."""
        _, pp, _ = self.grid.place(member)
        return self.wanted_by == "all" or pp == (0 if self.wanted_by == "first" else self.grid.pp - 1)

    def needs(self, member: int) -> range:
        """What a member's packs hold: those of its replica on the pipeline stages that want them, else nothing."""
        dp, _, _ = self.grid.place(member)
        end = self.ends[dp]
        return range(end - sum(self.counts[dp]), end) if self.wants(member) else range(end, end)

    def decodes(self, member: int, tp: int, tp_rank: int) -> range:
        """Of what a member looks at, what one of its tensor-parallel ranks decodes for the others."""
        share = self.looks_at(member)
        first, last = (share.start + k * len(share) // tp for k in (tp_rank, tp_rank + 1))
        return range(first, last)

    def sends(self, member: int) -> list[range]:
        """Of what a member looks at, what each member needs."""
        return [common(self.looks_at(member), self.needs(other)) for other in range(self.grid.size)]

    def receives(self, member: int) -> list[range]:
        """Of what a member needs, what each member looks at."""
        return [common(self.looks_at(other), self.needs(member)) for other in range(self.grid.size)]


def assign(costs: Sequence[float], replicas: int) -> list[list[int]]:
    """Packs to data-parallel replicas: as many to each as can be, and then as much work; each one's in their order.

    The costliest go first, each to the replica that has done least and still has room (Graham 1969).
    """
    room = [len(costs) // replicas + (replica < len(costs) % replicas) for replica in range(replicas)]
    chosen: list[list[int]] = [[] for _ in range(replicas)]
    load = [0.0] * replicas
    for pack in sorted(range(len(costs)), key=lambda k: (-costs[k], k)):
        replica = min((r for r in range(replicas) if len(chosen[r]) < room[r]), key=lambda r: (load[r], r))
        chosen[replica].append(pack)
        load[replica] += costs[pack]
    return [sorted(packs) for packs in chosen]


def common(a: range, b: range) -> range:
    """The numbers that two runs share."""
    start = max(a.start, b.start)
    return range(start, max(start, min(a.stop, b.stop)))
