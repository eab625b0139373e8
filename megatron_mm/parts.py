"""What a stage trains, freezes or draws anew: axes, and the parts of them that have names. Loads no torch.

A part is written behind its axis: `encoder.sam`, `connector.fuser`. Specs say which there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import StringConstraints

if TYPE_CHECKING:
    from .config import ModelConfig

AXES = ("encoder", "connector", "injection", "decoder")
OWNERS = (*AXES, "objectives")  # who has weights: the axes, which are exported, and what only training needs
Part = Annotated[str, StringConstraints(pattern=rf"^({'|'.join(OWNERS)})(\.\w+)?$")]


def axis_of(part: str) -> str:
    """The axis of a part, and of an axis itself."""
    return part.partition(".")[0]


def place_of(model: ModelConfig, name: str) -> tuple[str, str]:
    """The axis of a weight, and its name there, by what it is called in a model's sharded state.

    The injection's may stand in the decoder's layers.
    """
    axis, _, inside = name.partition(".")
    return ("injection" if axis == "decoder" and model.injection.owns(inside) else axis), inside


def holds(part: str, axis: str, inside: str) -> bool:
    """Whether a part has the weight that is called `inside` in its axis.

    One of the first two components of such a weight's name is the part's: `experts.sam.neck...`, `fuser.gamma1`.
    """
    wanted, _, name = part.partition(".")
    return axis == wanted and (not name or name in inside.split(".")[:2])


def narrowest(parts: Iterable[str], axis: str, inside: str) -> str | None:
    """Of those parts that have a weight the one that says most: a part before its axis. None where none has it."""
    return max((part for part in parts if holds(part, axis, inside)), key=len, default=None)
