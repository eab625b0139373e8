"""Tiles of bytes -> normalised patch vectors, in one pass: scale, shift, cast and patchify.

The patch vectors are what a convolution of stride `patch` reads: `patches @ weight.reshape(out, -1).T` equals
`conv2d((tiles / 255 - mean) / std, weight, stride=patch)`, so that a patch embedding is one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from .dispatch import Backend, use_triton

Layout = Literal["nchw", "nhwc"]


def tile_normalise(
    tiles: torch.Tensor,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    layout: Layout = "nchw",
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Tiles [n, 3, h, w] ("nchw") or [n, h, w, 3] ("nhwc") in 0..255 -> [n, patches, 3 * patch**2] of `dtype`.

    uint8 as a rule; float tiles take the reference path, through which the pixels have a gradient.

    Patches are in reading order, a patch vector is (channel, row, column). `mean` and `std` are per channel, for pixels
    scaled to [0, 1]. The arithmetic is float32 whatever `dtype` is. Raises ValueError for other shapes or dtypes.
    """
    _check(tiles, patch, layout)
    if tiles.dtype == torch.uint8 and use_triton(tiles, backend):
        from .tile_normalise_triton import tile_normalise_triton

        return tile_normalise_triton(tiles, patch, mean, std, layout, dtype)
    return tile_normalise_torch(tiles, patch, mean, std, layout, dtype)


def tile_normalise_torch(
    tiles: torch.Tensor, patch: int, mean: Sequence[float], std: Sequence[float], layout: Layout, dtype: torch.dtype
) -> torch.Tensor:
    """The reference, in plain torch; shapes as in `tile_normalise`."""
    pixels = tiles if layout == "nchw" else tiles.permute(0, 3, 1, 2)
    n, channels, height, width = pixels.shape
    shift = torch.tensor(mean, dtype=torch.float32, device=tiles.device)[:, None, None]
    scale = torch.tensor(std, dtype=torch.float32, device=tiles.device)[:, None, None]
    values = (pixels.float() / 255 - shift) / scale
    rows, cols = height // patch, width // patch
    patches = values.reshape(n, channels, rows, patch, cols, patch).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(n, rows * cols, channels * patch * patch).to(dtype)


_PIXELS = (torch.uint8, torch.float32)


def _check(tiles: torch.Tensor, patch: int, layout: Layout) -> None:
    if layout not in ("nchw", "nhwc"):
        raise ValueError(f"layout '{layout}' is neither 'nchw' nor 'nhwc'")
    if tiles.dtype not in _PIXELS or tiles.dim() != 4 or tiles.shape[1 if layout == "nchw" else 3] != 3:
        raise ValueError(f"tiles {tuple(tiles.shape)} of {tiles.dtype} are no RGB tiles in layout {layout}")
    height, width = tiles.shape[2:] if layout == "nchw" else tiles.shape[1:3]
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"a tile of {height} x {width} does not divide into patches of side {patch}")
