"""Weights that torch.save wrote (.bin, .pth), read without running anything that is in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavlm.platform.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# Where training scripts keep the weights among other things, as EVA's do: averaged over the steps, or as they are.
STATES = ("ema_state", "module")
ASKED = re.compile(r"GLOBAL (\S+)")  # what a refused pickle wanted called, in torch's words


class TorchFile:
    """A file of torch.save, mapped into memory; refused where it holds anything but tensors by name.

    Its tensors may be one entry of it, named as in STATES. `beside` are its other entries, which are not read.
    """

    def __init__(self, file: Path) -> None:
        held = _loaded(file)
        state = next((name for name in STATES if isinstance(held, dict) and isinstance(held.get(name), dict)), None)
        self.beside = [str(name) for name in held if name != state] if state else []
        self._tensors = held[state] if state else held
        if not _are_tensors(self._tensors):
            raise InputError("holds something else than tensors by name", where=str(file), fix="save it as safetensors")

    def names(self) -> list[str]:
        """The names of its tensors."""
        return [str(name) for name in self._tensors]

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a tensor."""
        tensor = self._tensors[name]
        return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")

    def get_tensor(self, name: str) -> Tensor:
        """A tensor, over the mapped file."""
        return self._tensors[name]


def _loaded(file: Path) -> Any:
    import torch

    try:
        # files of torch before 1.6 are no archives, and cannot be mapped
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        asked = ASKED.search(str(error))
        if asked is None:
            raise
        raise InputError(
            f"is no file of weights alone: loading it would call {asked[1]}",
            where=str(file),
            fix="take the safetensors where there are some, or save its tensors anew where you trust it",
        ) from None


def _are_tensors(held: Any) -> bool:
    import torch

    return isinstance(held, dict) and all(torch.is_tensor(each) for each in held.values())
