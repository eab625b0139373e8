"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193) with registers (Darcet et al. 2023, arXiv 2309.16588)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from ..costs import Cost, Setting
from ..layout import require_divisible
from ..tower_blocks import gelu, mlp, normalised, self_attention
from ..tower_costs import Forward
from .expert import IMAGENET_MEAN, IMAGENET_STD, PatchExpert

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .dinov2_model import Dinov2Model


class Dinov2(PatchExpert):
    """Shape of a DINOv2 ViT; the defaults are ViT-L/14 with 4 registers, at the 448 px of Eagle's studies.

    The features are the last hidden state after the norm, without class token and registers (Eagle 1, arXiv
    2408.15998, names this expert in tables only: its code is unpublished). Of the published names
    `embeddings.mask_token` is not built: it is for pretraining.
    """

    name: Literal["dinov2"] = "dinov2"
    image_size: PositiveInt = 448
    trained_size: PositiveInt = 518  # what the table of positions is for, which is resized to image_size
    patch_size: PositiveInt = 14
    layers: PositiveInt = 24
    hidden: PositiveInt = 1024
    heads: PositiveInt = 16
    ffn: PositiveInt = 4096  # a multiple of hidden, as in published configurations
    registers: NonNegativeInt = 4
    layer_scale: float = 1e-5  # what the per-channel scale of each residual branch starts from: DINOv2's training
    norm_eps: float = 1e-6
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @model_validator(mode="after")
    def _widths_fit(self) -> Dinov2:
        require_divisible(self.ffn, "encoder.ffn", self.hidden, "encoder.hidden")
        return self

    @property
    def first_patch(self) -> int:
        """How many tokens stand before the patches: the class token and the registers."""
        return 1 + self.registers

    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """Of one tile: patches, class token and registers see each other."""
        tokens = self.grid[0] * self.grid[1] + self.first_patch
        layer, last = self._layer(Forward(setting), tokens), Forward(setting)
        last.norm(last.given(tokens, self.hidden))
        return (self._embedding(Forward(setting), tokens), *[layer] * self.layers, last.cost())

    def _embedding(self, f: Forward, tokens: int) -> Cost:
        rows, columns = self.table
        f.weigh((self.first_patch + 1 + rows * columns) * self.hidden)
        patches = tokens - self.first_patch
        x = f.product(normalised(f, patches * self.patch_size**2, patches), self.hidden)
        f.make(tokens, self.hidden, f.add(x))
        return f.cost()

    def _layer(self, f: Forward, tokens: int) -> Cost:
        x = f.given(tokens, self.hidden)
        x = f.add(x, f.scale(self_attention(f, f.norm(x), self.heads, tokens)))
        f.add(x, f.scale(mlp(f, f.norm(x), self.ffn, self.hidden, gelu)))
        return f.cost(again=True)

    def build(self, ctx: BuildContext) -> Dinov2Model:
        """The encoder on transformers' layers, weights not drawn."""
        from .dinov2_model import Dinov2Model

        return Dinov2Model(self, ctx)
