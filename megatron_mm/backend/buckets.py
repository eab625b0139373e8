"""The distributed optimizer's state where its buffer has several buckets, which overlap makes of it.

megatron-core 0.16.1 gathers it for a checkpoint without the padding between buckets, and then cuts the parameters'
parts out of it by their places in the padded buffer: from the second bucket on, each gets some of another's. It is
saved and loaded without an error, and the first update after that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from torch import Tensor

STATE = ("param", "exp_avg", "exp_avg_sq")


def keep_padding(optimizer: MegatronOptimizer) -> None:
    """Have `optimizer` gather its state as its parameters' places are counted."""
    for each in optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]:
        each.get_parameter_state_dp_zero = partial(_padded, each, each.get_parameter_state_dp_zero)


def _padded(optimizer: Any, gather: Callable[..., Any], **options: Any) -> Any:
    state = gather(**options)
    for number, buffer in enumerate(optimizer.buffers if state is not None else []):
        if len(buffer.buckets) > 1 and buffer.numel > buffer.numel_unpadded:
            for tensors in state[number].values():
                tensors.update({key: spread(tensors[key], buffer) for key in STATE})
    return state


def spread(values: Tensor, buffer: Any) -> Tensor:
    """float32 [numel_unpadded], bucket after bucket -> [numel], each at its offset."""
    whole = values.new_zeros(buffer.numel)
    sizes = [bucket.numel_unpadded for bucket in buffer.buckets]
    for bucket, part in zip(buffer.buckets, values.split(sizes), strict=True):
        whole[bucket.offset : bucket.offset + len(part)] = part
    return whole
