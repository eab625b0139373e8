"""How an encoder of several experts has each of them look at the tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer.utils import sharded_state_dict_default
from torch import Tensor, nn

from ..contracts import FeatureMap
from ..maps import MapShape
from ..tiles import Tiles


def at_side(tiles: Tensor, side: int) -> Tensor:
    """Tiles [n, 3, S, S] of 0..255 as [n, 3, side, side]: float32 where that is another size, otherwise as they are.

    Bilinear with aligned corners and without clamping, as Eagle's multi_backbone and LLaVA-HR's MultiPath tower resize
    what their CLIP sees. They resize normalised pixels. An affine map of each channel commutes with taking weighted
    means, so an encoder may as well normalise afterwards.
    """
    if tuple(tiles.shape[2:]) == (side, side):
        return tiles
    return F.interpolate(tiles.float(), size=(side, side), mode="bilinear", align_corners=True)


def look(expert: nn.Module, tiles: Tiles) -> list[FeatureMap]:
    """The expert's feature maps. One whose weights are all frozen keeps nothing for a backward that won't come."""
    needs_grad = tiles.requires_grad or any(p.requires_grad for p in expert.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and needs_grad):
        return expert(tiles)


def nothing_seen(maps: Sequence[MapShape], like: nn.Module) -> list[FeatureMap]:
    """The feature maps of no tiles, of `like`'s dtype and on its device: no expert is asked, and there is no graph."""
    weight = next(like.parameters())
    images = torch.arange(0, device=weight.device)
    return [
        FeatureMap(weight.new_empty(0, shape.channels), shape.grid, images, expert=shape.expert, layer=shape.layer)
        for shape in maps
    ]


def sharded(each: Mapping[str, nn.Module], prefix: str, offsets: tuple, metadata: dict | None) -> dict[str, Any]:
    """The sharded state of modules by name, each by its own rule: most are whole everywhere, InternViT is split."""
    group = parallel_state.get_tensor_model_parallel_group()
    state: dict[str, Any] = {}
    for name, module in each.items():
        state |= sharded_state_dict_default(module, f"{prefix}{name}.", offsets, metadata, group)
    return state
