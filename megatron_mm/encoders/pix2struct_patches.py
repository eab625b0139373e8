"""Pix2Struct's image processor as tensor code: it runs where the tiles are, which is the GPU in training.

The released Eagle (arXiv 2408.15998) brings every tile back to the CPU and to NumPy in each forward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def flattened_patches(tiles: Tensor, patch: int, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Tiles [n, 3, h, w], uint8 or float, in 0..255 -> [n, rows * columns, patch**2 * 3] of `dtype`.

    Patches are in reading order, a patch vector is (row, column, channel). A tile is scaled to `grid` whole patches
    (bilinear with antialiasing) and has mean 0 and deviation 1 over all its values before that; the deviation is never
    taken for less than 1/sqrt(values), as by tf.image.per_image_standardization. What is normalised first and scaled
    then is here the other way round: the same, since bilinear weights sum to one, and fewer pixels. The arithmetic is
    float32 whatever `dtype` is.
    """
    rows, columns = grid
    pixels = tiles.float()
    deviation, mean = torch.std_mean(pixels, dim=(1, 2, 3), keepdim=True, correction=0)
    scaled = F.interpolate(
        pixels, size=(rows * patch, columns * patch), mode="bilinear", align_corners=False, antialias=True
    )
    normed = (scaled - mean) / deviation.clamp(min=pixels[0].numel() ** -0.5)
    patches = normed.view(len(tiles), 3, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(len(tiles), rows * columns, 3 * patch**2).to(dtype)
