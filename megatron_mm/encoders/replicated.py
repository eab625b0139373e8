"""What CLIP's and SigLIP's vision towers have in common: plain ViTs by transformers, whole on every process."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import model_validator

from megavlm.platform.errors import ConfigError

from ..costs import Cost, Setting
from ..maps import MapShape
from ..tower_blocks import gelu, mlp, normalised, quick_gelu, self_attention
from ..tower_costs import Forward
from .expert import PatchExpert

if TYPE_CHECKING:
    from ..contracts import BuildContext
    from .replicated_model import ReplicatedViT


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu_pytorch_tanh": gelu}


class Replicated(PatchExpert):
    """A ViT that gives one or several of its hidden states as features; the layers after those are not built.

    A border narrower than a patch is not read, as by the convolution: 384 px are 27 patches of 14.
    """

    family: ClassVar[str]  # transformers' classes are family + "Config" and family + "Model"
    activation: ClassVar[str]
    trained_with_class_token: ClassVar[bool]  # first in the sequence and in the table, no part of the feature map
    patch_bias: ClassVar[bool]
    entry_norm: ClassVar[bool]  # between embeddings and layers
    exit_norm: ClassVar[bool]  # after the last layer; hidden states of earlier ones never pass it
    leaves_border: ClassVar[bool] = True

    # Which hidden states, a map for each: 0 the embeddings, k what layer k gives, -1 the last, as in LLaVA.
    layer: int | tuple[int, ...] = -2
    norm_eps: float

    @model_validator(mode="after")
    def _layers_fit(self) -> Replicated:
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
        return self

    @property
    def class_tokens(self) -> int:
        """How many tokens stand before the patches in the layers."""
        return int(self.trained_with_class_token)

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

    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """Of one tile: every patch, and the class token where one is in the layers, see each other."""
        patches = self.grid[0] * self.grid[1]
        layers = [self._layer(Forward(setting), patches + self.class_tokens)] * self.depth
        return (self._embedding(Forward(setting), patches), *layers, *self._exit(Forward(setting), patches))

    def _embedding(self, f: Forward, patches: int) -> Cost:
        rows, columns = self.table
        f.weigh((rows * columns + self.trained_with_class_token + self.class_tokens) * self.hidden)
        x = f.product(normalised(f, patches * self.patch_size**2, patches), self.hidden, self.patch_bias)
        x = f.make(patches + self.class_tokens, self.hidden, x) if self.class_tokens else x
        x = f.add(x)
        if self.entry_norm:
            f.norm(x)
        return f.cost()

    def _layer(self, f: Forward, tokens: int) -> Cost:
        x = f.given(tokens, self.hidden)
        x = f.add(x, self_attention(f, f.norm(x), self.heads, tokens))
        f.add(x, mlp(f, f.norm(x), self.ffn, self.hidden, ACTIVATIONS[self.activation]))
        return f.cost(again=True)

    def _exit(self, f: Forward, patches: int) -> tuple[Cost, ...]:
        if not self.ends_in_norm:
            return ()
        f.norm(f.given(patches + self.class_tokens, self.hidden))
        return (f.cost(),)

    def build(self, ctx: BuildContext) -> ReplicatedViT:
        """The encoder on transformers' layers, weights not drawn."""
        from .replicated_model import ReplicatedViT

        return ReplicatedViT(self, ctx)
