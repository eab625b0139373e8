"""What CLIP's and SigLIP's vision towers have in common: plain ViTs by transformers, whole on every process."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt, model_validator

from megavlm.platform.errors import ConfigError

from ..flops import Flops
from ..layout import require_divisible
from ..maps import MapShape
from .expert import Expert

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .replicated_model import ReplicatedViT


class Replicated(Expert):
    """A ViT that gives one or several of its hidden states as features; the layers after those are not built.

    A border narrower than a patch is not read, as by the convolution: 384 px are 27 patches of 14.
    """

    family: ClassVar[str]  # transformers' classes are family + "Config" and family + "Model"
    activation: ClassVar[str]
    trained_with_class_token: ClassVar[bool]  # first in the sequence and in the table, no part of the feature map
    patch_bias: ClassVar[bool]
    entry_norm: ClassVar[bool]  # between embeddings and layers
    exit_norm: ClassVar[bool]  # after the last layer; hidden states of earlier ones never pass it

    trained_size: PositiveInt | None = None  # what the table of positions is for, if not image_size: it is resized
    patch_size: PositiveInt
    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    ffn: PositiveInt
    # Which hidden states, a map for each: 0 the embeddings, k what layer k gives, -1 the last, as in LLaVA.
    layer: int | tuple[int, ...] = -2
    norm_eps: float

    @model_validator(mode="after")
    def _sizes_fit(self) -> Replicated:
        require_divisible(self.hidden, "encoder.hidden", self.heads, "encoder.heads")
        sizes = {"image_size": self.image_size, "trained_size": self.trained_size or self.image_size}
        for key, size in sizes.items():
            if size < self.patch_size:
                raise ConfigError(
                    f"encoder.{key} {size} is less than encoder.patch_size {self.patch_size}",
                    where=f"encoder.{key}",
                    fix=f"set it to {self.patch_size} or more",
                )
        self._check_layers()
        return self

    def _check_layers(self) -> None:
        for layer in self.wanted:
            if not -self.layers - 1 <= layer <= self.layers:
                raise ConfigError(
                    f"encoder.layer {layer}: {self.layers} layers have {self.layers + 1} hidden states",
                    where="encoder.layer",
                    fix=f"set encoder.layer to 0..{self.layers}, or count from the end: -1..{-self.layers - 1}",
                )
        if not self.wanted or len(set(self.depths)) < len(self.depths):
            raise ConfigError(
                f"encoder.layer {list(self.wanted)} names no hidden state, or one twice",
                where="encoder.layer",
                fix="name each hidden state once, as in [3, 8, 13, 18, 23]",
            )

    @property
    def class_tokens(self) -> int:
        """How many tokens stand before the patches in the layers."""
        return int(self.trained_with_class_token)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a tile."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def table(self) -> tuple[int, int]:
        """Rows and columns of patches that the table of positions is for."""
        side = (self.trained_size or self.image_size) // self.patch_size
        return side, side

    @property
    def maps(self) -> tuple[MapShape, ...]:
        """The feature maps of one tile, one for each hidden state, in the order of `layer`."""
        return tuple(MapShape(self.name, layer, *self.grid, self.hidden) for layer in self.wanted)

    @property
    def wanted(self) -> tuple[int, ...]:
        """`layer`, as several."""
        return (self.layer,) if isinstance(self.layer, int) else self.layer

    @property
    def depths(self) -> tuple[int, ...]:
        """How many layers each wanted hidden state has passed."""
        return tuple(layer if layer >= 0 else self.layers + 1 + layer for layer in self.wanted)

    @property
    def depth(self) -> int:
        """Layers up to the last hidden state that is wanted: those that are built."""
        return max(self.depths)

    @property
    def ends_in_norm(self) -> bool:
        """Whether the deepest features have passed the norm after the last layer."""
        return self.exit_norm and self.depth == self.layers

    def parameters(self) -> int:
        """Parameters of what is built."""
        width, (rows, columns) = self.hidden, self.table
        positions = rows * columns + self.trained_with_class_token
        embedding = (3 * self.patch_size**2 + self.patch_bias + self.class_tokens + positions) * width
        layer = 4 * width**2 + 4 * width + 2 * width * self.ffn + self.ffn + width + 4 * width  # two norms with bias
        return embedding + self.depth * layer + 2 * width * (self.entry_norm + self.ends_in_norm)

    def flops(self) -> Flops:
        """Forward FLOPs of one tile: every patch, and the class token where one is in the layers, see each other."""
        patches = self.grid[0] * self.grid[1]
        tokens = patches + self.class_tokens
        return Flops(
            weights=2.0 * self.depth * tokens * (4 * self.hidden**2 + 2 * self.hidden * self.ffn),
            mixing=4.0 * self.depth * tokens**2 * self.hidden,
            entrance=2.0 * patches * 3 * self.patch_size**2 * self.hidden,
        )

    def build(self, ctx: BuildContext) -> ReplicatedViT:
        """The encoder on transformers' layers, weights not drawn."""
        from .replicated_model import ReplicatedViT

        return ReplicatedViT(self, ctx)
