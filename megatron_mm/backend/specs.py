"""The one provider of layer modules: Transformer Engine's where it serves, otherwise megatron-core's and ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from .attention import SDPAttention


class Norm:
    """RMSNorm or LayerNorm, as the configuration says, whose parameters know whether the sequence is split.

    megatron-core's own local norm refuses sequence parallelism. The mark makes finalize_model_grads sum the
    gradients over the tensor-parallel ranks, each of which saw another part of the sequence.
    """

    def __new__(  # type: ignore[misc]
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any
    ) -> torch.nn.Module:
        kind = torch.nn.RMSNorm if config.normalization == "RMSNorm" else torch.nn.LayerNorm
        module = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in module.parameters():
            setattr(parameter, "sequence_parallel", config.sequence_parallel)  # noqa: B010
        return module


@dataclass(frozen=True)
class Modules:
    """The building blocks of a transformer layer."""

    norm: type
    column: type
    row: type
    core_attention: type


def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed for a machine with CUDA."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def modules(dtype: torch.dtype) -> Modules:
    """Transformer Engine's modules where present, otherwise megatron-core's linears with our norm and attention.

    Not for float32, which its products would round to TF32.
    """
    if dtype != torch.float32 and has_transformer_engine():
        from megatron.core.extensions import transformer_engine as te

        from .te_attention import EngineAttention

        return Modules(te.TENorm, te.TEColumnParallelLinear, te.TERowParallelLinear, EngineAttention)
    return Modules(Norm, ColumnParallelLinear, RowParallelLinear, SDPAttention)


def layer_spec(
    mask: AttnMaskType,
    attention: type = SelfAttention,
    residual: Callable[..., Any] | ModuleSpec = get_bias_dropout_add,
    qkv_bias: bool | None = None,
    dtype: torch.dtype = torch.float32,
) -> ModuleSpec:
    """A pre-norm transformer layer of parameters of `dtype`: norm, self-attention, add, norm, MLP, add.

    `mask` is causal for a decoder and no_mask for an encoder: megatron-core's own local ViT spec says causal.
    `qkv_bias` overrules the configuration, which can't give the projection a bias and the queries none.
    """
    use = modules(dtype)
    qkv = use.column if qkv_bias is None else _with_bias(use.column, qkv_bias)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=use.norm,
            self_attention=ModuleSpec(
                module=attention,
                params={"attn_mask_type": mask},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=qkv, core_attention=use.core_attention, linear_proj=use.row
                ),
            ),
            self_attn_bda=residual,
            pre_mlp_layernorm=use.norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=use.column, linear_fc2=use.row)),
            mlp_bda=residual,
        ),
    )


def _with_bias(linear: type, bias: bool) -> Callable[..., torch.nn.Module]:
    return lambda *args, **kwargs: linear(*args, **(kwargs | {"bias": bias}))


def recompute_options(recompute: str) -> dict[str, Any]:
    """TransformerConfig's keys for the recomputation named `recompute` ("none", "selective" or "full")."""
    if recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {}
