"""What an injection is: where a tile's tag and tokens go, and what that changes in the decoder's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt

from megavlm.platform.config import Config
from megavlm.platform.images import places

from ..costs import Cost, MicroBatch, Setting
from ..flops import Flops
from .tags import Placement, Tags, tag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megatron.core.transformer.spec_utils import ModuleSpec

    from megavlm.platform.images import ImageTiles, TilePlace

    from ..config import Parallel
    from ..contracts import BuildContext
    from ..decoders.base import Decoder
    from .model import Injected


class Injection(Config):
    """Base of the injections. This one changes no layer of the decoder; its tiles go where `placement` says."""

    has_context: ClassVar[bool] = False  # some tiles are read from beside the sequence, and on every pipeline stage

    name: str
    tags: Tags = "1d"
    tag_digits: PositiveInt = 1  # 2 where an image may have more than 9 tiles, so that all tags have one length

    def placement(self, place: TilePlace) -> Placement:
        """Where a tile's tag and its visual tokens go."""
        raise NotImplementedError

    def tag(self, place: TilePlace) -> str:
        """The text that names a tile."""
        return tag(self.tags, place, self.tag_digits)

    def context_tiles(self, image: ImageTiles, thumbnail: bool) -> int:
        """How many of an image's tiles are read from beside the sequence."""
        return sum(not self.placement(place).inline for place in places(image, thumbnail)) if self.has_context else 0

    def parameters(self, decoder: Decoder) -> int:
        """Parameters of the injection's own."""
        return 0

    def flops(self, tokens: int, context: int, pairs: int, decoder: Decoder) -> Flops:
        """Forward FLOPs for so many text tokens beside images, tokens of contexts, and pairs of both that meet."""
        return Flops()

    def cost(self, layer: int, micro: MicroBatch, decoder: Decoder, setting: Setting) -> Cost:
        """What it adds to the decoder's layer of this number, from 0, on one process, for a micro-batch."""
        return Cost()

    def left(self, micro: MicroBatch) -> float:
        """Which share of a micro-batch's rows goes through the decoder's own weights, from 0 to 1."""
        return 1.0

    def owns(self, name: str) -> bool:
        """Whether a parameter inside the decoder, by its name there, is the injection's."""
        return False

    def copied_from(self, name: str) -> str | None:
        """The decoder's parameter that one of the injection's own begins as a copy of, by their names there."""
        return None

    def layer_specs(self, specs: Mapping[int, ModuleSpec], decoder: Decoder) -> list[ModuleSpec]:
        """The decoder's layers, given by their numbers in the whole decoder from 0, as this injection wants them."""
        return list(specs.values())

    def check(self, parallel: Parallel, decoder: Decoder) -> None:
        """Raise ConfigError where this injection cannot be split over `parallel`."""

    def build(self, ctx: BuildContext, tokens_per_tile: int) -> Injected:
        """The module that puts visual tokens where they go."""
        from .model import Injected

        return Injected(tokens_per_tile)
