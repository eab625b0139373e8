"""A teacher's weights out of a published folder: an encoder by itself, or as part of a larger model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megavlm.platform.errors import InputError

from .published import Published

if TYPE_CHECKING:
    from ..model import VisionLanguageModel

PREFIX = "vision_model."  # published files have it; what transformers 5 writes of a vision model alone has not


@torch.no_grad()
def fill_teacher(model: VisionLanguageModel, folder: Path) -> None:
    """Give the teacher the weights in `folder`, which have its own names: those of the published checkpoints.

    Raises InputError naming the first one that is not there, or has another shape.
    """
    assert model.teacher is not None
    published = Published(folder)
    for name, parameter in model.teacher.objectives["teacher"].named_parameters():
        found = _named(published, name)
        if found is None or published.tensors[found].shape != tuple(parameter.shape):
            has = "not there" if found is None else f"{list(published.tensors[found].shape)} there"
            raise InputError(
                f"the teacher's weight '{name}' {list(parameter.shape)} is {has}",
                where=str(folder),
                fix="is it the encoder that model.objectives says?",
            )
        parameter.copy_(published.read(found))


def _named(published: Published, name: str) -> str | None:
    return next((each for each in (name, name.removeprefix(PREFIX)) if each in published.tensors), None)
