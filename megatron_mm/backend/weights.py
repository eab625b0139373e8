"""First weights that no parallel layout can change: drawn whole by global name and seed, then sliced."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from ..config import ModelConfig
from ..injection.copies import original

EMBEDDING_STD = 0.02
TABLES = ("word_embeddings", "output_layer")
RESIDUAL = ("linear_proj", "linear_fc2")  # what is added to the residual stream


@torch.no_grad()
def initialise(model: Any, seed: int) -> None:
    """Fill every parameter of `model` in place, the same on every layout.

    Reads the model's sharded state dict, which names each tensor globally and says which part this rank holds: what
    a checkpoint would contain. Matrices are normal with deviation 1/sqrt(fan-in), those that end a residual branch
    divided by sqrt(2 * layers) (GPT-2); tables normal with 0.02; norms one, biases zero; a parameter's own
    `init_values` (float32, the whole tensor), `init_constant` or `init_std` wins. Of a parameter with an `init_shape`
    only that much of the whole tensor, from its first element on, is drawn; what pads it is zero. A weight that begins
    as a copy of another is drawn as that one is.
    """
    for tensor in _sharded(model.sharded_state_dict().values()):
        if tensor.data is not None:
            shape = _drawn_shape(model, tensor)
            named = replace(tensor, key=_drawn_as(model, tensor.key))
            tensor.data.copy_(_slice(tensor, _padded(tensor, _draw(named, seed, shape, _layers(model, tensor)))))


def _drawn_as(model: Any, name: str) -> str:
    """The name whose draw a weight gets; an encoder or a connector by itself has no copies."""
    spec = getattr(model, "spec", None)
    return (original(spec, name) if isinstance(spec, ModelConfig) else None) or name


def _sharded(values: Any) -> Iterator[ShardedTensor]:
    """Every ShardedTensor, SwiGLU's gate and up halves one by one: their data are views of the parameter."""
    for value in values:
        if isinstance(value, dict):
            yield from _sharded(value.values())
        elif isinstance(value, ShardedTensorFactory):
            yield from _sharded(value.build())
        elif isinstance(value, ShardedTensor):
            yield value


def _draw(tensor: ShardedTensor, seed: int, shape: tuple[int, ...], layers: int) -> Tensor:
    """First values float32 of this `shape`: the whole tensor of which `tensor` is a shard, without its padding."""
    if hasattr(tensor.data, "init_values"):
        return tensor.data.init_values
    constant = getattr(tensor.data, "init_constant", None)
    if constant is None and len(shape) == 1 and not hasattr(tensor.data, "init_std"):
        constant = 0.0 if tensor.key.endswith("bias") else 1.0
    if constant is not None:
        return torch.full(shape, constant)
    return torch.empty(shape).normal_(0.0, _deviation(tensor, shape, layers), generator=_generator(tensor, seed))


def _padded(tensor: ShardedTensor, values: Tensor) -> Tensor:
    """`values` with zeros behind them, as large as the whole tensor."""
    whole = values.new_zeros(tensor.global_shape[tensor.prepend_axis_num :])
    whole[tuple(slice(size) for size in values.shape)] = values
    return whole


def _deviation(tensor: ShardedTensor, shape: tuple[int, ...], layers: int) -> float:
    own = getattr(tensor.data, "init_std", None)
    if own is not None:
        return own
    if any(name in tensor.key for name in TABLES):
        return EMBEDDING_STD
    std = 1 / math.sqrt(math.prod(shape[1:]))
    return std / math.sqrt(2 * layers) if layers and any(name in tensor.key for name in RESIDUAL) else std


def _generator(tensor: ShardedTensor, seed: int) -> torch.Generator:
    """Seeded by the run's seed, the global name, and the layer where layers share a name."""
    name = f"{seed}/{tensor.key}/{tensor.global_offset[: tensor.prepend_axis_num]}"
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _slice(tensor: ShardedTensor, whole: Tensor) -> Tensor:
    offsets = tensor.global_offset[tensor.prepend_axis_num :]
    return whole[tuple(slice(start, start + size) for start, size in zip(offsets, tensor.local_shape, strict=True))]


def _drawn_shape(model: Any, tensor: ShardedTensor) -> tuple[int, ...]:
    """What means something: all, but for a table only the true vocabulary, which padding would change by layout."""
    shape = getattr(tensor.data, "init_shape", tensor.global_shape[tensor.prepend_axis_num :])
    return (model.spec.decoder.vocab, *shape[1:]) if tensor.allow_shape_mismatch else shape


def _layers(model: Any, tensor: ShardedTensor) -> int:
    """How many layers its transformer has, 0 where that is not known. Decoders' layers that differ are named apart."""
    if tensor.prepend_axis_num:
        return tensor.global_shape[0]
    return model.spec.decoder.layers if "decoder.layers." in tensor.key else 0
