"""How long each part of a pipeline takes for one micro-batch, and the timeline that comes of it. Loads no torch."""

from __future__ import annotations

from typing import NamedTuple

from ..costs import Cost
from .contracts import Job
from .pipeline import held_layers
from .rates import Constants, Runner, constants
from .timeline import Event, Seconds, play

ROUNDS = 4  # of as many micro-batches as there are stages: the pipeline is full, and what follows repeats


class Both(NamedTuple):
    """Seconds of a forward and of a backward pass; what is computed again belongs to the backward pass."""

    forward: float
    backward: float


def pass_seconds(job: Job, of: Constants | None = None) -> tuple[Seconds, Seconds]:
    """Forward and backward seconds of one micro-batch, of every chunk of every pipeline stage."""
    run, pieces = Runner(job, of or constants()), job.pieces
    trained = "decoder" in job.train
    layers = [_both(run, cost, trained, True, job.recompute) for cost in pieces.layers]
    both = [[[layers[k] for k in chunk] for chunk in chunks] for chunks in held_layers(job.parallel, len(layers))]
    both[0][0].append(_both(run, pieces.embedding, trained, False, "none", "bf16"))
    both[-1][-1].append(_both(run, pieces.head, trained, True, "none", "bf16"))
    forward = [[sum(each.forward for each in chunk) for chunk in chunks] for chunks in both]
    backward = [[sum(each.backward for each in chunk) for chunk in chunks] for chunks in both]
    return forward, backward


def _both(run: Runner, cost: Cost, trained: bool, through: bool, again: str, precision: str = "") -> Both:
    forward = run.work(cost, False, False, precision=precision).total
    return Both(forward, run.work(cost, trained, through, again, precision).total - forward)


def timeline(job: Job, of: Constants | None = None) -> tuple[list[Event], int]:
    """A step's passes through the pipeline, of as many micro-batches as show how it goes on, and how many these are."""
    shown = min(job.micro_batches, ROUNDS * job.parallel.pp)
    return play(*pass_seconds(job, of), shown), shown
