"""EVA-02 as a detection backbone (Fang et al. 2023, arXiv 2303.11331): a ViT with windows and rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..layout import require_divisible
from ..tower_blocks import normalised
from ..tower_costs import Forward, Values
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

    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """Of one tile: a patch sees its window, in some blocks the whole tile."""
        patches = self.grid[0] * self.grid[1]
        kinds = {whole: self._block(Forward(setting), patches, whole) for whole in (False, True)}
        blocks = [kinds[self.sees_all(block)] for block in range(self.layers)]
        return (self._embedding(Forward(setting), patches), *blocks)

    def _embedding(self, f: Forward, patches: int) -> Cost:
        """With the class token's position: the table has it, and no tile uses it."""
        rows, columns = self.table
        f.weigh((rows * columns + 1) * self.hidden)
        f.add(f.product(normalised(f, patches * self.patch_size**2, patches), self.hidden))
        return f.cost()

    def _block(self, f: Forward, patches: int, whole: bool) -> Cost:
        x = f.given(patches, self.hidden)
        normed = f.norm(x)
        attended = self._attended(f, normed if whole else f.copy(normed), patches if whole else self.window**2)
        f.until_here(normed)
        x = f.add(x, attended if whole else f.copy(attended))
        f.add(x, self._gated(f, f.norm(x)))
        return f.cost(again=True)

    def _attended(self, f: Forward, x: Values, seen: int) -> Values:
        """With rotary positions; keys have no bias."""
        raw = [f.product(x, self.hidden, bias) for bias in (True, False, True)]
        q, k = (_rotated(f, each) for each in raw[:2])
        f.until_here(*raw[:2])
        out = f.product(f.attention(q, k, raw[2], self.heads, seen, self.hidden), self.hidden)
        f.until_here(x, raw[2])
        return out

    def _gated(self, f: Forward, x: Values) -> Values:
        gate = f.activation(f.product(x, self.ffn))
        out = f.product(f.norm(f.times(gate, f.product(x, self.ffn))), self.hidden)
        f.until_here(x)
        return out

    def build(self, ctx: BuildContext) -> Eva02Model:
        """The encoder, weights not drawn."""
        from .eva02_model import Eva02Model

        return Eva02Model(self, ctx)


def _rotated(f: Forward, x: Values) -> Values:
    """x cos + turned(x) sin, where sine and cosine are float32: timm's apply_rot_embed."""
    along = f.copy(x, size=4)
    across = f.copy(f.copy(x), size=4)
    return f.copy(f.add(along, across), size=f.size)
