"""Learned positions for another grid than they were trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resized(table: Tensor, trained: tuple[int, int], grid: tuple[int, int], antialias: bool = False) -> Tensor:
    """Positions [k + rows * columns of `trained`, hidden] -> the same for `grid`; k class tokens keep theirs.

    Bicubic without aligned corners, in float32, as InternViT's modeling_intern_vit.py and transformers'
    interpolate_pos_encoding; with `antialias`, as DINOv2's, each point of a smaller grid takes of more old ones.
    Nothing happens where the grids agree. One matrix per axis, since the backward pass of torch's interpolation is not
    deterministic on a GPU.
    """
    if trained == grid:
        return table
    first = len(table) - trained[0] * trained[1]
    image = table[first:].float().view(*trained, -1)
    down, across = (_bicubic(old, new, antialias).to(table.device) for old, new in zip(trained, grid, strict=True))
    patches = torch.einsum("yr,xc,rch->yxh", down, across, image)
    return torch.cat([table[:first], patches.flatten(0, 1).to(table.dtype)])


def _bicubic(old: int, new: int, antialias: bool) -> Tensor:
    """float32 [new, old]: what each new point takes of the old ones, which is the interpolation of unit vectors."""
    # Side by side as one image's columns: of an image one column wide, [1, old, old, 1], torch's antialiased
    # interpolation on a CPU repeats the first row (2.13).
    units = torch.eye(old)[None, None]
    return F.interpolate(units, size=(new, old), mode="bicubic", align_corners=False, antialias=antialias)[0, 0]
