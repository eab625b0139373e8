"""EVE's patch embedding (Diao et al. 2024, arXiv 2406.11832, section 3.1): no vision encoder before the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from ..costs import Cost, Setting
from ..layout import require_divisible
from ..tower_blocks import query_attention
from ..tower_costs import Forward
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

    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """Of one tile, all of it computed again at once. Keys and values of the patches are never made."""
        f = Forward(setting)
        patches = self.embedded(f, self.channels, bias=False)
        mean = f.make(self.cells, self.channels, patches)
        if self.window_attention:
            query_attention(f, mean, patches, self.heads)
        return (f.cost(again=True),)

    def build(self, ctx: BuildContext) -> EveModel:
        """The encoder, weights not drawn."""
        from .eve_model import EveModel

        return EveModel(self, ctx)
