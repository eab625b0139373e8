"""A layer of the decoder with gated cross-attention, on megatron-core's tensor-parallel linears.

megatron-core's own CrossAttention refuses grouped queries, and takes a context to be split like the sequence.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from ..backend.attention import SDPAttention
from ..backend.specs import modules
from .sight import Sight

if TYPE_CHECKING:
    from ..decoders.base import Decoder
    from .cross_attention import Gated


class Gate(nn.Module):
    """f(weight) * x with f tanh (Flamingo, arXiv 2204.14198, 3.1.2) or the identity; one weight, or one a channel."""

    def __init__(self, spec: Gated, config: TransformerConfig) -> None:
        super().__init__()
        size = config.hidden_size if spec.gate_size == "channel" else 1
        self.weight = nn.Parameter(torch.empty(size, dtype=config.params_dtype))
        self.bend = torch.tanh if spec.gate == "tanh" else lambda weight: weight
        setattr(self.weight, "init_constant", spec.gate_init)  # noqa: B010
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, h] -> [s, b, h]."""
        return self.bend(self.weight) * x


def _gate(spec: Gated, config: TransformerConfig) -> nn.Module:
    return nn.Identity() if spec.gate == "none" else Gate(spec, config)


class ContextAttention(MegatronModule):
    """Queries of the sequence, keys and values of a context; grouped as `groups` says."""

    def __init__(self, config: TransformerConfig, groups: int, layer_number: int) -> None:
        super().__init__(config=config)
        use, width = modules(config.params_dtype), config.kv_channels * config.num_attention_heads
        whole = copy.copy(config)  # a context is never split over tensor-parallel ranks
        whole.sequence_parallel = False
        self.layer_number, self.dim = layer_number, config.kv_channels
        shared = {"bias": False, "skip_bias_add": False, "is_expert": False}
        column = {"init_method": config.init_method, "gather_output": False, **shared}
        self.linear_q = use.column(config.hidden_size, width, config=config, **column)
        self.linear_kv = use.column(config.hidden_size, 2 * groups * self.dim, config=whole, **column)
        row = {"init_method": config.output_layer_init_method, "input_is_parallel": True, **shared}
        self.linear_proj = use.row(width, config.hidden_size, config=config, **row)
        self.core = SDPAttention(config, layer_number, AttnMaskType.no_mask, "cross")

    def forward(self, hidden: Tensor, context: Tensor | None, sight: Sight, kept: dict[Any, Any] | None) -> Tensor:
        """Hidden states [s, 1, h], context [c, 1, h] -> [s, 1, h]; rows that see nothing get zeros.

        `kept` is where keys and values of a generation stay: its first call has the context, later ones have None.
        """
        query = self.linear_q(hidden)[0].unflatten(-1, (-1, self.dim))
        key, value = self._keys_and_values(context, kept)
        out = self.core.attend_samples(query[:, 0], key[:, 0], value[:, 0], sight)
        return self.linear_proj(out.flatten(1)[:, None])[0]

    def _keys_and_values(self, context: Tensor | None, kept: dict[Any, Any] | None) -> tuple[Tensor, Tensor]:
        place = ("cross", self.layer_number)
        if context is None:
            return kept[place]  # type: ignore[index]
        key, value = self.linear_kv(context)[0].unflatten(-1, (-1, 2 * self.dim)).chunk(2, dim=-1)
        if kept is not None:
            kept[place] = (key, value)
        return key, value


class Cross(MegatronModule):
    """hidden + gate * attention(norm(hidden), context), and the like with a feed-forward where it has its own."""

    def __init__(self, config: TransformerConfig, spec: Gated, groups: int, layer_number: int) -> None:
        super().__init__(config=config)
        use = modules(config.params_dtype)
        self.norm = use.norm(config, config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ContextAttention(config, groups, layer_number)
        self.gate = _gate(spec, config)
        self.mlp = None
        if spec.ffn:
            self.mlp_norm = use.norm(config, config.hidden_size, eps=config.layernorm_epsilon)
            submodules = MLPSubmodules(linear_fc1=use.column, linear_fc2=use.row)
            self.mlp = MLP(config, submodules, ffn_hidden_size=config.ffn_hidden_size)
            self.mlp_gate = _gate(spec, config)

    def forward(self, hidden: Tensor, context: Tensor | None, sight: Sight, kept: dict[Any, Any] | None) -> Tensor:
        """See the class. A row that sees nothing stays as it is: packed beside an image or not, text is text."""
        hidden = hidden + self.gate(self.attention(self.norm(hidden), context, sight, kept))
        if self.mlp is None:
            return hidden
        return hidden + self.mlp_gate(self.mlp(self.mlp_norm(hidden))[0]) * self._sees(hidden, sight)

    def _sees(self, hidden: Tensor, sight: Sight) -> Tensor:
        """[s, 1, 1] of hidden's dtype: 1 for a row that sees something. Under sequence parallelism this rank's rows."""
        split = self.config.sequence_parallel
        size = parallel_state.get_tensor_model_parallel_world_size() if split else 1
        seen = hidden.new_zeros(len(hidden) * size, 1, 1)
        seen[torch.cat([sample.rows for sample in sight])] = 1
        return seen.chunk(size)[parallel_state.get_tensor_model_parallel_rank()] if split else seen


class CrossLayer(TransformerLayer):
    """megatron-core's layer, with cross-attention between self-attention and feed-forward, or before both.

    Where a pack has no context the layer is the decoder's own, at its cost: the gates are off for text (NVLM 3.2).
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerLayerSubmodules,
        spec: Gated,
        groups: int,
        **options: Any,
    ) -> None:
        super().__init__(config, submodules, **options)
        self.inside = spec.where == "inside"
        self.cross = Cross(config, spec, groups, self.layer_number)

    def forward(self, hidden_states: Tensor, context: Tensor | None = None, **options: Any) -> Any:
        """As TransformerLayer; the context [c, 1, h] goes on to the next layer."""
        options.pop("dynamic_inference_decode_only", None)
        if not self.inside:
            hidden_states = self._see(hidden_states, context, options)
        hidden_states, _ = self._forward_attention(hidden_states, **options)
        if self.inside:
            hidden_states = self._see(hidden_states, context, options)
        padding = options.get("padding_mask")
        return self._forward_mlp(hidden_states, options.get("inference_context"), padding_mask=padding), context

    def _see(self, hidden: Tensor, context: Tensor | None, options: dict[str, Any]) -> Tensor:
        inference = options.get("inference_context")
        teller = options.get("packed_seq_params") if inference is None else inference
        sight = getattr(teller, "sight", None)
        if not sight:
            return hidden
        return self.cross(hidden, context, sight, None if inference is None else inference.key_value_memory_dict)


def with_cross(layer: ModuleSpec, spec: Gated, decoder: Decoder) -> ModuleSpec:
    """A decoder's layer with gated cross-attention."""
    options = {"spec": spec, "groups": spec.groups(decoder)}
    return ModuleSpec(module=CrossLayer, params={**(layer.params or {}), **options}, submodules=layer.submodules)
