"""Image bytes to RGB arrays, and the tiling geometry of dynamic high resolution. No torch."""

from __future__ import annotations

from .decode import BadImage, ImageInfo, decode, probe
from .tiling import candidate_grids, choose_grid, tile_count, tile_image

__all__ = ["BadImage", "ImageInfo", "candidate_grids", "choose_grid", "decode", "probe", "tile_count", "tile_image"]
