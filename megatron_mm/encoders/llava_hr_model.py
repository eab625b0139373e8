"""LLaVA-HR's adapter between the layers of a ViT and behind them.

The parameters have the names of the published multipath_encoder_wapper.py under "adapter.".
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..contracts import BuildContext, FeatureMap
from .building import without_values
from .looking import at_side, look, nothing_seen, sharded

if TYPE_CHECKING:
    from .llava_hr import LlavaHr

Grid = tuple[int, int]


class LlavaHrModel(nn.Module):
    """Tiles [n, 3, S, S] in 0..255 -> one FeatureMap with the ViT's grid and width."""

    def __init__(self, spec: LlavaHr, ctx: BuildContext) -> None:
        super().__init__()
        self.spec = spec
        self.low, self.high = spec.low.build(ctx), spec.high.build(ctx)
        self.adapter = without_values(partial(Adapter, spec, ctx.recompute == "full"), ctx.params_dtype)
        self.adapter.begin_from_zero()

    def forward(self, tiles: Tensor) -> list[FeatureMap]:
        """uint8 (float where pixels want a gradient) [n, 3, S, S] -> [FeatureMap of [n * rows * columns, hidden]]."""
        (shape,) = self.spec.maps
        if not len(tiles):
            return nothing_seen(self.spec.maps, self)
        high = look(self.high, at_side(tiles, self.spec.high.image_size))[-1]
        cells = high.tiles.flatten(1, 2)  # [n, cells, channels]
        x = self._adapted(at_side(tiles, self.spec.low.image_size), cells)
        images = torch.arange(len(tiles), device=tiles.device)
        return [FeatureMap(x.flatten(0, 1), shape.grid, images, expert=shape.expert, layer=shape.layer)]

    def _adapted(self, tiles: Tensor, high: Tensor) -> Tensor:
        """Tiles at the ViT's size, the high map [n, cells, channels] -> [n, rows * columns, hidden]."""
        first, adapter = self.spec.low.class_tokens, self.adapter

        def aligned(number: int, x: Tensor) -> Tensor:
            if number not in adapter.after:
                return x
            return torch.cat([x[:, :first], adapter.align(number, x[:, first:], high)], dim=1)

        (x,) = deque(self.low.states(tiles, aligned), maxlen=1)  # the last; none before it is kept
        return adapter.merge(x[:, first:], high)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """Of low, high and adapter."""
        return sharded(dict(self.named_children()), prefix, sharded_offsets, metadata)


class Adapter(nn.Module):
    """The alignment after each layer in `after`, and what adds both maps in the end."""

    def __init__(self, spec: LlavaHr, recompute: bool) -> None:
        super().__init__()
        low, high = spec.low.maps[0], spec.high.maps[-1]
        self.after, self.recompute = spec.after, recompute
        self.align_stages_latent = nn.ModuleList(Alignment(spec, high.grid, low.grid) for _ in spec.after)
        self.align_stages = nn.ModuleList([Merging(spec.widths[0], spec.widths[1], high.grid, low.grid)])

    def begin_from_zero(self) -> None:
        """The second convolutions' weights are drawn as zero: what is added between the layers begins as nothing."""
        for name, weight in self.align_stages_latent.named_parameters():
            if name.endswith(("slow_proj.weight", "fast_proj.weight")):
                setattr(weight, "init_constant", 0.0)  # noqa: B010

    def align(self, number: int, low: Tensor, high: Tensor) -> Tensor:
        """Patches [n, rows * columns, hidden] after layer `number` -> the same, with the high map in them."""
        stage = self.align_stages_latent[self.after.index(number)]
        return checkpoint(stage, low, high, use_reentrant=False) if self.recompute else stage(low, high)

    def merge(self, low: Tensor, high: Tensor) -> Tensor:
        """Patches after the last layer and the high map [n, cells, channels] -> [n, rows * columns, hidden]."""
        return self.align_stages[0](low, high)


class Alignment(nn.Module):
    """low' = low + fast_proj(GELU(fast_conv(low))); low' + tanh(gate) * slow, slow = slow_proj(GELU(slow_conv(high))).

    The gate is one number per tile, from the means of low' and slow over their cells. Published as
    S2FStitchAlignModuleV2; `slow` is brought to the ViT's grid behind its convolutions.
    """

    def __init__(self, spec: LlavaHr, high_grid: Grid, grid: Grid) -> None:
        super().__init__()
        low, high, hidden, gate = spec.widths
        self.high_grid, self.grid = high_grid, grid
        self.slow_conv, self.slow_proj = Cellwise(high, hidden, 1), Cellwise(hidden, low, 1)
        self.fast_conv = nn.Conv2d(low, low, spec.kernel, padding=spec.kernel // 2, groups=low)
        self.fast_proj = Cellwise(low, low, 1)
        self.gate = nn.Sequential(nn.Linear(2 * low, gate), nn.GELU(), nn.Linear(gate, 1))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """[n, rows * columns, hidden], [n, cells, channels] -> [n, rows * columns, hidden]."""
        slow = at_grid(self.slow_proj(F.gelu(self.slow_conv(high))), self.high_grid, self.grid)
        around = self.fast_conv(low.mT.unflatten(2, self.grid)).flatten(2).mT
        low = low + self.fast_proj(F.gelu(around))
        gate = self.gate(torch.cat([low, slow], dim=-1).mean(1, keepdim=True))
        return low + slow * gate.tanh()


class Merging(nn.Module):
    """fast_proj(low) + slow_proj(high), the high map brought to the ViT's grid. Published as MultiPathAlignModule."""

    def __init__(self, low: int, high: int, high_grid: Grid, grid: Grid) -> None:
        super().__init__()
        self.high_grid, self.grid = high_grid, grid
        self.fast_proj, self.slow_proj = nn.Linear(low, low), nn.Linear(high, low)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """[n, rows * columns, hidden], [n, cells, channels] -> [n, rows * columns, hidden]."""
        return self.fast_proj(low) + self.slow_proj(at_grid(high, self.high_grid, self.grid))


class Cellwise(nn.Conv2d):
    """A 1 x 1 convolution, weights [out, in, 1, 1], over cells that stand as tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, cells, in] -> [n, cells, out]."""
        return F.linear(x, self.weight.flatten(1), self.bias)


def at_grid(x: Tensor, old: Grid, new: Grid) -> Tensor:
    """Cells [n, old rows * columns, c] as [n, new rows * columns, c].

    A larger map is pooled by means, a smaller one interpolated in float32, bilinear with aligned corners: as published.
    """
    if old == new:
        return x
    image = x.mT.unflatten(2, old)
    if old[0] > new[0] or old[1] > new[1]:
        image = F.avg_pool2d(image, (old[0] // new[0], old[1] // new[1]))
    else:
        image = F.interpolate(image.float(), size=new, mode="bilinear", align_corners=True).to(x.dtype)
    return image.flatten(2).mT
