"""Our side of a conversion: every parameter of a model by name, and where a checkpoint keeps it. Costs no memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from ..backend import build_context, init_distributed
from ..config import ModelConfig, Parallel
from ..model import build_model
from ..parts import place_of


class Slot(NamedTuple):
    """A parameter: its axis, its name there, its whole shape; its tensor in a checkpoint and its place in that.

    Layers that are alike share one tensor with an axis of layers in front: `among` are those leading sizes, `lead` the
    parameter's own place in them; both are () for a parameter with a tensor of its own.
    """

    axis: str
    name: str
    shape: tuple[int, ...]
    key: str
    lead: tuple[int, ...]
    among: tuple[int, ...]

    @property
    def said(self) -> str:
        """How it is called in messages."""
        return f"{self.axis}: {self.name}"


def slots(model: ModelConfig) -> list[Slot]:
    """Every parameter of `model`, in the model's order.

    Built whole on the meta device in this process, whose process groups are started anew. Names are those that every
    layout uses.
    """
    init_distributed(Parallel(), seed=1)
    with torch.device("meta"):
        built = build_model(model, build_context(Parallel(), "fp32"))  # on a GPU, bf16 would ask for TE's modules
    return list(_slots(model, built.sharded_state_dict()))


def _slots(model: ModelConfig, parts: dict[str, Any]) -> Iterator[Slot]:
    for part in parts.values():
        for name, value in part.items():
            first = value.build() if isinstance(value, ShardedTensorFactory) else value
            first = first[0] if isinstance(first, list) else first
            if isinstance(first, ShardedTensor):
                yield _slot(model, name, tuple(value.data.shape), first)


def _slot(model: ModelConfig, name: str, shape: tuple[int, ...], tensor: ShardedTensor) -> Slot:
    axis, inside = place_of(model, name)
    leading = tensor.prepend_axis_num
    return Slot(axis, inside, shape, tensor.key, tensor.global_offset[:leading], tensor.global_shape[:leading])
