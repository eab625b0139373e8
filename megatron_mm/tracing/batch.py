"""A rank's part of a global batch of the sizes that a load tells, its pixels fake: put together as the loader does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING

from megavlm.platform.images import ImageTiles

from ..config import ModelConfig
from ..contracts import PackedBatch, Sizes, StepBatch
from ..costs import MicroBatch
from ..data.as_torch import to_torch
from ..data.assemble import Prepared, assemble
from ..data.build import StageData
from ..data.conversation import Chat
from ..data.encoded import Encoded
from ..data.loader import shares_of
from ..data.measure import template
from ..data.samples import IMAGE_MARK
from ..data.shares import Seat
from ..data.templates.chatml import ChatML
from ..data.tokenizer import load_tokenizer
from ..planning.contracts import Load
from ..tiles import Tiles, VariedTiles

if TYPE_CHECKING:
    from torch import Tensor

PIXELS = 1000  # of an image's side to one of its shape, so that none is too small for its tiles
SIDES = range(1, 7)


@dataclasses.dataclass(frozen=True)
class Pack:
    """A packed sequence without its tiles, how many it has, and their sizes in pixels where these differ."""

    batch: PackedBatch
    tiles: int
    sizes: Sizes


def step_batch(spec: StageData, seat: Seat, load: Load, pixels: Callable[..., Tensor]) -> StepBatch:
    """The step that a rank is walked through; `pixels(*shape)` makes its tiles, uint8.

    Of its replica's packs as many are the heaviest one as stages of the pipeline hold at once, and all others of the
    global batch average: an unlucky moment of a usual step.
    """
    dp, _, _ = seat.grid.place(seat.member)
    counts = [_packs(spec, load.packs, seat.grid.dp, replica) for replica in range(seat.grid.dp)]
    usual = _usual(spec, load.of, sum(counts))
    replicas = [usual[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)]
    worst = min(counts[dp], spec.stage.parallel.pp + 1)
    mine = replicas[dp] = [_pack(spec, load.most)] * worst + replicas[dp][worst:]
    every = [pack for packs in replicas for pack in packs]
    varied = spec.model.tiling.step is not None
    sizes = tuple(chain.from_iterable(pack.sizes for pack in every)) if varied else None
    shares = shares_of(spec.model, seat.grid, [[pack.tiles for pack in packs] for packs in replicas], sizes)
    tiles = _pixels(spec.model, shares.decodes(seat.member, seat.tp, seat.tp_rank), sizes, pixels)
    return StepBatch([pack.batch for pack in mine], [None] * len(mine), tiles, shares, sizes=sizes)


def _packs(spec: StageData, packs: int, replicas: int, number: int) -> int:
    """How many a replica has: at least one, and as an interleaved pipeline wants them (training/loop.py)."""
    multiple = spec.stage.parallel.pp if spec.stage.parallel.vp > 1 else 1
    return max(1, -(-(packs // replicas + (number < packs % replicas)) // multiple)) * multiple


def _usual(spec: StageData, of: MicroBatch, count: int) -> list[Pack]:
    """So many packs, which together have the load's tiles: some have one more than others."""
    tiles = [int((k + 1) * of.tiles) - int(k * of.tiles) for k in range(count)]
    kinds = {n: _pack(spec, dataclasses.replace(of, tiles=n, visual=_visual(of, n), context=0)) for n in set(tiles)}
    return [kinds[n] for n in tiles]


def _visual(of: MicroBatch, tiles: int) -> float:
    """Tokens of so many of its tiles, in the sequence or beside it."""
    return (of.visual + of.context) * tiles / max(of.tiles, 1)


def _pack(spec: StageData, of: MicroBatch) -> Pack:
    """A pack of so many samples, each with its share of the tiles and of the positions."""
    model, samples = spec.model, max(round(of.samples), 1)
    tokenizer = load_tokenizer("mini")  # the recipe's own may have to be downloaded; only lengths matter
    chat = template(model, tokenizer, ChatML(system=""))
    images = [_images(model, tiles, of) for tiles in _shared(round(of.tiles), samples)]
    written = _written(chat, images, round(of.positions), tokenizer.padding)
    prepared = [
        Prepared(encoded, (), weight=1.0, sizes=tuple(model.tiling.size(each) for each in some))
        for encoded, some in zip(written, images, strict=True)
    ]
    side, length = model.tiling.side, spec.stage.mixture.sequence_length
    arrays = assemble(prepared, length, side, tokenizer.padding, model.injection.has_context)
    return Pack(to_torch(arrays), sum(image.tiles for some in images for image in some), arrays.sizes or ())


def _written(chat: Chat, images: Sequence[Sequence[ImageTiles]], positions: int, padding: int) -> list[Encoded]:
    """Short conversations about these images, filled up to so many positions; without a word where they don't fit."""
    found = [chat.encode(_talk(len(some)), some) for some in images]
    rest = positions - sum(len(each.tokens) for each in found)
    if rest < 0:
        found = [chat.blank(some, 0) for some in images]
        rest = positions - sum(len(each.tokens) for each in found)
    more = _shared(max(rest, 0), len(found))
    return [each.padded(len(each.tokens) + n, padding) for each, n in zip(found, more, strict=True)]


def _talk(images: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": IMAGE_MARK * images + "?"}, {"role": "assistant", "content": "!"}]


def _images(model: ModelConfig, tiles: int, of: MicroBatch) -> list[ImageTiles]:
    """Images of so many tiles together, each of as many as may be, and of the tokens that tiles have in the load."""
    shapes = {model.tiling.plan(PIXELS * width, PIXELS * height) for width in SIDES for height in SIDES}
    each = (of.visual + of.context) / max(of.tiles, 1)
    found: list[ImageTiles] = []
    while left := tiles - sum(image.tiles for image in found):
        fitting = [shape for shape in shapes if shape.tiles <= left]
        found.append(min(fitting, key=lambda image: (-image.tiles, abs(model.tile_tokens(image) - each), image)))
    return found


def _shared(total: int, parts: int) -> list[int]:
    """Whole numbers that add up to `total`, as even as can be."""
    return [total * (k + 1) // parts - total * k // parts for k in range(parts)]


def _pixels(model: ModelConfig, share: range, sizes: Sizes | None, pixels: Callable[..., Tensor]) -> Tiles:
    if sizes is None:
        return pixels(len(share), 3, model.tiling.tile, model.tiling.tile)
    own = sizes[share.start : share.stop]
    return VariedTiles(pixels(sum(3 * height * width for height, width in own)), own)
