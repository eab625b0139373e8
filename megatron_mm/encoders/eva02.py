"""EVA-02 as a detection backbone (Fang et al. 2023, arXiv 2303.11331): a ViT with windows and rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..flops import Flops
from ..layout import require_divisible
from .expert import IMAGENET_MEAN, IMAGENET_STD, PatchExpert

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .eva02_model import Eva02Model


class Eva02(PatchExpert):
    """Shape of an EVA-02 detector's backbone; the defaults are eva02_L_coco_det_sys_o365, Eagle's "det-1024".

    1024 px are 64 x 64 patches of 1024 channels. The last block's output passes no norm. Most blocks attend inside
    windows, every third one over the whole tile. Sizes are those of the published det/detectron2 configuration.
    """

    name: Literal["eva02"] = "eva02"
    image_size: PositiveInt = 1024
    trained_size: PositiveInt = 224  # what the table of positions is for: it is resized
    patch_size: PositiveInt = 16
    layers: PositiveInt = 24
    hidden: PositiveInt = 1024
    heads: PositiveInt = 16
    ffn: PositiveInt = 2730  # 8/3 of hidden
    window: PositiveInt = 16  # side of a window, in patches
    global_every: PositiveInt = 3  # this many blocks have one that sees the whole tile, the last of them: 2, 5, 8, ...
    rope_side: PositiveInt = 16  # rotary positions run from 0 to this, in a window as in the whole tile
    norm_eps: float = 1e-6
    mean: tuple[float, float, float] = IMAGENET_MEAN  # the detector's pixel_mean; Eagle's sees CLIP's instead
    std: tuple[float, float, float] = IMAGENET_STD

    @model_validator(mode="after")
    def _windows_fit(self) -> Eva02:
        require_divisible(self.grid[0], "patches in a row of encoder.image_size", self.window, "encoder.window")
        if self.head_dim % 4:
            raise ConfigError(
                f"encoder.hidden / encoder.heads is {self.head_dim}: rotary positions take pairs for rows and columns",
                where="encoder.heads",
                fix="make it a multiple of 4",
            )
        return self

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden // self.heads

    def sees_all(self, block: int) -> bool:
        """Whether this block attends over the whole tile."""
        return (block + 1) % self.global_every == 0

    def parameters(self) -> int:
        """Parameters, those of the class token's position too: the table has it, and no tile uses it."""
        width, (rows, columns) = self.hidden, self.table
        embedding = (3 * self.patch_size**2 + 1 + rows * columns + 1) * width
        attention = 4 * width**2 + 3 * width  # keys have no bias
        swiglu = 3 * width * self.ffn + 2 * self.ffn + width + 2 * self.ffn  # three matrices, their biases, a norm
        return embedding + self.layers * (attention + swiglu + 4 * width)  # two norms with bias

    def flops(self) -> Flops:
        """Forward FLOPs of one tile: a patch sees its window, in some blocks the whole tile."""
        patches = self.grid[0] * self.grid[1]
        seen = sum(patches if self.sees_all(block) else self.window**2 for block in range(self.layers))
        return Flops(
            weights=2.0 * self.layers * patches * (4 * self.hidden**2 + 3 * self.hidden * self.ffn),
            mixing=4.0 * patches * seen * self.hidden,
            entrance=2.0 * patches * 3 * self.patch_size**2 * self.hidden,
        )

    def build(self, ctx: BuildContext) -> Eva02Model:
        """The encoder, weights not drawn."""
        from .eva02_model import Eva02Model

        return Eva02Model(self, ctx)
