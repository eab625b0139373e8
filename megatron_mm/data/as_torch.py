"""A packed sequence of numpy arrays as the contract's tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..contracts import Context, PackedBatch
from ..tiles import as_tiles
from .assemble import PackArrays
from .context import ContextArrays


def to_torch(arrays: PackArrays) -> PackedBatch:
    """Add the batch axis of one and hand the arrays over without a copy."""
    tensors = _tensors(arrays, ("tokens", "labels", "loss_weights", "position_ids"))
    elsewhere = arrays.sizes and not arrays.tiles.size
    tensors["tiles"] = as_tiles(arrays.tiles, () if elsewhere else arrays.sizes)
    context = None if arrays.context is None else Context(**_tensors(arrays.context, ("tags",)))
    return PackedBatch(**tensors, context=context, sizes=arrays.sizes)


def _tensors(arrays: PackArrays | ContextArrays, with_batch_axis: Sequence[str]) -> dict[str, Any]:
    values = {f.name: getattr(arrays, f.name) for f in dataclasses.fields(arrays)}
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return tensors | {name: tensors[name][None] for name in with_batch_axis}
