"""Feature maps of several sizes on one grid."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contracts import FeatureMap


def on_grid(feature: FeatureMap, rows: int, columns: int) -> Tensor:
    """A map of n tiles as [n, rows, columns, channels]; nothing happens where that is its grid.

    Bilinear with aligned corners, in float32 at least, as Eagle's multi_backbone_channel_concatenation_encoder.py. One
    matrix per axis, since the backward pass of torch's interpolation is not deterministic on a GPU.
    """
    x = feature.tiles
    n, old_rows, old_columns, channels = x.shape
    if (old_rows, old_columns) == (rows, columns):
        return x
    wide = torch.promote_types(x.dtype, torch.float32)
    down, across = (_bilinear(*sizes, x) for sizes in ((old_rows, rows), (old_columns, columns)))
    halfway = down.to(wide) @ x.to(wide).reshape(n, old_rows, old_columns * channels)
    return (across.to(wide) @ halfway.view(n, rows, old_columns, channels)).to(x.dtype)


def _bilinear(old: int, new: int, like: Tensor) -> Tensor:
    """float64 [new, old]: what each new point takes of the old ones. Its neighbours are weighted by their nearness."""
    places = torch.linspace(0, old - 1, new, dtype=torch.float64, device=like.device)
    return (1 - (places[:, None] - torch.arange(old, device=like.device)).abs()).clamp(min=0)
