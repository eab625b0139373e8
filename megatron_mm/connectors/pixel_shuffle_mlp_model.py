"""Pixel shuffle + MLP, the MLP on megatron-core's tensor-parallel linears."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from megatron.core.tensor_parallel import scatter_to_tensor_model_parallel_region
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from ..backend.specs import modules
from ..backend.transformer import mark_split_weights, transformer_config, whole
from ..contracts import BuildContext, FeatureMap, VisualTokens
from .pixel_shuffle_mlp import FACTOR

if TYPE_CHECKING:
    from .pixel_shuffle_mlp import PixelShuffleMLP


def pixel_shuffle(tiles: Tensor, factor: int = FACTOR) -> Tensor:
    """[n, rows, columns, c] -> [n, rows / f, columns / f, f * f * c].

    An output token holds its block row by row: (2r, 2s), (2r, 2s+1), (2r+1, 2s), (2r+1, 2s+1). This is "v2" of
    InternVL's modeling_internvl_chat.py; "v1" leaves the token grid transposed.
    """
    n, rows, columns, c = tiles.shape
    blocks = tiles.view(n, rows // factor, factor, columns // factor, factor, c)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(n, rows // factor, columns // factor, factor * factor * c)


class PixelShuffleMLPModel(MegatronModule):
    """One feature map of n tiles -> n * rows * columns / 4 visual tokens."""

    def __init__(self, spec: PixelShuffleMLP, ctx: BuildContext, channels: int, width: int) -> None:
        config = transformer_config(
            whole(ctx),
            num_layers=1,
            num_attention_heads=ctx.parallel.tp,  # there is no attention; TransformerConfig wants tp to divide it
            hidden_size=width,
            ffn_hidden_size=spec.hidden or width,
            activation_func=F.gelu,  # exact
            add_bias_linear=False,
        )
        super().__init__(config=config)
        shuffled = channels * FACTOR**2
        self.norm = nn.LayerNorm(shuffled, eps=spec.norm_eps, dtype=ctx.params_dtype)
        self.mlp = OneLayer(config, shuffled) if spec.hidden is None else _two_layers(config, shuffled)
        mark_split_weights(self)

    def forward(self, features: list[FeatureMap]) -> VisualTokens:
        """One FeatureMap with values [n * rows * columns, channels] -> VisualTokens with values [tokens, width]."""
        (feature,) = features
        shuffled = pixel_shuffle(feature.tiles)
        n, rows, columns, channels = shuffled.shape
        values, _ = self.mlp(self.norm(shuffled.view(-1, 1, channels)))
        return VisualTokens(values.squeeze(1), segments=feature.images.repeat_interleave(rows * columns))


def _two_layers(config: TransformerConfig, shuffled: int) -> nn.Module:
    use = modules(config.params_dtype)
    linears = MLPSubmodules(linear_fc1=use.column, linear_fc2=use.row)
    return MLP(config, linears, input_size=shuffled, ffn_hidden_size=config.ffn_hidden_size)


class OneLayer(MegatronModule):
    """One Linear, split over its inputs as the second of two layers is: so the tokens come out whole."""

    def __init__(self, config: TransformerConfig, shuffled: int) -> None:
        super().__init__(config=config)
        options = {"bias": False, "skip_bias_add": True, "is_expert": False, "input_is_parallel": True}
        row = modules(config.params_dtype).row
        self.linear = row(shuffled, config.hidden_size, config=config, init_method=config.init_method, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[tokens, 1, 4c] -> [tokens, 1, width], and no bias."""
        return self.linear(scatter_to_tensor_model_parallel_region(x))
