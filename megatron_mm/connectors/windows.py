"""Mini-Gemini's fusion: each cell of one map looks at its own place in the others, then an MLP. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from megavlm.platform.errors import ConfigError

from ..flops import Flops
from ..maps import MapShape
from .mlp import MLPConnector

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .windows_model import WindowsModel


class Windows(MLPConnector):
    """The first map at grid x grid asks; a cell sees the window of every other map that covers its place.

    q = Linear(LayerNorm(first)), k and v = Linear(LayerNorm(other)), x = first + softmax(q k / sqrt(dim)) v, then MLP:
    Mini-Gemini's patch info mining (arXiv 2403.18814, section 3.2; mgm_arch.py), in Eagle's comparison of fusions
    (arXiv 2408.15998, section 2.4). With one other map, of the grid's own size, a window is one cell: softmax gives it
    1 whatever q and k are, and these don't learn.
    """

    name: Literal["windows"] = "windows"
    grid: PositiveInt = 32  # cells to a side, each a query and a token
    dim: PositiveInt = 1024  # of queries and keys. Our guess: Mini-Gemini's with CLIP-L; Eagle's are unpublished

    def tokens_per_tile(self, maps: Sequence[MapShape]) -> int:
        """The grid's cells, however many maps there are."""
        return self.grid**2

    def sides(self, each: MapShape) -> tuple[int, int]:
        """Rows and columns of a window in this map; one whose grid is no multiple is resized to the next."""
        return -(-each.rows // self.grid), -(-each.columns // self.grid)

    def parameters(self, maps: Sequence[MapShape], width: int) -> int:
        """Parameters between the maps and `width` of the decoder."""
        return sum(self.parts(maps, width).values())

    def parts(self, maps: Sequence[MapShape], width: int) -> Mapping[str, int]:
        """The attention and the MLP."""
        asking, others = asking_and_asked(maps)
        keys_and_values = sum(2 * 2 * c + (c + 1) * (self.dim + asking.channels) for c in (m.channels for m in others))
        queries = 2 * asking.channels + (asking.channels + 1) * self.dim
        return {"fuser": queries + keys_and_values, "projector": self.mlp_parameters(asking.channels, width)}

    def flops(self, maps: Sequence[MapShape], width: int) -> Flops:
        """Forward FLOPs of one tile, without the resizing."""
        asking, others = asking_and_asked(maps)
        mlp = self.mlp_flops(self.grid**2, asking.channels, width)
        seen = [self.sides(each)[0] * self.sides(each)[1] for each in others]  # cells of a window
        both = self.dim + asking.channels
        linears = asking.channels * self.dim + both * sum(n * m.channels for n, m in zip(seen, others, strict=True))
        return Flops(mlp.weights + 2.0 * self.grid**2 * linears, mixing=2.0 * self.grid**2 * both * sum(seen))

    def build(self, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> WindowsModel:
        """The connector, weights not drawn."""
        from .windows_model import WindowsModel

        self.check(ctx.parallel)
        return WindowsModel(self, ctx, maps, width)


def asking_and_asked(maps: Sequence[MapShape]) -> tuple[MapShape, Sequence[MapShape]]:
    """The map of the queries, and the others; raises ConfigError where there are no others."""
    if len(maps) < 2:
        names = ", ".join(f"{each.expert} layer {each.layer}" for each in maps)
        raise ConfigError(
            f"windows looks from one feature map at others, and the encoder gives {names} alone",
            where="model.connector.name",
            fix="name more experts in model.encoder, or choose connector mlp or channel_concat",
        )
    return maps[0], maps[1:]
