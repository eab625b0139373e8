"""The image encoder of SAM (Kirillov et al. 2023, arXiv 2304.02643): a ViT with windows, and a neck after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..flops import Flops
from ..layout import require_divisible
from ..maps import MapShape
from .expert import IMAGENET_MEAN, IMAGENET_STD, Expert

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .sam_model import SamModel


class Sam(Expert):
    """Shape of SAM's encoder; the defaults are ViT-L with the short neck and the pixel unshuffle of Eagle 1.

    neck short (Eagle 1, arXiv 2408.15998, released code): the published neck's first half, a 1 x 1 convolution and a
    norm; there it is drawn anew. neck published: the 3 x 3 convolution and its norm too. unshuffle 1 gives the map as
    it is: 64 x 64 cells of 256 channels at 1024 px. unshuffle 2: 32 x 32 of 1024.

    The positions are built for `image_size` and never resized: published weights run at their own 1024 px alone, as in
    transformers. Of the published names the short neck leaves out `neck.conv2.weight` and `neck.layer_norm2.*`.
    """

    name: Literal["sam"] = "sam"
    image_size: PositiveInt = 1024
    patch_size: PositiveInt = 16
    layers: PositiveInt = 24
    hidden: PositiveInt = 1024
    heads: PositiveInt = 16
    ffn: PositiveInt = 4096
    window: PositiveInt = 14  # patches see each other in squares of this side; zeros fill the last ones
    global_layers: tuple[NonNegativeInt, ...] = (5, 11, 17, 23)  # from 0; in these every patch sees every other
    neck: Literal["short", "published"] = "short"
    neck_channels: PositiveInt = 256
    unshuffle: PositiveInt = 2  # squares of so many cells a side become the channels of one, as torch's pixel_unshuffle
    norm_eps: float = 1e-6
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @model_validator(mode="after")
    def _sizes_fit(self) -> Sam:
        require_divisible(self.image_size, "encoder.image_size", self.patch_size, "encoder.patch_size")
        require_divisible(self.hidden, "encoder.hidden", self.heads, "encoder.heads")
        require_divisible(self.side, "encoder.image_size / encoder.patch_size", self.unshuffle, "encoder.unshuffle")
        beyond = [layer for layer in self.global_layers if layer >= self.layers]
        if beyond:
            raise ConfigError(
                f"encoder.global_layers names {beyond}, and the last of {self.layers} layers is {self.layers - 1}",
                where="encoder.global_layers",
                fix=f"name layers of 0..{self.layers - 1}, as in [{self.layers - 1}]",
            )
        return self

    @property
    def side(self) -> int:
        """Rows, and columns, of patches in a tile."""
        return self.image_size // self.patch_size

    @property
    def maps(self) -> tuple[MapShape, ...]:
        """One map, what the neck gives, unshuffled."""
        side = self.side // self.unshuffle
        return (MapShape(self.name, -1, side, side, self.neck_channels * self.unshuffle**2),)

    def reach(self, layer: int) -> int:
        """Side of the squares in which the patches of this layer see each other."""
        return self.side if layer in self.global_layers else self.window

    def parameters(self) -> int:
        """Parameters of what is built."""
        width, out = self.hidden, self.neck_channels
        embedding = (3 * self.patch_size**2 + 1 + self.side**2) * width
        layer = 4 * width**2 + 4 * width + 2 * width * self.ffn + self.ffn + width + 4 * width  # two norms with bias
        relative = sum(2 * (2 * self.reach(i) - 1) for i in range(self.layers)) * (width // self.heads)
        neck = width * out + 2 * out
        if self.neck == "published":
            neck += 9 * out**2 + 2 * out
        return embedding + self.layers * layer + relative + neck

    def flops(self) -> Flops:
        """Forward FLOPs of one tile. The zeros that fill the last windows are work too, but for the MLP."""
        width, cells = self.hidden, self.side**2
        weights, mixing = 2.0 * self.layers * cells * 2 * width * self.ffn, 0.0
        for layer in range(self.layers):
            reach = self.reach(layer)
            seen = (-(-self.side // reach) * reach) ** 2
            weights += 2.0 * seen * (4 * width**2 + 2 * reach * width)  # with the relative positions of both axes
            mixing += 4.0 * seen * reach**2 * width
        out = self.neck_channels
        weights += 2.0 * cells * (width * out + (9 * out**2 if self.neck == "published" else 0))
        return Flops(weights=weights, mixing=mixing, entrance=2.0 * cells * 3 * self.patch_size**2 * width)

    def build(self, ctx: BuildContext) -> SamModel:
        """The encoder on transformers' layers, weights not drawn."""
        from .sam_model import SamModel

        return SamModel(self, ctx)
