"""Triton twin of merge_tokens: one pass over the output instead of a copy and an overwrite. Imported only on use."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def _merge(text, visual, source, out, width, text_stride, visual_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    origin = tl.load(source + row)
    from_visual = inside & (origin >= 0)
    from_text = inside & (origin < 0)
    seen = tl.load(visual + origin * visual_stride + column, mask=from_visual, other=0.0)
    said = tl.load(text + row * text_stride + column, mask=from_text, other=0.0)
    tl.store(out + row * width + column, tl.where(origin >= 0, seen, said), mask=inside)


@triton.jit
def _split(grad, source, grad_text, grad_visual, width, grad_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    origin = tl.load(source + row)
    value = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0)
    tl.store(grad_text + row * width + column, tl.where(origin >= 0, 0.0, value), mask=inside)
    tl.store(grad_visual + origin * width + column, value, mask=inside & (origin >= 0))


class _MergeTokens(torch.autograd.Function):
    """Forward gathers each output row from its one origin; backward sends each row's gradient to its one origin."""

    @staticmethod
    def forward(ctx: Any, text: torch.Tensor, visual: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        text, visual = _rows_contiguous(text), _rows_contiguous(visual)
        source = torch.full((text.shape[0],), -1, dtype=torch.int64, device=text.device)
        source[index] = torch.arange(len(index), device=text.device)
        out = torch.empty(text.shape, dtype=text.dtype, device=text.device)
        if out.numel():
            _merge[_grid(out)](text, visual, source, out, out.shape[1], text.stride(0), visual.stride(0), BLOCK=BLOCK)
        ctx.save_for_backward(source)
        ctx.visual_rows = visual.shape[0]
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (source,) = ctx.saved_tensors
        grad = _rows_contiguous(grad)
        grad_text = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
        grad_visual = grad.new_empty(ctx.visual_rows, grad.shape[1])
        if grad.numel():
            _split[_grid(grad)](grad, source, grad_text, grad_visual, grad.shape[1], grad.stride(0), BLOCK=BLOCK)
        return grad_text, grad_visual, None


def _rows_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """An expanded tensor, such as the gradient of a sum, has stride 0 inside its rows."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def _grid(out: torch.Tensor) -> tuple[int, int]:
    return out.shape[0], triton.cdiv(out.shape[1], BLOCK)


def merge_tokens_triton(text: torch.Tensor, visual: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Same contract as `merge_tokens_torch`."""
    return _MergeTokens.apply(text, visual, index)
