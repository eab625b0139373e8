"""NVLM's and InternVL's connector: pixel shuffle to a quarter of the tokens, then an MLP of two layers or one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..layout import require_divisible
from ..maps import MapShape, the_only
from ..tower_costs import Forward
from .base import Connector, taken

if TYPE_CHECKING:
    from ..config import Parallel
    from ..contracts import BuildContext
    from .pixel_shuffle_mlp_model import PixelShuffleMLPModel

FACTOR = 2  # a block of FACTOR x FACTOR tokens becomes one


class PixelShuffleMLP(Connector):
    """LayerNorm(4c) -> Linear(4c, hidden) -> exact GELU -> Linear(hidden, width), linears without bias (NVLM 4.5).

    With one layer, as NVLM-X has: LayerNorm(4c) -> Linear(4c, width).
    """

    name: Literal["pixel_shuffle_mlp"] = "pixel_shuffle_mlp"
    layers: Literal[1, 2] = 2
    hidden: PositiveInt | None = None  # between the two layers. NVLM-D and -H: the decoder's ffn
    norm_eps: float = 1e-5  # as the released model is read; NVLM's training scripts say 1e-6

    @model_validator(mode="after")
    def _hidden_between_two(self) -> PixelShuffleMLP:
        if (self.layers == 2) != (self.hidden is not None):
            raise ConfigError(
                f"{self.layers} layer(s) and hidden {self.hidden}",
                where="connector.hidden",
                fix="set it to the width between two layers, or layers: 1 and leave it out",
            )
        return self

    def tokens_per_tile(self, maps: Sequence[MapShape]) -> int:
        """Visual tokens per tile; raises ConfigError for several maps, and for an odd side."""
        rows, columns = the_only(maps, self.name).grid
        if rows % FACTOR or columns % FACTOR:
            raise ConfigError(
                f"pixel shuffle joins {FACTOR} x {FACTOR} patches, and a tile has {rows} x {columns}",
                where="encoder.patch_size",
                fix="choose image_size and patch_size so that a tile's side has an even number of patches",
            )
        return rows * columns // FACTOR**2

    def cost(self, maps: Sequence[MapShape], width: int, setting: Setting) -> Cost:
        """See Connector."""
        f, tp = Forward(setting), setting.tp
        (tile,) = taken(f, [the_only(maps, self.name)])
        shuffled = f.make(self.tokens_per_tile(maps), FACTOR**2 * tile.width, tile)
        x = normed = f.norm(shuffled)
        if self.hidden is not None:
            x = f.activation(f.product(x, self.hidden // tp, bias=False))
        elif tp > 1:
            x = f.make(x.rows, x.width // tp, x)
        f.exchange(f.product(x, width, bias=False))
        f.until_here(shuffled, normed)
        return f.cost()

    def parts(self, maps: Sequence[MapShape], width: int) -> Mapping[str, int]:
        """What a stage can train apart from the rest: nothing."""
        return {}

    def check(self, parallel: Parallel) -> None:
        """Raise ConfigError where this connector cannot be split over `parallel`."""
        if self.hidden is not None:  # the width of one layer is the decoder's, which has to divide anyway
            require_divisible(self.hidden, "connector.hidden", parallel.tp, "parallel.tp")

    def build(self, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> PixelShuffleMLPModel:
        """The connector, weights not drawn."""
        from .pixel_shuffle_mlp_model import PixelShuffleMLPModel

        self.check(ctx.parallel)
        return PixelShuffleMLPModel(self, ctx, the_only(maps, self.name).channels, width)
