"""Process groups, device and precision: the same calls on gloo with CPUs and on NCCL with GPUs."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megavlm.platform.errors import ConfigError

from ..config import Parallel
from ..contracts import BuildContext
from . import cpu
from .deterministic import switch
from .fp8 import RECIPES

TIMEOUT = timedelta(minutes=10)


def device() -> torch.device:
    """This process' device: its GPU where there is one, otherwise the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def backend_name() -> Literal["nccl", "gloo"]:
    """What carries the collectives."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def init_distributed(parallel: Parallel, seed: int, deterministic: bool = False) -> None:
    """Start torch.distributed (from torchrun's environment, or alone) and lay megatron-core's groups over it.

    A second call, with the next stage's layout, keeps the processes and replaces the groups. Raises ConfigError when
    the number of processes does not divide by tp * pp * cp. `deterministic` holds for what is built after it.
    """
    start_processes()
    _check_world(parallel, dist.get_world_size())
    switch(deterministic)
    _end_groups()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.vp if parallel.vp > 1 else None,
        context_parallel_size=parallel.cp,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=int(TIMEOUT.total_seconds() // 60),  # its own default is half an hour
    )
    seed_everything(seed)


def seed_everything(seed: int) -> None:
    """Seed torch and megatron-core's model-parallel streams; `seed` is the run's, the layout is mixed in."""
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def shutdown() -> None:
    """Give up all process groups; safe to call twice."""
    _end_groups()
    if dist.is_initialized():
        dist.destroy_process_group()


def _end_groups() -> None:
    """End megatron-core's groups: its own function forgets them, all but one, and ends none.

    Each that is left keeps three threads, of which one wakes a hundred times a second (gloo), or memory (NCCL). What
    else holds them goes too: the models, in cycles, and the cache of positions.
    """
    if not parallel_state.model_parallel_is_initialized():
        return
    groups = parallel_state._global_process_group_list[1:]  # the first stands for all processes
    parallel_state.destroy_model_parallel()
    parallel_state._INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP = None
    RotaryEmbedding.forward.cache_clear()
    for group in groups:
        dist.destroy_process_group(group)
    gc.collect()


def start_processes() -> None:
    """Start torch.distributed, from torchrun's environment or alone; a second call does nothing."""
    cpu.install()
    if dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend_name(), timeout=TIMEOUT)
    else:  # one process without torchrun needs no port
        dist.init_process_group(backend_name(), store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)


def _check_world(parallel: Parallel, world: int) -> None:
    size = parallel.split
    if world % size:
        raise ConfigError(
            f"{world} processes do not divide by tp {parallel.tp} x pp {parallel.pp} x cp {parallel.cp} = {size}",
            where="parallel",
            fix=f"start a multiple of {size} processes, or make the layout smaller",
        )


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, **dict.fromkeys(RECIPES, torch.bfloat16)}


def build_context(
    parallel: Parallel,
    precision: str = "fp32",
    recompute: Literal["none", "selective", "full"] = "none",
) -> BuildContext:
    """The BuildContext of this process, its (first) pipeline stage read from megatron-core's groups."""
    fp8 = RECIPES.get(precision)
    ctx = BuildContext(params_dtype=PRECISIONS[precision], parallel=parallel, recompute=recompute, fp8=fp8)
    return at_stage(ctx, 0 if parallel.vp > 1 else None)


def at_stage(ctx: BuildContext, vp_stage: int | None) -> BuildContext:
    """The context of one of this process' stages: number `vp_stage` of an interleaved pipeline, or the only one."""
    place = {"ignore_virtual": vp_stage is None, "vp_stage": vp_stage}
    first, last = parallel_state.is_pipeline_first_stage(**place), parallel_state.is_pipeline_last_stage(**place)
    return replace(ctx, pre_process=first, post_process=last, vp_stage=vp_stage)
