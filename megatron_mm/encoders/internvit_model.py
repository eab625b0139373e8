"""InternViT on megatron-core's transformer block.

Follows the published modeling_intern_vit.py: x += ls1 * attn(norm1(x)), x += ls2 * mlp(norm2(x)), no final norm; the
features are the last hidden state without the class token.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, reduce_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from megavlm.kernels.tile_normalise import tile_normalise

from ..backend.fp8 import filled_up, multiple
from ..backend.guards import require_bidirectional
from ..backend.specs import layer_spec
from ..backend.transformer import mark_split_weights, transformer_config, whole
from ..contracts import BuildContext, FeatureMap
from .positions import resized

if TYPE_CHECKING:
    from .internvit import InternViT

NORMS = {"rms": "RMSNorm", "layer": "LayerNorm"}


class JointHeadNorm(MegatronModule):
    """RMSNorm over the concatenation of ALL heads, which tensor parallelism has spread over ranks.

    y = x * rsqrt(mean over real heads and channels of x^2 + eps) * weight. Each rank holds its heads' slice of the
    weight (published length: heads * head_dim, dummy heads included); the mean square is summed over the ranks.
    """

    def __init__(self, config: TransformerConfig, tp_group: Any) -> None:
        super().__init__(config=config)
        self.tp_group = tp_group
        self.size = config.hidden_size  # of the real heads, which come first
        local = config.num_attention_heads * config.kv_channels // tp_group.size()
        self.real = min(max(self.size - tp_group.rank() * local, 0), local)
        self.weight = nn.Parameter(torch.empty(local, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, local heads, d] -> the same, normalised; the statistic is taken in float32."""
        flat = x.flatten(2).float()
        squares = flat[..., : self.real].square().sum(-1, keepdim=True)
        # Every rank uses the sum, so its gradient is summed too: reduce has an identity backward, copy the sum.
        squares = copy_to_tensor_model_parallel_region(
            reduce_from_tensor_model_parallel_region(squares, group=self.tp_group), group=self.tp_group
        )
        normed = flat * torch.rsqrt(squares / self.size + self.config.layernorm_epsilon)
        return (self.weight * normed.to(x.dtype)).view_as(x)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """The weight, split over tensor-parallel ranks."""
        groups = {"tp_group": self.tp_group, "dp_cp_group": ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"]}
        state = self.state_dict(keep_vars=True)
        return make_sharded_tensors_for_checkpoint(state, prefix, {"weight": 0}, sharded_offsets, **groups)


class JointNormAttention(SelfAttention):
    """Self-attention whose queries and keys each pass one norm over all heads.

    The norms are not called q_layernorm/k_layernorm: megatron-core would take those for per-head norms, whose
    gradients it sums over tensor-parallel ranks.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.q_norm = JointHeadNorm(self.config, self.tp_group)
        self.k_norm = JointHeadNorm(self.config, self.tp_group)

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> Any:
        """megatron-core's, then the norms. (Unsplit qkv is asked for with fused rotary positions only.)"""
        query, key, value = super().get_query_key_value_tensors(*args, **kwargs)
        return self.q_norm(query), self.k_norm(key), value


class LayerScale(nn.Module):
    """residual + scale * (x + bias): stands where megatron-core adds bias and residual (CaiT, Touvron et al. 2021)."""

    def __init__(self, hidden: int, init: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(hidden, dtype=dtype))
        setattr(self.scale, "init_constant", init)  # noqa: B010

    def forward(self, training: bool, fused: bool) -> Any:
        """megatron-core asks for the function first and calls it with ((x, bias), residual, dropout)."""
        return self._add

    def _add(self, x_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
        x, bias = x_with_bias
        return residual + self.scale * (x if bias is None else x + bias)


class PatchEmbedding(nn.Module):
    """Normalised pixels, a convolution over patches, a class token, and learned positions (class token first)."""

    def __init__(self, spec: InternViT, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec = spec
        self.patches = nn.Conv2d(3, spec.hidden, spec.patch_size, spec.patch_size, dtype=dtype)
        self.class_token = nn.Parameter(torch.empty(spec.hidden, dtype=dtype))
        self.positions = nn.Parameter(torch.empty(1 + prod(spec.table), spec.hidden, dtype=dtype))
        for table in (self.class_token, self.positions):
            setattr(table, "init_std", 0.02)  # noqa: B010

    def forward(self, tiles: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> [n, 1 + rows * columns, hidden]; the convolution is one matrix product over patches."""
        weight, spec = self.patches.weight, self.spec
        pixels = tile_normalise(tiles, spec.patch_size, spec.mean, spec.std, dtype=weight.dtype)
        patches = F.linear(pixels, weight.flatten(1), self.patches.bias)
        class_token = self.class_token.expand(len(tiles), 1, -1)
        return torch.cat([class_token, patches], dim=1) + resized(self.positions, spec.table, spec.grid)


class InternViTModel(MegatronModule):
    """Tiles [n, 3, H, W] in 0..255 -> one FeatureMap of n * rows * columns tokens."""

    def __init__(self, spec: InternViT, ctx: BuildContext) -> None:
        super().__init__(config=_config(spec, ctx))
        self.spec = spec
        layer = _layer_spec(spec, ctx)
        require_bidirectional(layer)
        self.embedding = PatchEmbedding(spec, ctx.params_dtype)
        self.block = TransformerBlock(
            self.config, TransformerBlockSubmodules(layer_specs=[layer] * spec.layers), post_layer_norm=False
        )
        mark_split_weights(self)
        for built in self.block.layers:
            _draw_real_heads_only(built.self_attention, spec.hidden)

    def forward(self, tiles: Tensor) -> list[FeatureMap]:
        """uint8 [n, 3, H, W] (float where pixels want a gradient) -> [FeatureMap of [n * rows * columns, hidden]]."""
        full = filled_up(tiles, 1 + prod(self.spec.grid), multiple(self.config))
        x = self.embedding(full).transpose(0, 1).contiguous()  # megatron-core's [s, b, h]
        x = self.block(x, attention_mask=None)
        values = x[1:, : len(tiles)].transpose(0, 1).reshape(-1, self.spec.hidden)
        images = torch.arange(len(tiles), device=tiles.device)
        return [FeatureMap(values, self.spec.grid, images, expert="internvit", layer=-1)]


def _draw_real_heads_only(attention: Any, real: int) -> None:
    """First weights of dummy heads are zero. `real` is the real heads' width; megatron-core's qkv is head by head."""
    drawn = {
        "linear_qkv.weight": (3 * real, real),
        "linear_qkv.bias": (3 * real,),
        "linear_proj.weight": (real, real),
        "q_norm.weight": (real,),
        "k_norm.weight": (real,),
    }
    for name, parameter in attention.named_parameters():
        if name in drawn:
            setattr(parameter, "init_shape", drawn[name])  # noqa: B010


def _config(spec: InternViT, ctx: BuildContext) -> TransformerConfig:
    """Whole on every process but for tensor parallelism: a tile is short, and tiles are shared out (encode.py)."""
    return transformer_config(
        whole(ctx),
        num_layers=spec.layers,
        hidden_size=spec.hidden,
        num_attention_heads=spec.heads + spec.dummy_heads,
        kv_channels=spec.hidden // spec.heads,
        ffn_hidden_size=spec.ffn,
        normalization=NORMS[spec.norm],
        layernorm_epsilon=spec.norm_eps,
        activation_func=F.gelu,  # exact; megatron-core's fused bias+GELU would be the tanh approximation
        bias_activation_fusion=False,
        add_bias_linear=True,
    )


def _layer_spec(spec: InternViT, ctx: BuildContext) -> ModuleSpec:
    scale = {"hidden": spec.hidden, "init": spec.layer_scale, "dtype": ctx.params_dtype}
    attention = JointNormAttention if spec.qk_norm else SelfAttention
    residual = ModuleSpec(module=LayerScale, params=scale)
    return layer_spec(AttnMaskType.no_mask, attention, residual, qkv_bias=spec.qkv_bias, dtype=ctx.params_dtype)
