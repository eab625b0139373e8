"""Bytes that encoder and connector need in a step, which runs them over a process' share of the tiles. No torch.

As training/encode.py has it: the share is looked at in passes, the visual tokens are exchanged, and stay until their
gradients went back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from ..costs import Cost
from ..parts import axis_of
from .contracts import Job, Pieces
from .pieces import learns, pixels, tile_size

if TYPE_CHECKING:
    from ..config import ModelConfig

GRADIENTS = 3  # of a process' visual tokens at the end of a pack's backward pass: sum, zeros, and both joined
PIXELS_AT_ONCE = 128 * 448**2  # training/encode.py's, which loads torch


@dataclasses.dataclass(frozen=True)
class Moment:
    """Bytes beside what always stands: kept for the backward pass, needed just now, and of exchanges and tiles."""

    activations: float = 0.0
    spare: float = 0.0
    buffers: float = 0.0

    def __add__(self, other: Moment) -> Moment:
        return Moment(self.activations + other.activations, self.spare + other.spare, self.buffers + other.buffers)

    @property
    def total(self) -> float:
        """In all."""
        return self.activations + self.spare + self.buffers


@dataclasses.dataclass(frozen=True)
class Tower:
    """A process' part. share, at_once, needed: tiles that it looks at, in one pass, and whose tokens it is given.

    tile, tokens: bytes of one. blocks: costs of one tile, and whether each learns, or gradients pass through it.
    """

    blocks: tuple[tuple[Cost, bool], ...] = ()
    teacher: tuple[Cost, ...] = ()
    recompute: bool = False
    share: float = 0
    at_once: float = 0
    needed: float = 0
    own: float = 0.0  # bytes of the tiles that it decoded itself
    tile: float = 0.0
    tokens: float = 0.0

    @property
    def trained(self) -> bool:
        """Whether anything of it is."""
        return any(is_trained for _, is_trained in self.blocks)

    def looking(self) -> Moment:
        """The last pass through what is frozen; then what learns; then the exchange.

        Of passes before it is kept what of all is kept in the end.
        """
        frozen = [cost for cost, is_trained in self.blocks if not is_trained] + list(self.teacher)
        alone = self.at_once * max((cost.alone for cost in frozen), default=0.0)
        before = self._kept() * (1 - self.at_once / self.share) if self.share else 0.0
        spare = self.at_once * max((cost.spare for cost, is_trained in self.blocks if is_trained), default=0.0)
        then = max(spare, 2 * (self.share + self.needed) * self.tokens)
        tiles = self.own + self.share * self.tile
        moments = (Moment(before, alone, tiles), Moment(self._kept(), then, tiles))
        return max(moments, key=lambda moment: moment.total)

    def kept(self, gradients: int = 1) -> Moment:
        """While the pipeline runs: what was kept, the tokens as they were made and as they were given, and gradients
        of these: their sum, and at the end of a pack's backward pass its own, filled up with zeros for all packs."""
        gradient = gradients * self.needed * self.tokens * self.trained
        given = (self.share + self.needed) * self.tokens
        return Moment(self._kept() + given, gradient, self.own)

    def learning(self) -> Moment:
        """The gradients on their way back, and one pass of the tower after the other undone, its last block first."""
        if not self.trained:
            return Moment()
        moved = 3 * (self.share + self.needed) * self.tokens
        waiting = (self.share - self.at_once) * sum(self._each())
        return Moment(waiting, self.at_once * max(self._undone()), moved + self.own)

    def _kept(self) -> float:
        return self.share * sum(self._each())

    def _each(self) -> list[float]:
        """What each block that learns keeps of a tile."""
        return [cost.entrance if self._again(cost) else cost.kept for cost, is_trained in self.blocks if is_trained]

    def _undone(self) -> Iterator[float]:
        """What is there of a tile as each of these goes back: what those before it keep, and its own, made again."""
        learning = (cost for cost, is_trained in self.blocks if is_trained)
        for cost, until in zip(learning, accumulate(self._each()), strict=True):
            yield until + cost.spare + self._again(cost) * (cost.kept - cost.entrance)

    def _again(self, cost: Cost) -> bool:
        return self.recompute and cost.entrance > 0


def tower_of_job(job: Job, model: ModelConfig, pieces: Pieces, stage: int) -> Tower:
    """A rank's of this pipeline stage: an equal share of the global batch's tiles, and its replica's heaviest packs."""
    of, size = job.parallel, tile_size(model, job.load)
    # the replica's packs are heavy as far as the pipeline holds them at once, all others average: as in a trace
    more = min(job.micro_batches, of.pp + 1) * (job.load.most.tiles - job.load.of.tiles)
    share = math.ceil((job.load.packs * job.load.of.tiles + more) / (job.dp * of.pp * of.cp))
    needed = job.micro_batches * job.load.of.tiles + more
    wants = stage == 0 or model.injection.has_context
    tile = 3.0 * pixels(size)
    element = 4 if job.precision == "fp32" else 2
    return Tower(
        blocks=_blocks(job, pieces),
        teacher=pieces.teacher,
        recompute=job.recompute == "full",
        share=share,
        at_once=min(share, max(PIXELS_AT_ONCE // pixels(size), 1)),
        needed=needed if wants else 0.0,
        own=math.ceil(share / of.tp) * tile,
        tile=tile if of.tp > 1 else 0.0,
        tokens=model.tokens_of(size) * model.width * element,
    )


def _blocks(job: Job, pieces: Pieces) -> tuple[tuple[Cost, bool], ...]:
    """A frozen connector behind an encoder that learns has gradients pass through it."""
    encoder = any(axis_of(part) == "encoder" for part in job.train)
    own = ((cost, learns(cost.part, job.train)) for cost in pieces.tower)
    return tuple((cost, is_trained or (encoder and axis_of(cost.part) == "connector")) for cost, is_trained in own)
