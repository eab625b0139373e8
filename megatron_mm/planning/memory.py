"""Bytes on the ranks of a job, by kind, at the fullest moment of a step. Loads no torch.

Always there: weights, float32 gradients of what is trained, and a rank's shard of the optimizer's state. Beside them,
whichever is more: the tower looking at the tiles, the pipeline at the end of a forward pass and in the first backward
pass after it, or the tower learning. What the allocator, CUDA and NCCL take is not here (hardware.py).
"""

from __future__ import annotations

import dataclasses
from itertools import chain
from typing import TYPE_CHECKING

from ..costs import Cost, Setting
from .contracts import Job, Memory, Pieces
from .pieces import learns, pieces_of
from .pipeline import held_layers, in_flight
from .tower_memory import GRADIENTS, Moment, Tower, tower_of_job

if TYPE_CHECKING:
    from ..config import ModelConfig, Parallel

FLOAT32 = 4
MOMENTS = 2 * FLOAT32  # Adam's, of each number
GATHERED = 2  # layers whose weights are whole at once, where they are sharded: the one at work and the next


def ranks(
    job: Job, model: ModelConfig, composed_norms: bool = False, heavy: Pieces | None = None
) -> tuple[Memory, ...]:
    """The first tensor-parallel rank of each pipeline stage, with packs as heavy as the load's heaviest.

    composed_norms: as on a CPU, and so in a trace (costs.Setting). heavy: `heavy_pieces`, where they are at hand.
    """
    pieces = heavy or heavy_pieces(job, model, composed_norms)
    return tuple(rank(job, pieces, tower_of_job(job, model, pieces, stage), stage) for stage in range(job.parallel.pp))


def heavy_pieces(job: Job, model: ModelConfig, composed_norms: bool = False) -> Pieces:
    """Of the load's heaviest pack."""
    load = dataclasses.replace(job.load, of=job.load.most)
    return pieces_of(model, load, setting_of(job.parallel, job.precision, composed_norms), job.recompute)


def setting_of(of: Parallel, precision: str, composed_norms: bool = False) -> Setting:
    """How a stage runs, as far as costs depend on it."""
    return Setting(of.tp, of.cp, of.sequence_parallel, FLOAT32 if precision == "fp32" else 2, composed_norms)


def rank(job: Job, pieces: Pieces, tower: Tower, stage: int) -> Memory:
    """A pipeline stage's, at its fullest moment."""
    stood = _standing(job, pieces, stage)
    running = Stage(job, pieces, stage)
    moments = (
        tower.looking(),
        running.fullest() + tower.kept(),
        running.ending() + tower.kept(GRADIENTS),
        tower.learning(),
    )
    worst = max(moments, key=lambda moment: moment.total)
    return Memory(stage, *stood, worst.activations, worst.spare, worst.buffers + _gathered(job, pieces))


def _standing(job: Job, pieces: Pieces, stage: int) -> tuple[float, float, float]:
    """(weights, gradients, optimizer). Megatron's distributed optimizer shards its own over dp x cp; FSDP all three,
    and has no other copy of the weights in float32."""
    held = list(_held(job, pieces, stage))
    every, trained = (sum(n for n, is_trained in held if is_trained or not only) for only in (False, True))
    short = job.precision != "fp32"
    if job.fsdp > 1:
        return FLOAT32 * every / job.fsdp, FLOAT32 * trained / job.fsdp, MOMENTS * trained / job.fsdp
    state = MOMENTS + FLOAT32 * short
    copies = 2 if job.precision.startswith("fp8") else 0  # our guess: an FP8 copy, and its transpose as Hopper wants it
    weights = (2 if short else FLOAT32) * every + copies * sum(n for n, _ in held)
    return weights, FLOAT32 * trained, state * trained / (job.dp * job.parallel.cp)


def _held(job: Job, pieces: Pieces, stage: int) -> list[tuple[int, bool]]:
    """Parameters of each part on a rank of the stage, and whether they are trained."""
    numbers = [number for chunk in held_layers(job.parallel, len(pieces.layers))[stage] for number in chunk]
    decoder, injection = learns("decoder", job.train), learns("injection", job.train)
    last = stage == job.parallel.pp - 1
    added = sum(pieces.added[number].weights for number in numbers) if pieces.added else 0
    own = sum(pieces.layers[number].weights for number in numbers) - added
    tables = (stage == 0) * pieces.embedding.weights + last * pieces.head.weights
    return [
        *((cost.weights, learns(cost.part, job.train)) for cost in pieces.tower),
        *((cost.weights, False) for cost in pieces.teacher),
        (own + tables, decoder),
        (added, injection),
        (last * pieces.objectives.weights, learns("objectives", job.train)),
    ]


def _gathered(job: Job, pieces: Pieces) -> float:
    """Of sharded weights those of two layers whole, and their gradients, two bytes each; the gathered sequence that
    sequence parallelism keeps a place for."""
    layer = max(cost.weights for cost in pieces.layers)
    whole = 2 * GATHERED * 2 * layer if job.fsdp > 1 else 0.0
    return whole + (pieces.hidden * job.parallel.tp if job.parallel.sequence_parallel else 0.0)


class Stage:
    """What a pipeline stage keeps of its micro-batches, and needs beside that."""

    def __init__(self, job: Job, pieces: Pieces, stage: int) -> None:
        self.job, self.pieces, self.stage = job, pieces, stage
        self.chunks = held_layers(job.parallel, len(pieces.layers))[stage]
        self.counts = in_flight(job.parallel, job.micro_batches, stage)
        self.is_last = stage == job.parallel.pp - 1
        self.decoder, self.injection = learns("decoder", job.train), learns("injection", job.train)
        self.first = self._first()

    def fullest(self) -> Moment:
        """At the end of the forward pass with which most is kept, or as the backward pass through its layers begins."""
        return Moment(self._all(), max(self.is_last * self.pieces.head.spare, self._again() - self._head()))

    def ending(self) -> Moment:
        """As that backward pass has come to the embedding."""
        done = sum(map(self._kept, self.chunks[0])) + (self._head() if self.job.parallel.vp == 1 else 0.0)
        return Moment(self._all() - done)

    def _all(self) -> float:
        """Of all micro-batches that are kept at once."""
        layers = zip(self.counts, self.chunks, strict=True)
        kept = sum(count * sum(map(self._kept, chunk)) for count, chunk in layers)
        return kept + self._sent() + self.counts[-1] * self._head()

    def _kept(self, number: int) -> float:
        """Of one micro-batch in a layer."""
        if number < self.first:
            return 0.0
        layer = self.pieces.layers[number]
        return layer.entrance if self.job.recompute == "full" else self._whole(number)

    def _whole(self, number: int) -> float:
        """What a layer keeps that is not computed again."""
        layer, added = self.pieces.layers[number], self._added(number)
        own = layer.kept - added.kept if self.decoder else layer.passing - added.passing
        return own + (added.kept if self.injection else added.passing)

    def _added(self, number: int) -> Cost:
        return self.pieces.added[number] if self.pieces.added else Cost()

    def _first(self) -> int:
        """The first layer that gradients come back to: a part before it learns, or its own rows are visual."""
        before = self.decoder or self.stage > 0
        if before or any(learns(cost.part, self.job.train) for cost in self.pieces.tower):
            return 0
        adding = (number for number, cost in enumerate(self.pieces.added) if cost.weights)
        return next(adding, len(self.pieces.layers))

    def _again(self) -> float:
        """The last layer on its way back, computed again first where nothing else of it was kept."""
        number = max(chain.from_iterable(self.chunks))
        layer = self.pieces.layers[number]
        whole = self._whole(number) + self.pieces.hidden if self.job.recompute == "full" else 0.0
        return whole + layer.spare

    def _head(self) -> float:
        """Of one micro-batch, on the last stage."""
        head = self.pieces.head.kept if self.decoder else self.pieces.head.passing
        return self.is_last * (head + self.pieces.objectives.kept)

    def _sent(self) -> float:
        """What came from the stage before and what went to the next, as the schedule holds them."""
        places = [count for count in self.counts for _ in range(2)]
        own = sum(places) - (self.stage == 0) * self.counts[0] - self.is_last * self.counts[-1]
        return own * self.pieces.hidden if self.job.parallel.pp > 1 else 0.0
