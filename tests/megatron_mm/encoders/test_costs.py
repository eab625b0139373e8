"""What encoders cost, by their specs, against their modules: parameters, what autograd keeps, peaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cost_checks import alone, imitated, kept, learning
from torch._subclasses.fake_tensor import FakeTensorMode

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.costs import Setting
from megavlm.megatron_mm.encoders import ENCODERS
from megavlm.megatron_mm.encoders.internvit import InternViT
from megavlm.megatron_mm.tower_costs import peak, total
from megavlm.megatron_mm.tracing.fused import fused
from megavlm.megatron_mm.tracing.world import one_rank

# Published widths and few layers: of each kind one.
SAM = {"name": "sam", "layers": 2, "global_layers": [1]}
CONVNEXT = {"name": "convnext", "depths": [1, 1, 2, 1]}
CLIP = {"name": "clip", "image_size": 448, "trained_size": 336, "layers": 2, "layer": -1}
SMALL = {"layers": 2, "hidden": 1024, "heads": 16, "ffn": 4096, "norm": "layer", "qk_norm": False, "qkv_bias": True}
CASES: dict[str, list[dict[str, Any]]] = {
    "internvit": [{"layers": 2, "dummy_heads": 7}, SMALL],
    "clip": [{"layers": 2}, {"layers": 2, "class_token": "dropped", "layer": -1}],
    "siglip": [{"layers": 2, "layer": -1}],
    "sam": [SAM | {"neck": "published", "unshuffle": 1}],
    "convnext": [CONVNEXT],
    "eva02": [{"layers": 3}],
    "pix2struct": [{"layers": 2}],
    "dinov2": [{"layers": 2}],
    "eve": [{}, {"window_attention": False}],
    "eve_v2": [{}],
    "mixture": [{"experts": {"sam": SAM, "clip": CLIP}}],
    "llava_hr": [{"low": CLIP | {"class_token": "dropped"}, "high": CONVNEXT, "after": [1, 2]}],
}
EACH = [(name, keys) for name in ENCODERS for keys in CASES[name]]


@pytest.mark.parametrize(("name", "keys"), EACH, ids=[f"{name}-{i}" for i, (name, _) in enumerate(EACH)])
def test_costs_are_the_modules(one_process: BuildContext, name: str, keys: dict[str, Any]) -> None:
    spec: Any = ENCODERS.load(name).parse({"name": name, **keys})
    costs = spec.costs(Setting(composed_norms=True))  # as on this CPU
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module = imitated(lambda: spec.build(BuildContext(torch.bfloat16)), mode)
    assert total(costs).weights == sum(p.numel() for p in module.parameters()) == spec.parameters()

    def run(tiles: int) -> torch.Tensor:
        pixels = torch.empty(tiles, 3, spec.image_size, spec.image_size, dtype=torch.uint8)
        return torch.cat([each.values.flatten() for each in module(pixels)])

    with mode:
        assert total(costs).kept == pytest.approx(kept(run, module), rel=0.03)
        assert peak(costs) == pytest.approx(learning(run, module), rel=0.1)
        module.requires_grad_(False)
        assert max(cost.alone for cost in costs) == pytest.approx(alone(run, module), rel=0.1)


@pytest.mark.parametrize("tp", [2, 8])
def test_a_rank_has_its_share(tp: int) -> None:
    """The last rank of a faked tensor-parallel group, RMSNorm a single operation as on a GPU."""
    spec, parallel = InternViT(layers=2, dummy_heads=7), Parallel(tp=tp)
    costs = spec.costs(Setting(tp=tp))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with one_rank(tp - 1, tp, parallel, seed=1), fused(True):
        module = imitated(lambda: spec.build(BuildContext(torch.bfloat16, parallel)), mode)
        assert total(costs).weights == sum(p.numel() for p in module.parameters())

        def run(tiles: int) -> torch.Tensor:
            return module(torch.empty(tiles, 3, 448, 448, dtype=torch.uint8))[0].values

        with mode:
            assert total(costs).kept == pytest.approx(kept(run, module), rel=0.03)
            module.requires_grad_(False)
            assert max(cost.alone for cost in costs) == pytest.approx(alone(run, module), rel=0.1)
