"""Checkpoints tensor by tensor: written from tensors that are made when their turn comes, read without a model.

The format is megatron-core's torch_dist, which is torch.distributed.checkpoint's with two small files beside it. Any
layout of ours reads what is written here, and what any layout wrote is read here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megavlm.platform.errors import InputError
from megavlm.platform.storage import safe_join

from ..checkpoints.safe_load import check_index
from .ours import Slot


@dataclass(frozen=True)
class Late:
    """A tensor that is not there yet: where it belongs, of what dtype it will be, and how it is had."""

    slot: Slot
    dtype: torch.dtype
    read: Callable[[], Tensor]


def write_tensors(folder: Path, tensors: Sequence[Late]) -> None:
    """Write the tensors to a new checkpoint in `folder`, one after the other in this order, none of them kept."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is meant to be one process
        dcp.save({}, storage_writer=_Writer(folder), planner=_LateSaves(tensors), no_dist=True)
    torch.save({}, folder / "common.pt")
    save_config(CheckpointingConfig("torch_dist"), str(folder))


class _Writer(dcp.FileSystemWriter):
    """torch's, without a path in the index, which is read without knowing paths."""

    def storage_meta(self) -> None:
        return None


class _LateSaves(DefaultSavePlanner):
    """torch's planner, for tensors that no state dict holds: it asks for each when it is to be written."""

    def __init__(self, tensors: Sequence[Late]) -> None:
        super().__init__(flatten_state_dict=False)
        self._tensors = {(each.slot.key, torch.Size(_chunk(each.slot).offsets)): each for each in tensors}

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(each) for each in self._tensors.values()])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        index = write_item.index
        assert index.offset is not None
        each = self._tensors[index.fqn, index.offset]
        return each.read().reshape(_chunk(each.slot).sizes)


def _write_item(each: Late) -> WriteItem:
    chunk, slot = _chunk(each.slot), each.slot
    data = TensorWriteData(chunk, TensorProperties(dtype=each.dtype), torch.Size(slot.among + slot.shape))
    return WriteItem(MetadataIndex(slot.key, chunk.offsets), WriteItemType.SHARD, tensor_data=data)


def _chunk(slot: Slot) -> ChunkStorageMetadata:
    """The part of its tensor that a parameter is."""
    ones = (1,) * len(slot.lead)
    return ChunkStorageMetadata(torch.Size(slot.lead + (0,) * len(slot.shape)), torch.Size(ones + slot.shape))


class Stored:
    """Reads a checkpoint's weights one parameter at a time; raises InputError for a checkpoint that is none of ours."""

    def __init__(self, folder: Path) -> None:
        check_index(folder)
        self.folder = folder
        self._reader = dcp.FileSystemReader(folder)
        self._index = self._reader.read_metadata()
        for place in self._index.storage_data.values():
            safe_join(folder, place.relative_path)
        self._reader.set_up_storage_reader(self._index, is_coordinator=True)

    def dtype(self, slot: Slot) -> torch.dtype:
        """What a parameter is stored as; raises InputError where the checkpoint hasn't it."""
        return self._tensor(slot).properties.dtype

    def shape(self, slot: Slot) -> tuple[int, ...]:
        """The size of the tensor that a parameter is stored in: with the layers in front, a vocabulary as padded."""
        return tuple(self._tensor(slot).size)

    def read(self, slot: Slot) -> Tensor:
        """The whole parameter, [*slot.shape]; of a padded vocabulary, the rows that mean something.

        Raises InputError where the checkpoint hasn't it, or not all of it.
        """
        tensor, chunk = self._tensor(slot), _chunk(slot)
        whole = torch.empty(tuple(chunk.sizes), dtype=tensor.properties.dtype)
        items = create_read_items_for_chunk_list(slot.key, tensor, [chunk])
        if sum(math.prod(item.lengths) for item in items) != whole.numel():
            what = f"the checkpoint's '{slot.key}' is {list(tensor.size)}, the model's {list(slot.among + slot.shape)}"
            raise InputError(what, where=str(self.folder), fix="give the recipe that it was trained with")
        self._reader.read_data(LoadPlan(items), _Into(whole)).wait()
        return whole.reshape(slot.shape)

    def _tensor(self, slot: Slot) -> TensorStorageMetadata:
        found = self._index.state_dict_metadata.get(slot.key)
        if isinstance(found, TensorStorageMetadata):
            return found
        raise InputError(
            f"the checkpoint has no weight '{slot.key}'", where=str(self.folder), fix="is it this model's?"
        )


class _Into(DefaultLoadPlanner):
    """Puts what is read into one tensor."""

    def __init__(self, whole: Tensor) -> None:
        super().__init__()
        self._whole = whole

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        places = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self._whole[tuple(slice(start, start + size) for start, size in places)]

    def commit_tensor(self, read_item: ReadItem, tensor: Any) -> None:
        """It is in its place already."""
