"""A stage that starts from a checkpoint of another run, which may hold some of the model's axes only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.listing import imported_parts, lacking_of
from ..checkpoints.weights import fill, shapes_of
from ..parts import AXES, OWNERS, axis_of

if TYPE_CHECKING:
    from ..model import VisionLanguageModel


def fill_parts(model: VisionLanguageModel, checkpoint: Path) -> None:
    """Read this rank's part of every weight of the axes that the checkpoint holds, and leave the others as they are.

    But those that begin as copies of weights which it holds become that. Raises InputError for a checkpoint that is
    damaged, or of another model.
    """
    held, lacking = parts_of(checkpoint), lacking_of(checkpoint)

    def is_left(axis: str, inside: str) -> bool:
        if axis not in held and axis == "injection":
            axis, inside = "decoder", model.spec.injection.copied_from(inside) or ""
        return not inside or axis not in held or within(f"{axis}.{inside}", lacking)

    fill(model, checkpoint, skip=is_left)


def parts_of(checkpoint: Path) -> list[str]:
    """The axes that a complete checkpoint holds, all of them unless it was imported; and the objectives, where it has
    weights of theirs."""
    told = imported_parts(checkpoint)
    if told is not None:
        return told
    extra = sorted({axis_of(name) for name in shapes_of(checkpoint)} & (set(OWNERS) - set(AXES)))
    return [*AXES, *extra]


def within(name: str, modules: list[str]) -> bool:
    """Whether a dotted name is one of `modules`, or lies in one."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)
