"""A training's checkpoints: model, optimizer, random streams and step, through megatron-core's dist_checkpointing.

A checkpoint is the folder checkpoints/STAGE/step-000050 and counts only with its marker COMPLETE, renamed into it last:
a save that was killed leaves the one before it usable. Tensors are stored by their global shape, so another tensor- or
pipeline-parallel size can load them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch.distributed.checkpoint.api import CheckpointException

from megavlm.platform.errors import MegaVLMError
from megavlm.platform.runs import RunFolder
from megavlm.platform.storage import write_atomic

from ..checkpoints.durable import flush, refusal
from ..checkpoints.listing import COMPLETE, checkpoint_path
from ..checkpoints.safe_load import INDEX, load_state
from ..model import VisionLanguageModel

# The default, "fully_sharded_model_space", fails on load; this one also lets tp and pp change.
SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}


def save(run: RunFolder, stage: str, step: int, model: VisionLanguageModel, optimizer: MegatronOptimizer) -> Path:
    """Write a checkpoint and take the stage's older ones away; every rank calls it.

    The older ones go when the new one is on disk, and not before. Raises MegaVLMError with the file system's own words
    when that takes no more; what was written of the new one is taken away then, and the older ones stay.
    """
    folder = checkpoint_path(run, stage, step)
    try:
        _write(run, folder, {"stage": stage, "step": step, "layout": layout()}, model, optimizer)
    except (
        Exception,
        CheckpointException,
    ) as error:  # torch's is no Exception, and would pass by all who report errors
        said = error if isinstance(error, OSError) else refusal(folder.parent)
        if isinstance(error, CheckpointException):
            dist.barrier()  # raised on every rank: each asks before the space is free again
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        why = said.strerror if said else str(error).strip().rpartition("\n")[2]
        raise MegaVLMError(
            f"the checkpoint after step {step} could not be written: {why}",
            where=str(folder),
            fix="make room, or raise the quota; the same command goes on from the checkpoint before" if said else None,
        ) from error
    if dist.get_rank() == 0:
        prune(run, stage, keep=folder)
    dist.barrier()
    return folder


def _write(
    run: RunFolder, folder: Path, marker: dict[str, Any], model: VisionLanguageModel, optimizer: MegatronOptimizer
) -> None:
    """Everything, then that it is complete. megatron-core flushes the tensors, and little else."""
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed save left
        (folder / "rng").mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(_state(model, optimizer, is_loading=False), str(folder))
    torch.save(_random_state(), _rng_path(folder))
    flush([_rng_path(folder)])
    dist.barrier()
    if dist.get_rank() == 0:
        names = [folder / "rng", folder, *folder.parents[:2]]  # up to checkpoints/
        small = [folder / name for name in ("common.pt", "metadata.json", INDEX)]
        flush([*small, *names, run.path("metrics.jsonl")])
        write_atomic(folder / COMPLETE, json.dumps(marker).encode())
        flush([folder])


def prune(run: RunFolder, stage: str, keep: Path) -> None:
    """Delete every other checkpoint of the stage, complete or not; the marker goes first."""
    for folder in run.path("checkpoints", stage).glob("step-*"):
        if folder != keep:
            (folder / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


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
        _restore_random_state(torch.load(_rng_path(folder), weights_only=True))
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


def _rng_path(folder: Path) -> Path:
    return folder / "rng" / f"rank-{dist.get_rank():05d}.pt"


def _random_state() -> dict[str, torch.Tensor]:
    """Torch's stream and megatron-core's, each as a byte tensor."""
    streams = {f"tracker/{name}": state for name, state in get_cuda_rng_tracker().get_states().items()}
    device = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **device, **streams}


def _restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    streams = {name.removeprefix("tracker/"): each for name, each in state.items() if name.startswith("tracker/")}
    get_cuda_rng_tracker().set_states(streams)
