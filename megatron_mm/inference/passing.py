"""One forward pass without gradients through all pipeline stages, and its outcome told to all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn

from megavlm.platform.errors import ConfigError

from ..backend import device
from ..contracts import PackedBatch
from ..language import LanguageStage
from ..model import VisionLanguageModel
from ..tag_texts import TagTexts


@torch.no_grad()
def forward(
    model: VisionLanguageModel, batch: PackedBatch, hidden_keys: Tensor | None = None, **options: Any
) -> Tensor | None:
    """What the last pipeline stage makes of `batch`; None on the earlier ones. All ranks call this together.

    Stages send each other hidden states [s, b, h]. `hidden_keys` is a mask as SDPAttention takes it, for every layer.
    """
    stage = only_stage(model)
    (batch,) = TagTexts(model).give([model.see(batch.to(device()))])
    if not stage.pre_process:
        stage.set_input_tensor(_received(model, batch))
    with _hiding(stage.decoder, hidden_keys):
        out = model(batch, **options)
    if stage.post_process:
        return out
    group = parallel_state.get_pipeline_model_parallel_group()
    dist.send(out.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank(), group=group)
    return None


def only_stage(model: VisionLanguageModel) -> LanguageStage:
    """What this process holds of the decoder."""
    (stage,) = model.stages
    return cast("LanguageStage", stage)


def told(values: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """float64 of `shape` on every pipeline stage, from the last one, which alone has `values`; on the CPU."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        assert values is not None
        return values.double().cpu()
    found = torch.zeros(shape, dtype=torch.float64, device=device()) if values is None else values.double().to(device())
    group = parallel_state.get_pipeline_model_parallel_group()
    dist.broadcast(found, parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
    return found.cpu()


def check_layout_of(model: VisionLanguageModel) -> None:
    """Raise ConfigError for layouts in which a forward pass would not give whole answers."""
    config, fix = model.config, "load the checkpoint with {}"
    if len(model.stages) > 1:
        raise ConfigError("inference has no interleaved pipeline", where="parallel.vp", fix=fix.format("parallel.vp=1"))
    if config.context_parallel_size > 1:
        raise ConfigError("inference does not split the context", where="parallel.cp", fix=fix.format("parallel.cp=1"))
    if config.sequence_parallel:
        # One token cannot be split, and megatron-core takes each rank's last token for the sequence's.
        raise ConfigError(
            "inference does not split the sequence",
            where="parallel.sequence_parallel",
            fix=fix.format("parallel.sequence_parallel=false"),
        )


def _received(model: VisionLanguageModel, batch: PackedBatch) -> Tensor:
    """Hidden states [s, b, h] from the stage before."""
    rows, length = batch.tokens.shape
    shape = (length, rows, model.config.hidden_size)
    hidden = torch.empty(shape, dtype=model.config.params_dtype, device=device())
    group = parallel_state.get_pipeline_model_parallel_group()
    dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank(), group=group)
    return hidden


@contextlib.contextmanager
def _hiding(decoder: nn.Module, keys: Tensor | None) -> Iterator[None]:
    """Inside, the decoder's attention gets this mask, which the model itself has no use for: a sample has no holes."""

    def hide(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**options, "attention_mask": keys}

    handle = decoder.register_forward_pre_hook(hide, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
