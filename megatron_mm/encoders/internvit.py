"""InternViT (Chen et al. 2023, InternVL): a plain ViT with joint qk-norm and layer scale. 6B and 300M."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..flops import Flops
from ..layout import require_divisible
from ..maps import MapShape
from ..tower_blocks import normalised, rms_norm
from ..tower_costs import Forward, Values
from .base import Encoder

if TYPE_CHECKING:
    from ..config import Parallel
    from ..contracts import BuildContext
    from .internvit_model import InternViTModel


class InternViT(Encoder):
    """Shape of an InternViT, by the published config.json of each.

    InternViT-6B-448px-V1-5, the defaults: 45 layers, hidden 3200, 25 heads, ffn 12800, norm rms, qk_norm, no qkv_bias,
    layer_scale 0.1. InternViT-300M-448px: 24 layers, hidden 1024, 16 heads, ffn 4096, norm layer, no qk_norm, qkv_bias,
    layer_scale 1.0. Both: patch 14, norm_eps 1e-6, ImageNet's mean and std.

    Dummy heads follow the real ones and hold zeros only, so that tensor parallelism divides the heads. They change
    nothing and stay zero in training: their gradients are zero. The released NVLM-D keeps 7 of them.
    """

    parts: ClassVar[Mapping[str, int]] = MappingProxyType({})  # what a stage can train apart from the rest: none

    name: Literal["internvit"] = "internvit"
    image_size: PositiveInt = 448  # side of a square tile, in pixels
    trained_size: PositiveInt | None = None  # what the table of positions is for, if not image_size: it is resized
    patch_size: PositiveInt = 14
    layers: PositiveInt = 45
    hidden: PositiveInt = 3200
    heads: PositiveInt = 25
    dummy_heads: NonNegativeInt = 0  # 7 make NVLM-D's 32
    ffn: PositiveInt = 12800
    norm: Literal["rms", "layer"] = "rms"  # before attention and MLP
    qk_norm: bool = True  # one RMSNorm over all heads of the queries together, another over the keys
    qkv_bias: bool = False
    layer_scale: float = 0.1  # what the per-channel scale of each residual branch starts from
    norm_eps: float = 1e-6
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in 0..1: ImageNet's, as InternViT was trained
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _sizes_fit(self) -> InternViT:
        for key in ("image_size", "trained_size"):
            require_divisible(getattr(self, key) or 0, f"encoder.{key}", self.patch_size, "encoder.patch_size")
        require_divisible(self.hidden, "encoder.hidden", self.heads, "encoder.heads")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a tile."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def maps(self) -> tuple[MapShape, ...]:
        """The one feature map of a tile: what the last layer gives."""
        return (MapShape("internvit", -1, *self.grid, self.hidden),)

    @property
    def table(self) -> tuple[int, int]:
        """Rows and columns of patches that the table of positions is for."""
        side = (self.trained_size or self.image_size) // self.patch_size
        return side, side

    @property
    def padded(self) -> int:
        """Width of queries, of keys and of values, dummy heads included."""
        return self.hidden // self.heads * (self.heads + self.dummy_heads)

    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """Of one tile: every patch and the class token see each other. Dummy heads are work as any."""
        tokens = prod(self.grid) + 1
        layer = self._layer(Forward(setting), tokens, setting.tp)
        begun = tokens * self.hidden * setting.size  # what the first layer took: the module's forward holds it
        layer = dataclasses.replace(layer, alone=layer.alone + begun)
        return (self._embedding(Forward(setting), tokens), *[layer] * self.layers)

    def _embedding(self, f: Forward, tokens: int) -> Cost:
        f.weigh((prod(self.table) + 2) * self.hidden)
        x = f.product(normalised(f, (tokens - 1) * self.patch_size**2, tokens - 1), self.hidden)
        f.copy(f.add(f.make(tokens, self.hidden, x)))
        return f.cost()

    def _layer(self, f: Forward, tokens: int, tp: int) -> Cost:
        x = f.given(tokens, self.hidden)
        blocks = (partial(self._attended, width=self.padded // tp, tp=tp), partial(self._widened, ffn=self.ffn // tp))
        for block in blocks:
            normed = self._normed(f, x)
            out = block(f, normed)
            x = self._added(f, x, out)
            f.until_here(normed, out)  # megatron-core's layer holds both
        return f.cost(again=True)

    def _attended(self, f: Forward, x: Values, width: int, tp: int) -> Values:
        """By this process' heads, summed over all processes'; `width` is theirs."""
        qkv = f.product(x, 3 * width, self.qkv_bias)
        q, k = (self._head_norm(f, qkv, width) if self.qk_norm else qkv for _ in range(2))
        heads = (self.heads + self.dummy_heads) // tp
        out = f.exchange(f.product(f.attention(q, k, qkv, heads, x.rows, width), self.hidden, bias=False))
        f.until_here(x, qkv, q, k)
        return out

    def _head_norm(self, f: Forward, qkv: Values, width: int) -> Values:
        """The module's JointHeadNorm, of what `width` channels of qkv hold."""
        f.weigh(width)
        flat = f.make(qkv.rows, width, qkv, size=4)
        squares = f.make(qkv.rows, width, flat, keeps=(flat,), size=4)
        root = f.make(qkv.rows, 1, squares, size=4)
        wide = f.make(qkv.rows, width, flat, root, keeps=(flat, root), size=4)
        normed = f.copy(wide, size=f.size)
        scaled = f.make(qkv.rows, width, normed, learns=(normed,))
        f.until_here(flat, wide)
        return scaled

    def _widened(self, f: Forward, x: Values, ffn: int) -> Values:
        """The MLP, its ffn split; the last bias is added elsewhere."""
        wide = f.add(f.product(x, ffn))
        out = f.exchange(f.product(f.activation(wide), self.hidden, bias=False))
        f.until_here(x)
        return out

    def _added(self, f: Forward, residual: Values, x: Values) -> Values:
        """With a bias, times the layer scale, to the residual."""
        f.weigh(self.hidden)
        return f.add(residual, f.scale(f.add(x)))

    def _normed(self, f: Forward, x: Values) -> Values:
        return rms_norm(f, x) if self.norm == "rms" else f.norm(x)

    def flops(self) -> Flops:
        """Forward FLOPs of one tile. Dummy heads are no work."""
        return super(InternViT, self.model_copy(update={"dummy_heads": 0})).flops()

    def check(self, parallel: Parallel) -> None:
        """Raise ConfigError where this encoder cannot be split over `parallel`."""
        tp, heads = parallel.tp, self.heads + self.dummy_heads
        if heads % tp:
            raise ConfigError(
                f"encoder.heads {self.heads} + dummy_heads {self.dummy_heads} do not divide by parallel.tp {tp}",
                where="parallel.tp",
                fix=f"set encoder.dummy_heads={-self.heads % tp}, or a tp that divides {heads}",
            )
        require_divisible(self.ffn, "encoder.ffn", parallel.tp, "parallel.tp")

    def fp8_widths(self, parallel: Parallel) -> list[tuple[str, int, int]]:
        """Key, width and how often it is split, of what products in FP8 sum over or put out."""
        heads = "hidden" if not self.dummy_heads else "heads with dummy_heads x head width"
        return [("hidden", self.hidden, 1), (heads, self.padded, parallel.tp), ("ffn", self.ffn, parallel.tp)]

    def build(self, ctx: BuildContext) -> InternViTModel:
        """The encoder on megatron-core's layers, weights not drawn."""
        from .internvit_model import InternViTModel

        self.check(ctx.parallel)
        return InternViTModel(self, ctx)
