"""EVE's patch embedding (Diao et al. 2024, arXiv 2406.11832, section 3.1): no vision encoder before the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from ..flops import Flops
from ..layout import require_divisible
from .patches import PatchEmbedding

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .eve_model import EveModel


class Eve(PatchEmbedding):
    """Patches, their mean over each window of pool x pool, and attention of that mean to its window.

    The defaults are EVE-7B's; HD is image_size=1344 with the same weights. What is left of the published embedding,
    class and row-end tokens, is the connector `image_rows`.
    """

    name: Literal["eve"] = "eve"
    image_size: PositiveInt = 672  # the longer side
    patch_size: PositiveInt = 14
    channels: PositiveInt = 1024
    heads: PositiveInt = 8
    window_attention: bool = True  # false: the mean alone (the paper's table 4 without CA1)

    @model_validator(mode="after")
    def _heads_divide(self) -> Eve:
        require_divisible(self.channels, "encoder.channels", self.heads, "encoder.heads")
        return self

    def parameters(self) -> int:
        """Parameters: the convolution has no bias; in the attention only the last linear has one."""
        width = self.channels
        return width * 3 * self.patch_size**2 + self.window_attention * (4 * width**2 + 5 * width)

    def flops(self) -> Flops:
        """Forward FLOPs of one tile. Keys and values of the patches are never made (query_attention.py)."""
        width, patches = self.channels, self.pool**2
        asked = self.cells * self.window_attention
        return Flops(
            weights=2.0 * asked * 4 * width**2,
            mixing=4.0 * asked * self.heads * patches * width,
            entrance=2.0 * self.cells * patches * 3 * self.patch_size**2 * width,
        )

    def build(self, ctx: BuildContext) -> EveModel:
        """The encoder, weights not drawn."""
        from .eve_model import EveModel

        return EveModel(self, ctx)
