"""Texts through a model that trains: its own layout, its own schedule, and nothing of it changed afterwards."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch import Tensor

from ...backend import device
from ...backend.context import own_positions
from ...contracts import PackedBatch
from ...data.as_torch import to_torch
from ...language import LanguageStage
from ...model import VisionLanguageModel
from .texts import NO_ROW, Texts

CHUNK = 256  # places whose part of the vocabulary is worked on at a time, in float32
T = TypeVar("T")


class Pack(NamedTuple):
    """Texts in one packed sequence, and int64 [s]: the row of the token after each place, or NO_ROW."""

    batch: PackedBatch
    rows: Tensor


def through(
    model: VisionLanguageModel,
    texts: Texts,
    length: int,
    look: Callable[[Tensor, Tensor], T],
    alive: Callable[[], object] = lambda: None,
) -> list[T]:
    """`look(logits [n, vocab / tp], rows int64 [n])` of all places that count on this rank, some at a time.

    On the last pipeline stage; [] on the others. Replicas share the packs, of `length` positions each, and ranks of
    context parallelism the places. All ranks call it together.
    """

    def step(packs: Iterator[Pack], stage: LanguageStage) -> tuple[Tensor, object]:
        alive()
        pack = next(packs)

        def collect(logits: Tensor, non_loss_data: bool = True) -> list[T]:
            own = own_positions(len(pack.rows)).to(pack.rows.device)
            here = pack.rows[own] != NO_ROW
            pieces = zip(logits[0, here].split(CHUNK), pack.rows[own][here].split(CHUNK), strict=True)
            return [look(some, rows) for some, rows in pieces if len(rows)]

        return stage(model.see(pack.batch)), collect

    groups = _groups(texts, length, len(model.stages))
    if not groups:
        return []
    packs = (_pack(texts, group, length, model) for group in groups)
    feeds = itertools.tee(packs, len(model.stages))
    found = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=list(feeds) if len(feeds) > 1 else feeds[0],
        model=list(model.stages),
        num_microbatches=len(groups),
        seq_length=length,
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    return [each for pack in found for each in pack]


def _groups(texts: Texts, length: int, interleaved: int) -> list[list[int]]:
    """This replica's packs; an interleaved pipeline wants as many at a time as it has stages."""
    rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    groups = texts.packed(length)[rank::ranks]
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    return [*groups, *[[]] * (-len(groups) % stages if interleaved > 1 else 0)]


def _pack(texts: Texts, which: list[int], length: int, model: VisionLanguageModel) -> Pack:
    spec = model.spec
    arrays, rows = texts.pack(which, length, spec.tiling.side, 0, spec.injection.has_context)
    batch = replace(to_torch(arrays), labels=None)  # without labels the model gives logits instead of losses
    return Pack(batch.to(device()), torch.from_numpy(rows).to(device()))


@contextlib.contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; afterwards every module's mode and every random stream is as before."""
    modes = [(module, module.training) for module in model.modules()]
    streams = _streams()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        _restore(streams)


def _streams() -> dict[str, Any]:
    device_state = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "torch": torch.get_rng_state(),
        "cuda": device_state,
        "tracker": get_cuda_rng_tracker().get_states(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }


def _restore(streams: dict[str, Any]) -> None:
    torch.set_rng_state(streams["torch"])
    if streams["cuda"] is not None:
        torch.cuda.set_rng_state(streams["cuda"])
    get_cuda_rng_tracker().set_states(streams["tracker"])
    random.setstate(streams["python"])
    np.random.set_state(streams["numpy"])
