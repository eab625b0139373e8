"""A model's weights out of a checkpoint, for whoever goes on with them: a next stage, an evaluation, a generation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megavlm.platform.errors import InputError

from .safe_load import load_state

if TYPE_CHECKING:
    from ..model import VisionLanguageModel


def fill(model: VisionLanguageModel, folder: Path) -> None:
    """Read this rank's part of every weight, whatever layout wrote it.

    Raises InputError naming the first weight that is not there, or when the checkpoint holds more than tensors.
    """
    missing = model.load_parts(load_state(model.sharded_state_dict(), folder))
    if missing:
        raise InputError(f"the checkpoint has no weight '{missing[0]}'", where=str(folder), fix="is it this model's?")
