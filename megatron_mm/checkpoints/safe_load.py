"""Loading a checkpoint without running anything that is written in it.

torch.distributed.checkpoint keeps its index, and every object that is no tensor, as a pickle, and reads both without
restriction. A checkpoint is a file that people pass on; so its index is read with a list of known names first, and
objects only the way weights are.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing

from megavlm.platform.errors import InputError

INDEX = ".metadata"
_CHECKPOINT = "torch.distributed.checkpoint."
KNOWN = {
    _CHECKPOINT + "metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    _CHECKPOINT + "planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
    _CHECKPOINT + "filesystem": {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
}  # fmt: skip
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch.load then refuses what could run code, whatever its caller asked for


def load_state(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """dist_checkpointing.load of `state` from `folder`; raises InputError where it holds foreign objects."""
    check_index(folder)
    with _weights_only():
        try:
            return dist_checkpointing.load(state, str(folder))
        except pickle.UnpicklingError as error:
            raise _refused(folder, error) from None


def check_index(folder: Path) -> None:
    """Raise InputError when the checkpoint's pickled index names anything but places of tensors."""
    try:
        with (folder / INDEX).open("rb") as file:
            _Index(file).load()
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise _refused(folder, error) from None


def _refused(folder: Path, error: Exception) -> InputError:
    return InputError(
        f"the checkpoint is damaged or none of ours: {error}", where=str(folder), fix="load only what `train` wrote"
    )


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if name in KNOWN.get(module, ()) or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its index asks for {module}.{name}")


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        os.environ.pop(FORCE)
        if before is not None:
            os.environ[FORCE] = before
