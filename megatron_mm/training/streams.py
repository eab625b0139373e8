"""A rank's random streams in a checkpoint: torch's, and those that megatron-core keeps for tensor parallelism."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker


def streams_path(folder: Path) -> Path:
    """Where a checkpoint keeps this rank's."""
    return folder / "rng" / f"rank-{dist.get_rank():05d}.pt"


def save_streams(folder: Path) -> None:
    """Write this rank's, each as a byte tensor."""
    streams = {f"tracker/{name}": state for name, state in get_cuda_rng_tracker().get_states().items()}
    device = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    streams_path(folder).parent.mkdir(exist_ok=True)
    torch.save({"cpu": torch.get_rng_state(), **device, **streams}, streams_path(folder))


def restore_streams(folder: Path) -> None:
    """Go on with those of a checkpoint that this layout wrote."""
    state = torch.load(streams_path(folder), weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    streams = {name.removeprefix("tracker/"): each for name, each in state.items() if name.startswith("tracker/")}
    get_cuda_rng_tracker().set_states(streams)
