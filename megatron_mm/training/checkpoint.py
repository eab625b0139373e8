"""A training's checkpoints: model, optimizer, random streams and step, through megatron-core's dist_checkpointing.

A checkpoint is the folder checkpoints/STAGE/step-000050 and counts only with its marker COMPLETE, renamed into it last:
a save that was killed leaves the ones before it usable. Tensors are stored by their global shape, so another layout can
load them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from megavlm.platform.errors import MegaVLMError
from megavlm.platform.runs import RunFolder
from megavlm.platform.storage import write_atomic

from ..checkpoints.durable import flush, refusal
from ..checkpoints.forked import as_result, minded
from ..checkpoints.listing import COMPLETE, checkpoint_path, prune
from ..checkpoints.safe_load import INDEX, load_state
from ..config import Checkpoint
from ..model import VisionLanguageModel
from .streams import restore_streams, save_streams, streams_path

# The default, "fully_sharded_model_space", fails on load; this one also lets tp and pp change.
SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}


class Saved(NamedTuple):
    """A checkpoint that is on disk: its step and folder, and seconds from its start, and that training stood for it."""

    step: int
    folder: Path
    seconds: float
    stood: float


class Saver:
    """Writes a stage's checkpoints, one at a time, while training goes on. Every rank makes every call.

    A save is: copy and plan (`start`), write in a forked process, and then, when all ranks have everything on disk, the
    marker, and the prune of older ones (`finish`). Both raise MegaVLMError with the file system's own words when that
    takes no more; what was written is taken away then, and the older ones stay.
    """

    def __init__(self, run: RunFolder, stage: str, options: Checkpoint) -> None:
        as_result()
        self.run, self.stage, self.options = run, stage, options
        self._calls = AsyncCallsQueue()
        each = TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=1)
        replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
        self._strategy = FullyParallelSaveStrategyWrapper(each, replicas, do_cache_distribution=True)
        self._step: int | None = None  # of the save that is under way
        self._started = self._stood = 0.0

    def save(self, step: int, model: VisionLanguageModel, optimizer: MegatronOptimizer) -> Saved:
        """Write a checkpoint, and wait until it is on disk."""
        self.start(step, model, optimizer)
        saved = self.finish(wait=True)
        assert saved is not None
        return saved

    def start(self, step: int, model: VisionLanguageModel, optimizer: MegatronOptimizer) -> Saved | None:
        """Begin a checkpoint of what is there now, after waiting for the one under way, which is returned."""
        before = self.finish(wait=True)
        self._started = time.perf_counter()
        folder = checkpoint_path(self.run, self.stage, step)
        with self._told(step, folder):
            if dist.get_rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)  # what a killed save left
                folder.mkdir(parents=True)
            dist.barrier()
            with _nothing_to_collect():
                state = _state(model, optimizer, is_loading=False)
            request = dist_checkpointing.save(state, str(folder), self._strategy, async_sharded_save=True)
            save_streams(folder)
            request.add_finalize_fn(partial(self._complete, folder, step, layout()))
            self._calls.schedule_async_request(minded(request))
        self._step, self._stood = step, time.perf_counter() - self._started
        return before

    def finish(self, wait: bool) -> Saved | None:
        """Complete the save under way and return it, when it is on disk; None when it is not, or when there is none."""
        if self._step is None:
            return None
        start, step, folder = time.perf_counter(), self._step, checkpoint_path(self.run, self.stage, self._step)
        with self._told(step, folder):
            done = self._calls.maybe_finalize_async_calls(blocking=wait)
        now = time.perf_counter()
        self._stood += now - start
        if not done:
            return None
        self._step = None
        return Saved(step, folder, now - self._started, self._stood)

    def _complete(self, folder: Path, step: int, saved_by: dict[str, int]) -> None:
        """The marker, when all else is on disk: megatron-core flushes the tensors, and little else. Then the prune."""
        flush([streams_path(folder)])
        dist.barrier()
        if dist.get_rank() == 0:
            names = [streams_path(folder).parent, folder, *folder.parents[:2]]  # up to checkpoints/
            small = [folder / name for name in ("common.pt", "metadata.json", INDEX)]
            flush([*small, *names, self.run.path("metrics.jsonl")])
            marker = {"stage": self.stage, "step": step, "layout": saved_by}
            write_atomic(folder / COMPLETE, json.dumps(marker).encode())
            flush([folder])
            prune(self.run, self.stage, self.options, newest=folder)
        dist.barrier()

    @contextlib.contextmanager
    def _told(self, step: int, folder: Path) -> Iterator[None]:
        """Say why a save failed, and take away what there is of it."""
        try:
            yield
        except (Exception, CheckpointException) as error:  # torch's is no Exception, and would pass by all who report
            self._step = None
            said = error if isinstance(error, OSError) else refusal(folder.parent)
            if isinstance(error, CheckpointException):
                dist.barrier()  # raised on every rank: each asks before the space is free again
            if dist.get_rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
            why = said.strerror if said else str(error).strip().rpartition("\n")[2]
            fix = "make room, or raise the quota; the same command goes on from the checkpoint before"
            raise MegaVLMError(
                f"the checkpoint after step {step} could not be written: {why}",
                where=str(folder),
                fix=fix if said else None,
            ) from error


def load(folder: Path, model: VisionLanguageModel, optimizer: MegatronOptimizer) -> int:
    """Restore everything from a complete checkpoint; returns the number of updates it had seen.

    Random streams are restored where the layout is the one that saved; another layout keeps its freshly seeded ones.
    """
    state = load_state(_state(model, optimizer, is_loading=True), folder)
    model.load_parts(state["model"])
    with torch.no_grad():
        optimizer.load_state_dict(state["optimizer"])
    marker = json.loads((folder / COMPLETE).read_text())
    if marker["layout"] == layout():
        restore_streams(folder)
    return int(marker["step"])


def layout() -> dict[str, int]:
    """The parallel sizes of this run."""
    return {
        "tp": parallel_state.get_tensor_model_parallel_world_size(),
        "pp": parallel_state.get_pipeline_model_parallel_world_size(),
        "vp": parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1,
        "cp": parallel_state.get_context_parallel_world_size(),
        "world": dist.get_world_size(),
    }


def _state(model: VisionLanguageModel, optimizer: MegatronOptimizer, is_loading: bool) -> dict[str, Any]:
    weights = model.sharded_state_dict()
    # megatron-core binds optimizer state to parameters through the model's entries, and changes what it is given.
    moments = optimizer.sharded_state_dict(dict(weights), is_loading=is_loading, metadata=dict(SHARDING))
    return {"model": weights, "optimizer": moments}


@contextlib.contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """megatron-core calls the garbage collector, which takes longer than all else where there is as much as torch."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
