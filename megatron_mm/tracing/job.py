"""Every different rank of a job, walked through one after the other on this machine."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from megavlm.platform.config import Recipe

from ..data.build import StageData
from ..planning.load import load_of
from .blame import explained
from .contracts import RankTrace
from .distinct import distinct_ranks, pipeline_stage
from .rank import trace_rank

if TYPE_CHECKING:
    from ..planning.contracts import Load

GPUS = "CUDA_VISIBLE_DEVICES"


def trace_stages(recipe: Recipe, stages: Iterable[str], world: int) -> dict[str, tuple[RankTrace, ...]]:
    """The traces of a recipe's stages that train, by name, each with the load that is known or assumed of it."""
    specs = {name: StageData.of(recipe, name) for name in stages}
    return {name: trace_job(spec, world, load_of(spec)) for name, spec in specs.items()}


def trace_job(spec: StageData, world: int, load: Load) -> tuple[RankTrace, ...]:
    """A trace for every different rank of a stage on `world` processes, by rank.

    Raises ConfigError for whatever fails on one, naming rank, pipeline stage, module and sizes.
    """
    with _quietly():
        return tuple(_walk(spec, rank, world, load) for rank in distinct_ranks(spec, world))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without GPUs, which a trace must not touch, and without what torch and megatron-core warn of at every rank."""
    seen = os.environ.get(GPUS)
    os.environ[GPUS] = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.pop(GPUS) if seen is None else os.environ.__setitem__(GPUS, seen)


def _walk(spec: StageData, rank: int, world: int, load: Load) -> RankTrace:
    try:
        return trace_rank(spec, rank, world, load)
    except Exception as error:  # whatever a real rank would have died of
        of = f"rank {rank} of {world}, pipeline stage {pipeline_stage(spec, world, rank)}"
        raise explained(error, of, spec.name) from error
