"""What a published CLIP has behind the layer that is read, for readers that miss it. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .formats import Constant
from .neutral import full, norm

if TYPE_CHECKING:
    from ..encoders.clip import Clip


def behind(of: Clip, place: str) -> Iterator[Constant]:
    """CLIP's layers behind the last one that is read, and the norm after them; `place` ends in `vision_model.`."""
    yield from norm(f"{place}post_layernorm", of.hidden)
    for number in range(of.depth, of.layers):
        yield from _layer(of, f"{place}encoder.layers.{number}.")


def _layer(of: Clip, place: str) -> Iterator[Constant]:
    """A layer that gives what it is given: its linears are zero."""
    width = of.hidden
    linears = dict.fromkeys([f"self_attn.{each}_proj" for each in ("q", "k", "v", "out")], (width, width))
    for name, (rows, columns) in (linears | {"mlp.fc1": (of.ffn, width), "mlp.fc2": (width, of.ffn)}).items():
        yield Constant(f"{place}{name}.weight", (rows, columns), full(0.0, rows, columns))
        yield Constant(f"{place}{name}.bias", (rows,), full(0.0, rows))
    yield from norm(f"{place}layer_norm1", width)
    yield from norm(f"{place}layer_norm2", width)
