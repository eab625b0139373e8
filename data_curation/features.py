"""Features on disk: zarr v3, one array [n, d] float16 per shard, rows in the order of the embed sidecar."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .run import CurationRun

ROWS_PER_CHUNK = 8192


def write_features(path: Path, features: np.ndarray) -> None:
    """Write beside and rename: the array is whole or absent."""
    zarr = _zarr()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    chunks = (min(ROWS_PER_CHUNK, max(1, len(features))), max(1, features.shape[1]))
    array = zarr.create_array(beside, shape=features.shape, chunks=chunks, dtype="float16", compressors=None)
    array[...] = features.astype(np.float16)
    shutil.rmtree(path, ignore_errors=True)
    beside.rename(path)


def read_features(run: CurationRun, shard: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """float32 [n, d]: rows start..stop of one shard, to its end when `stop` is None."""
    return read_half(run, shard, start, stop).astype(np.float32)


def read_half(run: CurationRun, shard: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The same as they are stored, in float16."""
    array = _zarr().open_array(run.folder.path("embed", f"{shard}.zarr"), mode="r")
    return np.asarray(array[start:stop])


def _zarr() -> ModuleType:
    """zarr with one thread: by default it reads with many, each of which keeps freed memory of its own."""
    import zarr

    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    return zarr


def unit(features: np.ndarray, mean: np.ndarray | float = 0.0) -> np.ndarray:
    """Rows minus `mean`, at length 1 (a zero row stays zero), so that a dot product is a cosine."""
    centered = features - mean
    return centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
