"""One rank of a full-size job through one training step, as it is trained, on fake tensors."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megatron.core import parallel_state
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from torch import Tensor

from .. import backend
from ..data.build import StageData
from ..model import build_model
from ..objectives.loss import Sum
from ..training.overlap import overlaps
from ..training.step import train_step
from ..training.wrapping import Wrapped, make_optimizer, wrap
from . import phases
from .batch import step_batch
from .contracts import RankTrace
from .follower import Follower
from .fused import fused
from .places import Places
from .walk import Walk, walkable
from .world import one_rank

if TYPE_CHECKING:
    from ..config import Parallel
    from ..planning.contracts import Load


def trace_rank(spec: StageData, rank: int, world: int, load: Load, as_on_gpu: bool = True) -> RankTrace:
    """What rank `rank` of `world` processes that train this stage holds, and the peak of each phase of a step.

    The step is one of many: the optimizer has its state. `as_on_gpu`: norms and the update are single kernels, as on
    GPUs (fused.py); otherwise all is as this machine's CPU does it. Raises whatever the model, megatron-core or torch
    raise of sizes.
    """
    start = time.perf_counter()
    places = Places()
    follower = Follower(places.now)
    with one_rank(rank, world, spec.stage.parallel, spec.seed), walkable(), fused(as_on_gpu), places.listening():
        with Walk(follower.see) as walk:
            wrapped, optimizer = built(spec)
            _know(follower, wrapped, optimizer)
            places.know(wrapped.model)
            stage = parallel_state.get_pipeline_model_parallel_rank()
            batch = step_batch(spec, wrapped.lookers.seat, load, walk.pixels)
            with phases.told(follower.begin, most=enough(spec.stage.parallel, stage)):
                train_step(wrapped, optimizer, batch, Sum(spec.model))
            follower.close()
            del batch
            _know(follower, wrapped, optimizer)
        parameters = sum(parameter.numel() for parameter in wrapped.model.parameters())
    return RankTrace(rank, stage, parameters, follower.kinds, follower.peaks, time.perf_counter() - start)


def enough(parallel: Parallel, stage: int) -> int:
    """Micro-batches that fill the pipeline from this stage on, and one more (interleaved it wants multiples: twice).

    From then on every forward pass follows a backward pass: those behind take the memory of those before.
    """
    return 2 * parallel.pp if parallel.vp > 1 else parallel.pp - stage + 1


def built(spec: StageData) -> tuple[Wrapped, MegatronOptimizer]:
    """Model and optimizer of this process, weights not drawn, the optimizer's state as after its first update."""
    stage = spec.stage
    model = build_model(spec.model, backend.build_context(stage.parallel, stage.precision, stage.recompute))
    model.freeze(stage.train)
    wrapped = wrap(model, stage.precision, overlaps(stage.parallel))
    optimizer = make_optimizer(wrapped, stage.optimizer, stage.precision)
    for each in _parts(optimizer):
        each.init_state_fn(each.optimizer, each.config)
    return wrapped, optimizer


def _know(follower: Follower, wrapped: Wrapped, optimizer: MegatronOptimizer) -> None:
    """Say what the storages that are alive are for. A float32 weight is its own master copy: it counts as a weight."""
    gc.collect()
    follower.name_all("buffers")
    follower.name("optimizer", _held_by(optimizer), "optimizer")
    buffers = [buffer for part in wrapped.trained for buffer in part.buffers]
    follower.name("gradients", (buffer.grad_data for buffer in buffers), "gradients")
    follower.name("weights", (buffer.param_data for buffer in buffers if buffer.param_data is not None), "weights")
    follower.name("weights", wrapped.model.parameters(), "weights")


def _held_by(optimizer: MegatronOptimizer) -> Iterator[Tensor]:
    for each in _parts(optimizer):
        yield from (parameter for group in each.param_groups for parameter in group["params"])
        for state in each.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _parts(optimizer: MegatronOptimizer) -> list[Any]:
    """megatron-core's optimizers inside one, but for those without a parameter."""
    every: list[Any] = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    return [each for each in every if not getattr(each, "is_stub_optimizer", False)]
