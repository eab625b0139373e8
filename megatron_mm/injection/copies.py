"""Weights that begin as copies of others. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..parts import place_of

if TYPE_CHECKING:
    from ..config import ModelConfig


def original(model: ModelConfig, name: str) -> str | None:
    """The weight that a weight begins as a copy of, by their names in a model's sharded state; None for no copy."""
    axis, inside = place_of(model, name)
    other = model.injection.copied_from(inside) if axis == "injection" else None
    return None if other is None else f"decoder.{other}"
