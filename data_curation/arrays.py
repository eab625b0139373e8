"""Arrays on disk: .npy files, whole or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .shuffle import whole


def write_array(path: Path, array: np.ndarray) -> None:
    """A .npy file, written beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as beside, beside.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray:
    """The inverse of write_array; nothing is unpickled."""
    return np.load(path, allow_pickle=False)
