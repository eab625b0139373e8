"""InternViT (Chen et al. 2023, InternVL): a plain ViT with joint qk-norm and layer scale. 6B-448px-V1-5 and 300M."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError

from ..flops import Flops
from ..layout import require_divisible

if TYPE_CHECKING:
    from ..config import Parallel
    from ..contracts import BuildContext
    from .internvit_model import InternViTModel


class InternViT(Config):
    """Shape of an InternViT. The 6B at 448 px: patch 14, 45 layers, 3200, 25 heads, ffn 12800, layer scale 0.1."""

    name: Literal["internvit"] = "internvit"
    image_size: PositiveInt = 448  # side of a square tile, in pixels
    patch_size: PositiveInt = 14
    layers: PositiveInt = 45
    hidden: PositiveInt = 3200
    heads: PositiveInt = 25
    ffn: PositiveInt = 12800
    qk_norm: bool = True  # one RMSNorm over all heads of the queries together, another over the keys
    qkv_bias: bool = False
    layer_scale: float = 0.1  # what the per-channel scale of each residual branch starts from
    norm_eps: float = 1e-6
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in 0..1: ImageNet's, as InternViT was trained
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _sizes_fit(self) -> InternViT:
        require_divisible(self.image_size, "encoder.image_size", self.patch_size, "encoder.patch_size")
        require_divisible(self.hidden, "encoder.hidden", self.heads, "encoder.heads")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a tile."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def channels(self) -> int:
        """Channels of the feature map."""
        return self.hidden

    def parameters(self) -> int:
        """Parameters of the encoder."""
        width, (rows, columns) = self.hidden, self.grid
        embedding = 3 * self.patch_size**2 * width + width + width + (rows * columns + 1) * width
        attention = 4 * width**2 + (4 if self.qkv_bias else 1) * width + (2 * width if self.qk_norm else 0)
        mlp = 2 * width * self.ffn + self.ffn + width
        return embedding + self.layers * (attention + mlp + 4 * width)  # two norms, two layer scales

    def flops(self) -> Flops:
        """Forward FLOPs of one tile: every patch and the class token see each other."""
        patches = self.grid[0] * self.grid[1]
        tokens = patches + 1
        return Flops(
            weights=2.0 * self.layers * tokens * (4 * self.hidden**2 + 2 * self.hidden * self.ffn),
            mixing=4.0 * self.layers * tokens**2 * self.hidden,
            entrance=2.0 * patches * 3 * self.patch_size**2 * self.hidden,
        )

    def check(self, parallel: Parallel) -> None:
        """Raise ConfigError where this encoder cannot be split over `parallel`."""
        if self.heads % parallel.tp:
            raise ConfigError(
                f"encoder.heads {self.heads} does not divide by parallel.tp {parallel.tp}",
                where="parallel.tp",
                fix=f"use a tp that divides {self.heads}; padding with dummy heads, as NVLM does, is not built yet",
            )
        require_divisible(self.ffn, "encoder.ffn", parallel.tp, "parallel.tp")

    def build(self, ctx: BuildContext) -> InternViTModel:
        """The encoder on megatron-core's layers, weights not drawn."""
        from .internvit_model import InternViTModel

        self.check(ctx.parallel)
        return InternViTModel(self, ctx)
