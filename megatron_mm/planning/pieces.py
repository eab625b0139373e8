"""The costs of a recipe's model, put together of what its axes say of themselves. Loads no torch."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

from ..costs import Cost, MicroBatch, Setting
from ..decoders.costs import shape_of
from ..parts import axis_of
from ..transformer_costs import core_kept, own_rows
from .contracts import Load, Pieces, Recompute

if TYPE_CHECKING:
    from ..config import ModelConfig


def pieces_of(model: ModelConfig, load: Load, setting: Setting, recompute: Recompute) -> Pieces:
    """Of the load's average micro-batch, and of a tile of the size that most of its images have."""
    micro = load.of
    layers, added = _layers(model, micro, setting, recompute)
    embedding, _, head = model.decoder.costs(micro, setting)
    objectives = sum((each.cost(model, micro, setting) for each in model.objectives), Cost())
    return Pieces(
        tower=tower_of(model, tile_size(model, load), setting),
        embedding=embedding,
        layers=layers,
        added=added,
        objectives=objectives,
        head=head,
        teacher=tuple(cost for each in model.objectives for cost in each.teacher_costs(setting)),
        hidden=own_rows(micro.positions, setting) * model.decoder.hidden * setting.size,
    )


def tower_of(model: ModelConfig, size: tuple[int, int], setting: Setting) -> tuple[Cost, ...]:
    """Encoder, block by block, and connector, for one tile of this height and width; each with its part named."""
    encoder = model.encoder if model.tiling.step is None else model.encoder.at(*size)
    blocks = [dataclasses.replace(block, part=block.part or "encoder") for block in encoder.costs(setting)]
    connector = model.connector.cost(encoder.maps, model.width, setting)
    return (*blocks, dataclasses.replace(connector, part="connector"))


def tile_size(model: ModelConfig, load: Load) -> tuple[int, int]:
    """Height and width in pixels of the tiles that are most of the load's; the encoder's own where it has none."""
    counts: Counter[tuple[int, int]] = Counter()
    for image, count in load.amounts.cuts:
        counts[model.tiling.size(image)] += count * image.tiles
    side = model.tiling.tile
    return max(counts, key=lambda size: (counts[size], size)) if counts else (side, side)


@cache
def learns(part: str, train: tuple[str, ...]) -> bool:
    """Whether a part, or anything inside it, is trained."""
    return part in train or axis_of(part) in train or part in map(axis_of, train)


def pixels(size: tuple[int, int]) -> int:
    """Of a tile."""
    return math.prod(size)


def _layers(
    model: ModelConfig, micro: MicroBatch, setting: Setting, recompute: Recompute
) -> tuple[tuple[Cost, ...], tuple[Cost, ...]]:
    """(every layer, what the injection adds to it): selective recomputation does without what core attention keeps."""
    decoder, injection = model.decoder, model.injection
    _, whole, _ = decoder.costs(micro, setting)
    if recompute == "selective":
        less = core_kept(shape_of(decoder), micro.positions, setting)
        whole = dataclasses.replace(whole, kept=whole.kept - less, passing=whole.passing - less)
    own = whole.times(injection.left(micro))
    added = tuple(injection.cost(number, micro, decoder, setting) for number in range(decoder.layers))
    return tuple(own + each for each in added), added if any(each.weights for each in added) else ()
