"""What the ranks of test_fusions_parallel.py run: every connector of several maps on two tensor-parallel ranks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.connectors import CONNECTORS
from megavlm.megatron_mm.contracts import FeatureMap
from megavlm.megatron_mm.maps import MapShape

EXPERTS = [MapShape("clip", 24, 3, 3, 6), MapShape("convnext", 4, 4, 4, 8), MapShape("eva", 24, 5, 3, 10)]
LAYERS = [MapShape("clip", layer, 3, 4, 6) for layer in (3, 8, 23)]
WIDTH, TILES = 12, 2
CASES: dict[str, tuple[dict[str, Any], Sequence[MapShape]]] = {
    "mlp": ({"name": "mlp"}, EXPERTS[:1]),
    "mlp of one layer": ({"name": "mlp", "layers": 1}, EXPERTS[:1]),
    "mlp of three": ({"name": "mlp", "layers": 3, "hidden": 14}, EXPERTS[:1]),
    "channel_concat": ({"name": "channel_concat", "grid": 4}, EXPERTS),
    "sequence_append": ({"name": "sequence_append", "grid": 4}, EXPERTS),
    "windows": ({"name": "windows", "grid": 2, "dim": 5}, EXPERTS),
    "concat": ({"name": "multi_layer", "mode": "concat"}, LAYERS),
    "average": ({"name": "multi_layer", "mode": "average"}, LAYERS),
    "weighted": ({"name": "multi_layer", "mode": "weighted"}, LAYERS),
    "fpn": ({"name": "multi_layer", "mode": "fpn", "fpn_channels": 5}, LAYERS),
    "mmfuser": ({"name": "mmfuser", "levels": 2, "heads": 2}, LAYERS),
    "mmfuser global": ({"name": "mmfuser", "levels": 2, "heads": 2, "attention": "global"}, LAYERS),
    "mmfuser linear_sra": ({"name": "mmfuser", "levels": 2, "heads": 2, "attention": "linear_sra"}, LAYERS),
    "deformable": ({"name": "deformable", "grid": 4, "heads": 2}, EXPERTS),
}


def run(case: str, parallel: Parallel) -> dict[str, Tensor]:
    """First weights, tokens, and gradients of weights and maps, each whole on every rank; raises where ranks differ."""
    options, maps = CASES[case]
    spec = CONNECTORS.load(options["name"]).parse(options)
    model = spec.build(backend.build_context(parallel), maps, WIDTH)
    backend.initialise(model, seed=3)
    _shift_biases(model)
    source, images = torch.Generator().manual_seed(1), torch.arange(TILES)
    values = [torch.randn(TILES * m.rows * m.columns, m.channels, generator=source).requires_grad_() for m in maps]
    tokens = model([FeatureMap(v, m.grid, images, m.expert, m.layer) for v, m in zip(values, maps, strict=True)]).values
    (tokens * torch.rand(tokens.shape, generator=source)).sum().backward()
    told = {"tokens": alike(tokens.detach())}
    for name, p in model.named_parameters():
        told |= {f"weight {name}": gathered(p.detach(), p), f"gradient {name}": gathered(p.grad, p)}
    return told | {f"gradient of map {k}": alike(v.grad) for k, v in enumerate(values)}


@torch.no_grad()
def _shift_biases(model: nn.Module) -> None:
    """A bias of zero would not show whether it is added once."""
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p += 0.5


def gathered(values: Tensor, p: nn.Parameter) -> Tensor:
    """All ranks' parts of a split weight, along the axis that it says it is split over."""
    if not getattr(p, "tensor_model_parallel", False):
        return alike(values)
    return torch.cat(of_all_ranks(values), dim=p.partition_dim)


def alike(values: Tensor) -> Tensor:
    """What every rank has to have; raises where two differ."""
    for other in of_all_ranks(values):
        torch.testing.assert_close(other, values, rtol=1e-6, atol=1e-6)
    return values


def of_all_ranks(values: Tensor) -> list[Tensor]:
    copies = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, values.contiguous())
    return copies


def run_all(parallel: Parallel) -> dict[str, dict[str, Tensor]]:
    backend.init_distributed(parallel, seed=1)
    return {case: run(case, parallel) for case in CASES}


def main(out: Path) -> None:
    results = run_all(Parallel(tp=2))
    if dist.get_rank() == 0:
        torch.save(results, out)
    backend.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
