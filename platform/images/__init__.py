"""Image bytes to RGB arrays, and the tiling geometry of dynamic high resolution. No torch."""

from __future__ import annotations

from .decode import BadImage, ImageInfo, probe
from .decoders import IMAGE_DECODERS, Decoded, ImageDecoder, decode, decode_tiles, load_decoder
from .rules import TILINGS, Tiling
from .tiling import (
    ImageTiles,
    Size,
    TilePlace,
    candidate_grids,
    choose_grid,
    image_tiles,
    places,
    tile_count,
    tile_image,
)

__all__ = [
    "IMAGE_DECODERS",
    "TILINGS",
    "BadImage",
    "Decoded",
    "ImageDecoder",
    "ImageInfo",
    "ImageTiles",
    "Size",
    "TilePlace",
    "Tiling",
    "candidate_grids",
    "choose_grid",
    "decode",
    "decode_tiles",
    "image_tiles",
    "load_decoder",
    "places",
    "probe",
    "tile_count",
    "tile_image",
]
