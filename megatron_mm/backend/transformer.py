"""What every transformer of ours tells megatron-core, whatever its axis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from ..config import Parallel
from ..contracts import BuildContext
from . import fp8
from .specs import recompute_options

SPLIT_AXIS = {VocabParallelEmbedding: 0, ColumnParallelLinear: 0, RowParallelLinear: 1}


def transformer_config(ctx: BuildContext, **shape: Any) -> TransformerConfig:
    """A TransformerConfig of this `shape` under this context.

    Weights are allocated but not drawn (`backend.initialise` or a checkpoint fills them), and on the default device,
    so that `torch.device("meta")` builds a model of any size for free.
    """
    return TransformerConfig(
        **{
            "use_cpu_initialization": True,
            "perform_initialization": False,
            "params_dtype": ctx.params_dtype,
            "pipeline_dtype": ctx.params_dtype,
            "bf16": ctx.params_dtype == torch.bfloat16,
            **fp8.options(ctx.fp8),
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
            "attention_softmax_in_fp32": True,
            "calculate_per_token_loss": True,  # the training step divides by the global batch's loss weights itself
            "tensor_model_parallel_size": ctx.parallel.tp,
            "pipeline_model_parallel_size": ctx.parallel.pp,
            "context_parallel_size": ctx.parallel.cp,
            **_pipeline(ctx.parallel),
            "sequence_parallel": ctx.parallel.sequence_parallel,
            "deterministic_mode": torch.are_deterministic_algorithms_enabled(),
            **recompute_options(ctx.recompute),
            **shape,
        }
    )


def whole(ctx: BuildContext) -> BuildContext:
    """The same context for a module that every process holds whole, but for tensor parallelism."""
    return replace(ctx, parallel=Parallel(tp=ctx.parallel.tp), pre_process=True, post_process=True, vp_stage=None)


def _pipeline(parallel: Parallel) -> dict[str, Any]:
    """How the layers are spread over pipeline stages.

    Interleaved ones must not batch their sends, and overlap them with computation (guards): also while the pipeline
    fills and empties, unless the stage says no. Without interleaving megatron-core has nothing to overlap them with.
    """
    uneven = {
        "num_layers_in_first_pipeline_stage": parallel.first_stage_layers,
        "num_layers_in_last_pipeline_stage": parallel.last_stage_layers,
    }
    if parallel.vp == 1:
        return uneven
    sends = {"overlap_p2p_comm": True, "batch_p2p_comm": False}
    sends["overlap_p2p_comm_warmup_flush"] = parallel.overlap is not False
    return {**uneven, **sends, "virtual_pipeline_model_parallel_size": parallel.vp}


def mark_split_weights(model: torch.nn.Module) -> None:
    """Mark which weights are split over tensor-parallel ranks, and where.

    megatron-core marks them while it draws them, and we don't let it draw. Without the mark the gradient norm would
    count a split weight on one rank only.
    """
    for module in model.modules():
        axis = next((axis for kind, axis in SPLIT_AXIS.items() if isinstance(module, kind)), None)
        weight = getattr(module, "weight", None)
        if axis is not None and weight is not None and not hasattr(weight, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(weight, True, axis, 1)
