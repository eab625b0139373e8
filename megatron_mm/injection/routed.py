"""A layer of the decoder with a second set of weights, through which rows go where a visual token stands."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from ..backend import fp8
from ..backend.specs import modules
from .rows import Route, route_of

if TYPE_CHECKING:
    from megatron.core.transformer.module import MegatronModule as Mixed
else:
    Mixed = object


class RoutedNorm(nn.RMSNorm):
    """RMSNorm, which all our decoders have, with a second weight. Each rank of a split sequence has its own rows."""

    route: Route

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.visual = nn.RMSNorm(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in self.parameters():
            setattr(parameter, "sequence_parallel", config.sequence_parallel)  # noqa: B010

    def forward(self, x: Tensor) -> Tensor:
        """[s / tp, b, h] -> the same."""
        return self.route.own.through(x, super().forward, self.visual)


class Routed(Mixed):
    """Goes before one of megatron-core's or Transformer Engine's classes: with a second module of that class.

    Ranks of a split sequence have different numbers of rows of a modality, which the class' own gathering can't have:
    so the sequence is made whole before, and split after.
    """

    kind: ClassVar[type]
    gathers: ClassVar[bool] = True
    scatters: ClassVar[bool] = True
    route: Route

    def __init__(self, *args: Any, config: TransformerConfig, **options: Any) -> None:
        whole = copy.copy(config)
        whole.sequence_parallel = False
        super().__init__(*args, config=whole, **options)
        self.visual = self.kind(*args, config=whole, **options)
        self.is_split, self.multiple = config.sequence_parallel, fp8.multiple(config)

    def forward(self, x: Tensor, **unused: Any) -> tuple[Tensor, None]:
        """[s, b, h] -> [s, b, width] and no bias left to add."""
        if self.is_split and self.gathers:  # whose gradient the class sums up itself
            x = gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=False)
        out = self.route.whole.through(x, super().forward, self.visual, self.multiple)
        return scatter_to_sequence_parallel_region(out) if self.is_split and self.scatters else out, None


class RoutedLinear(Routed):
    """A linear layer of `kind` with a second one."""

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """megatron-core's, which would take a child's weights for whole on every rank."""
        own = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        return own | self.visual.sharded_state_dict(f"{prefix}visual.", sharded_offsets, metadata)


def routed_linear(kind: type, gathers: bool) -> type:
    """The class of linear layers of `kind` with a second one; those at the entrance of a block gather the sequence."""
    own = {"kind": kind, "gathers": gathers, "scatters": not gathers}
    return type(f"Routed{kind.__name__}", (RoutedLinear, kind), own)


class RoutedMLP(Routed, MLP):
    """megatron-core's MLP with a second one."""

    kind = MLP

    def __init__(self, config: TransformerConfig) -> None:
        use = modules(config.params_dtype)
        submodules = MLPSubmodules(linear_fc1=use.column, linear_fc2=use.row)
        super().__init__(config=config, submodules=submodules, ffn_hidden_size=config.ffn_hidden_size)


class RoutedLayer(TransformerLayer):
    """megatron-core's layer, whose modules are told which rows are visual, each time anew: also to recompute."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.routed = [module for module in self.modules() if isinstance(module, Routed | RoutedNorm)]

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        """As TransformerLayer. Where nobody says which rows are visual, none is."""
        inference = options.get("inference_context")
        teller = options.get("packed_seq_params") if inference is None else inference
        route = self._route(hidden_states, teller)
        for module in self.routed:
            module.route = route
        return super().forward(hidden_states, *args, **options)

    def _route(self, hidden: Tensor, teller: Any) -> Route:
        """Worked out by the first layer of a pass, and kept for the others by who tells: it makes the host wait."""
        visual, kept = getattr(teller, "visual", None), getattr(teller, "route", None)
        if visual is not None and kept is not None and kept[0] is visual:
            return kept[1]
        is_split = self.config.sequence_parallel
        rows = len(hidden) * (self.config.tensor_model_parallel_size if is_split else 1)
        mask = torch.zeros(rows, hidden.shape[1], dtype=torch.bool) if visual is None else visual.view(-1, rows).T
        route = route_of(mask.to(hidden.device), is_split)
        if visual is not None:
            teller.route = (visual, route)
        return route


def with_second_weights(layer: ModuleSpec) -> ModuleSpec:
    """A decoder's layer with second norms, attention projections and MLP."""
    parts, attention = layer.submodules, layer.submodules.self_attention
    linears = dataclasses.replace(
        attention.submodules,
        linear_qkv=routed_linear(attention.submodules.linear_qkv, gathers=True),
        linear_proj=routed_linear(attention.submodules.linear_proj, gathers=False),
    )
    return dataclasses.replace(
        layer,
        module=RoutedLayer,
        submodules=dataclasses.replace(
            parts,
            input_layernorm=RoutedNorm,
            self_attention=dataclasses.replace(attention, submodules=linears),
            pre_mlp_layernorm=RoutedNorm,
            mlp=RoutedMLP,
        ),
    )
