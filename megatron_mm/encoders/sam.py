"""The image encoder of SAM (Kirillov et al. 2023, arXiv 2304.02643): a ViT with windows, and a neck after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..layout import require_divisible
from ..maps import MapShape
from ..tower_blocks import gelu, mlp, normalised
from ..tower_costs import Forward, Values
from .expert import IMAGENET_MEAN, IMAGENET_STD, Expert

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .sam_model import SamModel


Attend = Callable[[Forward, Values, Values, int, int], Values]  # qkv, positions' scores, heads, channels


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

    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """Of one tile. The zeros that fill the last windows are work too, but for the MLP."""
        kinds = {reach: self._layer(setting, reach) for reach in {self.reach(layer) for layer in range(self.layers)}}
        layers = [kinds[self.reach(layer)] for layer in range(self.layers)]
        return (self._embedding(Forward(setting)), *layers, self._neck(Forward(setting)))

    def _embedding(self, f: Forward) -> Cost:
        f.weigh(self.side**2 * self.hidden)
        f.add(f.product(normalised(f, self.image_size**2, self.side**2), self.hidden))
        return f.cost()

    def _layer(self, setting: Setting, reach: int) -> Cost:
        """Where nothing learns, torch takes another way: none with a gradient of the positions goes without scores."""
        learning, frozen = (self._passed(Forward(setting), reach, attend) for attend in (_scored, _unscored))
        return dataclasses.replace(learning, alone=frozen.alone)

    def _passed(self, f: Forward, reach: int, attend: Attend) -> Cost:
        x = f.given(self.side**2, self.hidden)
        normed, along = f.norm(x), -(-self.side // reach)
        seen = f.copy(f.make((along * reach) ** 2, self.hidden, normed)) if reach < self.side else normed
        out = f.product(self._attended(f, seen, reach, attend), self.hidden)
        f.until_here(seen, normed)
        x = f.add(x, f.make(x.rows, self.hidden, out) if reach < self.side else out)
        f.add(x, mlp(f, f.norm(x), self.ffn, self.hidden, gelu))
        return f.cost(again=True)

    def _attended(self, f: Forward, x: Values, reach: int, attend: Attend) -> Values:
        """With the relative positions of both axes."""
        width = self.hidden // self.heads
        f.weigh(2 * (2 * reach - 1) * width)
        qkv = f.copy(f.product(x, 3 * self.hidden))
        query = f.make(x.rows, self.hidden, qkv)
        down, across = (f.convolution(each, x.rows, self.heads * reach, width) for each in (qkv, query))
        places = f.copy(f.make(x.rows, self.heads * reach**2, down, across, passes=True))
        out = f.copy(attend(f, qkv, places, self.heads, self.hidden))
        f.until_here(qkv, places)
        return out

    def _neck(self, f: Forward) -> Cost:
        x = f.norm(f.product(f.given(self.side**2, self.hidden), self.neck_channels, bias=False))
        if self.neck == "published":
            f.weigh(9 * self.neck_channels**2)
            x = f.norm(f.convolution(x, x.rows, self.neck_channels, 9 * self.neck_channels))
        f.copy(f.copy(x))
        return f.cost()

    def build(self, ctx: BuildContext) -> SamModel:
        """The encoder on transformers' layers, weights not drawn."""
        from .sam_model import SamModel

        return SamModel(self, ctx)


def _unscored(f: Forward, qkv: Values, places: Values, heads: int, width: int) -> Values:
    out = f.attention(qkv, qkv, qkv, heads, places.width / heads, width)
    f.until_here(places)
    return out


def _scored(f: Forward, qkv: Values, places: Values, heads: int, width: int) -> Values:
    """In float32 throughout, all scores in memory."""
    q, k, v = (f.make(qkv.rows, width, qkv, size=4) for _ in range(3))
    scores = f.make(qkv.rows, places.width, q, k, keeps=(q, k), size=4)
    shares = f.make(qkv.rows, places.width, f.add(scores, places), size=4, itself=True)
    f.mixes(4 * qkv.rows * places.width / heads * width)
    return f.make(qkv.rows, width, shares, v, keeps=(shares, v))
