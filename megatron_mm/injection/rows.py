"""Rows of a sequence by modality: those of text through one function and those of images through another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor

Branch = Callable[[Tensor], Any]  # [n, 1, h] -> [n, 1, width], or that and a bias, as megatron-core's modules


class _Reorder(torch.autograd.Function):
    """Rows in another order. Its gradient is the other order again: no sum, which index_select's own would be."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors
        return grads[0].index_select(0, back), None, None


class Rows:
    """Which rows of hidden states [s, b, h] are of text, and which of images."""

    def __init__(self, visual: Tensor) -> None:
        """`visual` bool [s, b]: where a visual token stands."""
        flat = visual.flatten()
        self.order = flat.int().argsort(stable=True)  # the rows of text first
        self.back = self.order.argsort()
        images = int(flat.sum())  # the host waits here for the device
        self.counts = [len(flat) - images, images]

    def through(self, x: Tensor, text: Branch, visual: Branch, multiple: int = 1) -> Tensor:
        """[s, b, h] -> [s, b, width]: each row through its branch, filled up to a `multiple` of rows with zeros.

        A branch without rows runs where gradients are wanted, on zeros that nobody sees: data parallelism and the
        pipeline wait for a gradient of every weight, which then is zero.
        """
        if 0 in self.counts and not torch.is_grad_enabled():
            return _branch(visual if self.counts[1] else text, x, multiple)
        parts = self._sorted(x.reshape(-1, 1, x.shape[-1])).split(self.counts)
        out = torch.cat([_branch(text, parts[0], multiple), _branch(visual, parts[1], multiple)])
        return self._as_they_stood(out).view(*x.shape[:-1], out.shape[-1])

    def _sorted(self, rows: Tensor) -> Tensor:
        return rows if 0 in self.counts else _Reorder.apply(rows, self.order, self.back)

    def _as_they_stood(self, rows: Tensor) -> Tensor:
        return rows if 0 in self.counts else _Reorder.apply(rows, self.back, self.order)


def _branch(branch: Branch, rows: Tensor, multiple: int) -> Tensor:
    missing = -len(rows) % multiple if len(rows) else multiple
    out = branch(F.pad(rows, (0, 0, 0, 0, 0, missing)) if missing else rows)
    out, bias = out if isinstance(out, tuple) else (out, None)
    out = out if bias is None else out + bias
    return out[: len(rows)] if missing else out


class Route(NamedTuple):
    """Rows of the sequence, and of this rank's part of it under sequence parallelism: otherwise all of it."""

    whole: Rows
    own: Rows


def route_of(visual: Tensor, is_split: bool) -> Route:
    """`visual` bool [s, b] is the whole sequence's, but for context parallelism; `is_split`: sequence parallelism."""
    whole = Rows(visual)
    if not is_split:
        return Route(whole, whole)
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    return Route(whole, Rows(visual.chunk(ranks)[parallel_state.get_tensor_model_parallel_rank()]))
