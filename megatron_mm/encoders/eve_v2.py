"""EVEv2's patch embedding (Diao et al. 2025, arXiv 2502.06788): two convolutions, straight to the decoder's width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from ..costs import Cost, Setting
from ..tower_costs import Forward
from .patches import PatchEmbedding

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .eve_v2_model import EveV2Model


class EveV2(PatchEmbedding):
    """A convolution over patches, exact GELU, and one over pool x pool of them; both have a bias.

    The defaults are EVEv2's at an area of 800 x 800 pixels; 1600 x 1600 is image_size=1600 with the same weights.
    """

    name: Literal["eve_v2"] = "eve_v2"
    image_size: PositiveInt = 800  # side of a square of the tiling's area
    patch_size: PositiveInt = 16
    hidden: PositiveInt = 1024  # between the convolutions
    channels: PositiveInt = 3584  # the decoder's width, where the connector has no MLP: Qwen2.5-7B's

    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """Of one tile: both convolutions and the GELU between them, all of it computed again at once."""
        f = Forward(setting)
        f.weigh((self.pool**2 * self.hidden + 1) * self.channels)
        wide = f.activation(self.embedded(f, self.hidden))
        f.convolution(wide, self.cells, self.channels, self.pool**2 * self.hidden)
        return (f.cost(again=True),)

    def build(self, ctx: BuildContext) -> EveV2Model:
        """The encoder, weights not drawn."""
        from .eve_v2_model import EveV2Model

        return EveV2Model(self, ctx)
