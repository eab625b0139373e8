"""Linear layers and packed attention, forward and backward: torch's and ours against Transformer Engine's."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from timing import CUDA, DEVICE, engine_version, forward_backward, seconds

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend.attention import SDPAttention
from megavlm.megatron_mm.backend.specs import modules
from megavlm.megatron_mm.config import Parallel


def layers(dry: bool, ceilings: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per linear layer [rows, width] -> [rows, 4 width] and arithmetic."""
    found = []
    for rows, width in [(128, 128)] if dry else [(8192, 4096), (8192, 8192)]:
        x = torch.randn(rows, width, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
        for name, layer, context in _linears(width):
            inputs = [x, *layer.parameters()]

            def run(layer: Any = layer, context: Any = context, x: torch.Tensor = x) -> torch.Tensor:
                with context():
                    return layer(x)

            took = seconds(forward_backward(run, inputs))
            rate = 6 * rows * width * 4 * width / took
            row = {"rows": rows, "width": width, "arithmetic": name, "seconds": took, "flops_per_second": rate}
            found.append(row | {"of_bf16_ceiling": rate / ceilings["bf16_flops"]})
    return found


def _linears(width: int) -> list[tuple[str, torch.nn.Module, Any]]:
    plain = torch.nn.Linear(width, 4 * width, bias=False, dtype=torch.bfloat16, device=DEVICE)
    found: list[tuple[str, torch.nn.Module, Any]] = [("torch bf16", plain, nullcontext)]
    if engine_version() is None:
        return found
    import transformer_engine.pytorch as te
    from transformer_engine.common import recipe

    layer = te.Linear(width, 4 * width, bias=False, params_dtype=torch.bfloat16)
    found.append(("engine bf16", layer, nullcontext))
    kinds = (recipe.DelayedScaling, recipe.Float8CurrentScaling, recipe.Float8BlockScaling)
    for name, kind in zip(("fp8", "fp8_tensorwise", "fp8_blockwise"), kinds, strict=True):
        fresh = te.Linear(width, 4 * width, bias=False, params_dtype=torch.bfloat16)
        found.append((name, fresh, lambda kind=kind: te.fp8_autocast(enabled=True, fp8_recipe=kind())))
    return found


def attention(dry: bool, ceilings: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per number of segments in a pack of grouped-query, causal attention."""
    length, heads, groups, width = (256, 4, 2, 32) if dry else (8192, 64, 8, 128)
    backend.init_distributed(Parallel(), seed=1)
    config = TransformerConfig(
        num_layers=1,
        hidden_size=heads * width,
        num_attention_heads=heads,
        num_query_groups=groups,
        attention_dropout=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
    )
    kinds = {"ours": SDPAttention, "used": modules(torch.bfloat16).core_attention}
    rows = []
    for count in (1, 4) if dry else (1, 8, 64):
        sizes = (length, heads, groups, width)
        made = {name: kind(config, 1, AttnMaskType.causal, "self") for name, kind in kinds.items()}
        times = {name: _attend(core, *sizes, count) for name, core in made.items()}
        flops = 7 * heads * width * length**2 / count  # 2 products forward, 5 backward, half of the square
        rates = {name: flops / took for name, took in times.items()}
        rows.append({"length": length, "segments": count, "seconds": times, "flops_per_second": rates})
    backend.shutdown()
    return rows


def _attend(core: Any, length: int, heads: int, groups: int, width: int, count: int) -> float:
    query, key, value = (
        torch.randn(length, n, width, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
        for n in (heads, groups, groups)
    )
    ends = torch.arange(0, length + 1, length // count, dtype=torch.int32, device=DEVICE)
    packed = PackedSeqParams("thd", ends, ends, max_seqlen_q=length // count, max_seqlen_kv=length // count)
    core = core.to(DEVICE) if CUDA else core
    work = forward_backward(lambda: core(query, key, value, None, packed_seq_params=packed), [query, key, value])
    return seconds(work)
