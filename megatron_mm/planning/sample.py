"""A stage's typical sample, where no data are at hand: one image cut as its rule cuts a photo, and text. No torch."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from megavlm.platform.errors import ConfigError
from megavlm.platform.images import ImageTiles, places

from ..config import ModelConfig
from ..data.build import StageData

PHOTO = (1024, 768)  # pixels, as most cameras have them: NVLM's rule makes 6 tiles and a thumbnail of it (its table 3)
TAG = 5  # tokens of a tile's tag, as in NVLM's scripts (261 a tile)


class Words(NamedTuple):
    """Tokens of text and tags beside an image, usually and at least."""

    usual: int
    least: int


# Usual: what table 3 of NVLM has (X's 1024; D's 2816 and H's 1280 less the visual tokens), and what its pretraining's
# 512 positions leave beside a tile (DenseFusion's captions have 191 words on average). Least is our guess: a system
# prompt, a question and a word; an alt text.
TALK, CAPTION = Words(1024, 64), Words(256, 16)


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one holds. tokens: in the sequence, visual ones too. context: visual ones and tags beside it.

    context_tiles: of `tiles`, those beside the sequence.
    """

    tokens: int
    tiles: int = 0
    visual: int = 0
    context: int = 0
    context_tiles: int = 0
    image: ImageTiles | None = None


def typical(spec: StageData, tokens: int | None = None, tiles: int | None = None) -> Sample:
    """The stage's sample, of so many tokens (visual ones included) and tiles where they are given.

    Raises ConfigError where the sequence has no room for it, or the rule makes no image of so many tiles.
    """
    room = spec.stage.mixture.sequence_length
    image = spec.model.tiling.plan(*PHOTO) if tiles is None else _image(spec.model, tiles)
    seen = shown(spec.model, image)
    wanted = min(seen.tokens + words_of(spec).usual, room) if tokens is None else tokens
    if not seen.tokens <= wanted <= room:
        raise ConfigError(
            f"a sample of {wanted} tokens with {seen.tokens} visual ones, and a pack holds {room}",
            where=f"stages.{spec.name}.mixture.sequence_length",
            fix=f"say samples of {seen.tokens} to {room} tokens, or fewer tiles",
        )
    return dataclasses.replace(seen, tokens=wanted)


def words_of(spec: StageData) -> Words:
    """The text that a sample of this stage is taken to have."""
    return CAPTION if spec.data.template.captions else TALK


def shown(model: ModelConfig, image: ImageTiles | None) -> Sample:
    """An image without any text: its visual tokens alone are `tokens`."""
    if image is None:
        return Sample(0)
    each, put = model.tile_tokens(image), model.injection.placement
    spots = [put(place) for place in places(image, model.tiling.makes_thumbnails)]
    inside, beside = sum(spot.inline for spot in spots), sum(not spot.inline for spot in spots)
    tags = sum(not spot.tag_inline for spot in spots) * TAG
    return Sample(inside * each, len(spots), inside * each, beside * each + tags, beside, image)


def least(spec: StageData, image: ImageTiles) -> int:
    """Tokens of the shortest sample with this image: tags and a few words of text beside what is visual."""
    seen, put = shown(spec.model, image), spec.model.injection.placement
    spots = [put(place) for place in places(image, spec.model.tiling.makes_thumbnails)]
    return seen.visual + sum(bool(spot.tag) and spot.tag_inline for spot in spots) * TAG + words_of(spec).least


def _image(model: ModelConfig, tiles: int) -> ImageTiles | None:
    """An image that is cut into so many tiles, a thumbnail among them; None for no tile."""
    if tiles == 0:
        return None
    if tiles == 1:
        return model.tiling.plan(model.tiling.tile, model.tiling.tile)
    extra = int(model.tiling.makes_thumbnails)
    if not 1 < tiles - extra <= model.tiling.most_tiles:
        most = model.tiling.most_tiles + extra * (model.tiling.most_tiles > 1)
        what = f"a sample with an image of {tiles} tiles, and '{model.tiling.name}' makes no such image"
        raise ConfigError(what, where="model.tiling", fix=f"say 0, 1 or up to {most} tiles, or change model.tiling")
    return ImageTiles(tiles, tiles - extra, 1)
