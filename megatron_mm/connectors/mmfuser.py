"""MMFuser: an encoder's last map, with what it reads from earlier layers of the same encoder. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..layout import require_divisible
from ..maps import MapShape
from ..tower_costs import Forward
from .base import taken
from .fuser_attention import KINDS, FuserAttention
from .mlp import MLPConnector

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .mmfuser_model import MMFuserModel


class MMFuser(MLPConnector):
    """F + gamma1 * (C + gamma2 * S), then an MLP: F the last map, C what it reads from the others, S what C reads of C.

    arXiv 2410.11829, section 3.2, and its code's ms_cross_attn.py. Both gammas begin at zero, so that at first the MLP
    gets the last map as it is. Of the attentions besides `deformable` the paper names the kind alone; their layers, and
    that the reduction of `linear_sra` is each map's own, are our guess.
    """

    name: Literal["mmfuser"] = "mmfuser"
    levels: PositiveInt = 4  # maps before the last: the paper's layers 3, 8, 13 and 18 before 23
    attention: Literal["deformable", "global", "linear_sra"] = "deformable"
    heads: PositiveInt = 16
    points: PositiveInt = 4  # of deformable attention: per head and map
    self_attention: bool = True  # false: F + gamma1 * C
    norm_eps: float = 1e-6  # as the published code

    def tokens_per_tile(self, maps: Sequence[MapShape]) -> int:
        """As many as a map has cells; raises ConfigError unless the maps are layers of one expert, `levels` + 1."""
        last = self.query(maps)
        return last.rows * last.columns

    def query(self, maps: Sequence[MapShape]) -> MapShape:
        """The last map, which reads from the others; raises ConfigError as `tokens_per_tile`."""
        _require_layers(maps, self.levels)
        require_divisible(maps[-1].channels, "channels of the encoder's maps", self.heads, "connector.heads")
        return maps[-1]

    def attentions(self, maps: Sequence[MapShape]) -> dict[str, FuserAttention]:
        """The fuser's attentions by their names in it."""
        last = self.query(maps)
        levels = {"cross_attn": tuple(each.grid for each in maps[:-1])}
        levels |= {"self_attn": (last.grid,)} if self.self_attention else {}
        kind = KINDS[self.attention]
        return {name: kind(last.channels, self.heads, self.points, last.grid, of) for name, of in levels.items()}

    def parts(self, maps: Sequence[MapShape], width: int) -> Mapping[str, int]:
        """The fuser, which MMFuser-13B trains at a rate of its own, and the MLP."""
        projector = self.mlp_parameters(self.query(maps).channels, width)
        return {"fuser": self.parameters(maps, width) - projector, "projector": projector}

    def cost(self, maps: Sequence[MapShape], width: int, setting: Setting) -> Cost:
        """See Connector."""
        attentions, f = self.attentions(maps), Forward(setting)
        *others, last = taken(f, maps)
        joined = f.make(sum(each.rows for each in others), last.width, *others)
        read = attentions["cross_attn"].passed(f, f.norm(last), f.norm(joined))
        if self.self_attention:
            normed = f.norm(read)
            read = f.add(read, f.scale(attentions["self_attn"].passed(f, normed, normed)))
        self.projected(f, f.add(last, f.scale(read)), width, setting)
        f.until_here(joined)
        return f.cost()

    def build(self, ctx: BuildContext, maps: Sequence[MapShape], width: int) -> MMFuserModel:
        """The connector, weights not drawn."""
        from .mmfuser_model import MMFuserModel

        self.check(ctx.parallel)
        return MMFuserModel(self, ctx, maps, width)


def _require_layers(maps: Sequence[MapShape], levels: int) -> None:
    """Raise ConfigError unless `maps` are levels + 1 different layers of one expert, on one grid and of one width."""
    told = ", ".join(f"{m.expert} layer {m.layer} ({m.rows} x {m.columns} x {m.channels})" for m in maps)
    if len(maps) != levels + 1:
        raise ConfigError(
            f"mmfuser reads {levels} maps and fuses them into one more, and the encoder gives {len(maps)}: {told}",
            where="model.encoder.layer",
            fix=f"list {levels + 1} layers, the last of which is refined, or change connector.levels",
        )
    if len({(m.expert, m.grid, m.channels) for m in maps}) > 1 or len({m.layer for m in maps}) < len(maps):
        raise ConfigError(
            f"mmfuser takes different layers of one expert, on one grid and of one width, not {told}",
            where="model.encoder.layer",
            fix="let one encoder give several of its layers, or choose the connector deformable",
        )
