"""InternViT (Chen et al. 2023, InternVL): a plain ViT with joint qk-norm and layer scale. 6B and 300M."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..flops import Flops
from ..layout import require_divisible
from ..maps import MapShape
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

    def parameters(self) -> int:
        """Parameters of the encoder, dummy heads included."""
        width, padded = self.hidden, self.padded
        embedding = 3 * self.patch_size**2 * width + width + width + (prod(self.table) + 1) * width
        attention = (4 * padded + 1) * width + padded * (3 * self.qkv_bias + 2 * self.qk_norm)
        mlp = 2 * width * self.ffn + self.ffn + width
        norms = 2 * width * (1 if self.norm == "rms" else 2)
        return embedding + self.layers * (attention + mlp + norms + 2 * width)  # two layer scales

    def flops(self) -> Flops:
        """Forward FLOPs of one tile: every patch and the class token see each other. Dummy heads are no work."""
        patches = self.grid[0] * self.grid[1]
        tokens = patches + 1
        return Flops(
            weights=2.0 * self.layers * tokens * (4 * self.hidden**2 + 2 * self.hidden * self.ffn),
            mixing=4.0 * self.layers * tokens**2 * self.hidden,
            entrance=2.0 * patches * 3 * self.patch_size**2 * self.hidden,
        )

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
