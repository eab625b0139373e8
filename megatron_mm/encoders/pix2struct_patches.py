"""Pix2Struct's image processor as tensor code: it runs where the tiles are, which is the GPU in training.

The released Eagle (arXiv 2408.15998) brings every tile back to the CPU and to NumPy in each forward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def flattened_patches(tiles: Tensor, patch: int, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Tiles [n, 3, h, w], uint8 or float, in 0..255 -> [n, rows * columns, patch**2 * 3] of `dtype`.

    Patches are in reading order, a patch vector is (row, column, channel). A tile has mean 0 and deviation 1 over all
    its values, and is then scaled to `grid` whole patches, bilinear with antialiasing. The deviation is never taken for
    less than 1/sqrt(values), as by tf.image.per_image_standardization. The arithmetic is float32 whatever `dtype` is.
    """
    pixels = tiles.to(torch.float32, copy=True)  # ours, so that it may be centred in place: memory is what this costs
    pixels -= pixels.mean(dim=(1, 2, 3), keepdim=True)
    count = pixels[0].numel()
    # By lines first: a CPU would add three million squares one after another in float32.
    lines = torch.linalg.vector_norm(pixels, dim=3, keepdim=True)
    deviation = torch.linalg.vector_norm(lines, dim=(1, 2), keepdim=True) / count**0.5
    rows, columns = grid
    scaled = F.interpolate(
        pixels, size=(rows * patch, columns * patch), mode="bilinear", align_corners=False, antialias=True
    )
    normed = scaled / deviation.clamp(min=count**-0.5)  # after scaling, which is linear, there are fewer
    patches = normed.view(len(tiles), 3, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(len(tiles), rows * columns, 3 * patch**2).to(dtype)
