"""The projector on megatron-core's tensor-parallel linears, and the connector that is nothing else."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from megatron.core.tensor_parallel import scatter_to_tensor_model_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from ..backend.specs import modules
from ..backend.transformer import mark_split_weights, transformer_config, whole
from ..contracts import BuildContext, FeatureMap, VisualTokens
from ..layout import require_divisible
from .mlp import mlp_widths

if TYPE_CHECKING:
    from .mlp import MLP, MLPConnector


class Projector(MegatronModule):
    """Linear -> exact GELU -> Linear ..., with biases (LLaVA's mlpNx_gelu), split over tensor parallelism.

    The linears have the names that they have in LLaVA's nn.Sequential, "0", "2" and so on. Counted from the last one
    every other is split over its inputs, and the one before it over its outputs: nothing has to be gathered between
    them, and the tokens come out whole. Of an odd number the first takes its part of inputs that are whole.
    """

    def __init__(
        self, ctx: BuildContext, channels: int, width: int, hidden: int | None = None, layers: int = 2
    ) -> None:
        super().__init__(config=_config(ctx, width, hidden))
        widths = pairwise(mlp_widths(channels, width, hidden, layers))
        self.starts_split = layers % 2 == 1
        if self.starts_split:
            require_divisible(channels, "channels of the connector's input", ctx.parallel.tp, "parallel.tp")
        for index, (before, after) in enumerate(widths):
            over_inputs = (layers - index) % 2 == 1
            self.add_module(str(2 * index), _linear(self.config, before, after, over_inputs))
        mark_split_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, channels] -> [tokens, width]. Each bias is added once: a split product comes back without it."""
        x = x.unsqueeze(1)  # megatron-core's [sequence, batch, channels]
        x = scatter_to_tensor_model_parallel_region(x) if self.starts_split else x
        for index, linear in enumerate(self.children()):
            product, bias = linear(F.gelu(x) if index else x)
            x = product + bias
        return x.squeeze(1)


class MLPModel(MegatronModule):
    """One feature map of n tiles -> n * rows * columns visual tokens."""

    def __init__(self, spec: MLP, ctx: BuildContext, channels: int, width: int) -> None:
        projector = projector_of(spec, ctx, channels, width)
        super().__init__(config=projector.config)
        self.projector = projector

    def forward(self, features: list[FeatureMap]) -> VisualTokens:
        """One FeatureMap with values [n * rows * columns, channels] -> VisualTokens with values [tokens, width]."""
        (feature,) = features
        return as_tokens(self.projector(feature.values), feature)


def projector_of(spec: MLPConnector, ctx: BuildContext, channels: int, width: int) -> Projector:
    """The MLP in which a connector of this shape ends."""
    return Projector(ctx, channels, width, spec.hidden, spec.layers)


def as_tokens(values: Tensor, feature: FeatureMap) -> VisualTokens:
    """Tokens [n * per tile, width], tile after tile, of the n tiles that `feature` is of."""
    per_tile = len(values) // max(len(feature.images), 1)
    return VisualTokens(values, segments=feature.images.repeat_interleave(per_tile))


def _config(ctx: BuildContext, width: int, hidden: int | None) -> TransformerConfig:
    """Attention there is none; TransformerConfig wants tp to divide its heads."""
    shape = {"num_layers": 1, "num_attention_heads": ctx.parallel.tp}
    return transformer_config(whole(ctx), hidden_size=width, ffn_hidden_size=hidden or width, **shape)


def _linear(config: TransformerConfig, channels: int, width: int, over_inputs: bool) -> nn.Module:
    use = modules(config.params_dtype)
    options: dict[str, Any] = {"bias": True, "skip_bias_add": True, "is_expert": False, "config": config}
    init = config.init_method
    if over_inputs:
        return use.row(channels, width, init_method=init, input_is_parallel=True, **options)
    return use.column(channels, width, init_method=init, gather_output=False, **options)
