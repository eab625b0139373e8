"""What connectors cost, by their specs, against their modules: parameters, what autograd keeps, peaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cost_checks import alone, imitated, kept, learning
from torch._subclasses.fake_tensor import FakeTensorMode

from megavlm.megatron_mm.connectors import CONNECTORS
from megavlm.megatron_mm.contracts import BuildContext, FeatureMap
from megavlm.megatron_mm.costs import Setting
from megavlm.megatron_mm.maps import MapShape
from megavlm.megatron_mm.tower_costs import peak

WIDTH = 4096
CLIP = MapShape("clip", -1, 32, 32, 1024)
NEXT = MapShape("convnext", -1, 32, 32, 3072)
WIDE = MapShape("sam", -1, 64, 64, 256)
LAYERS = tuple(MapShape("clip", layer, 24, 24, 1024) for layer in (3, 8, 13, 18, 23))
CASES: dict[str, list[tuple[tuple[MapShape, ...], dict[str, Any]]]] = {
    "mlp": [((CLIP,), {}), ((CLIP,), {"layers": 1}), ((CLIP,), {"layers": 3, "hidden": 2048})],
    "pixel_shuffle_mlp": [((MapShape("internvit", -1, 32, 32, 3200),), {"hidden": 29568}), ((CLIP,), {"layers": 1})],
    "channel_concat": [((CLIP, NEXT), {}), ((CLIP, WIDE), {})],
    "sequence_append": [((CLIP, NEXT), {})],
    "windows": [((CLIP, NEXT, WIDE), {})],
    "deformable": [((CLIP, NEXT, WIDE), {})],
    "mmfuser": [(LAYERS, {}), (LAYERS, {"attention": "global"}), (LAYERS, {"attention": "linear_sra"}),
                (LAYERS, {"self_attention": False})],
    "multi_layer": [(LAYERS, {"mode": mode}) for mode in ("concat", "average", "weighted", "fpn")],
    "image_rows": [((MapShape("eve", -1, 24, 24, 1024),), {}),
                   ((MapShape("eve_v2", -1, 25, 25, WIDTH),), {"class_attention": False, "layers": 0})],
}  # fmt: skip
EACH = [(name, *case) for name in CONNECTORS for case in CASES[name]]


@pytest.mark.parametrize(("name", "maps", "keys"), EACH, ids=[f"{case[0]}-{i}" for i, case in enumerate(EACH)])
def test_costs_are_the_modules(
    one_process: BuildContext, name: str, maps: tuple[MapShape, ...], keys: dict[str, Any]
) -> None:
    spec: Any = CONNECTORS.load(name).parse({"name": name, **keys})
    cost = spec.cost(maps, WIDTH, Setting())
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module = imitated(lambda: spec.build(BuildContext(torch.bfloat16), maps, WIDTH), mode)
    assert cost.weights == sum(p.numel() for p in module.parameters())
    known = spec.parts(maps, WIDTH)
    assert not known or sum(known.values()) == cost.weights

    def run(tiles: int) -> torch.Tensor:
        images = torch.arange(tiles)
        source = torch.empty(1, dtype=torch.bfloat16, requires_grad=learns)  # nobody holds the maps made of it
        values = (source.expand(tiles * m.rows * m.columns, m.channels).contiguous() for m in maps)
        return module(
            [FeatureMap(each, m.grid, images, m.expert, m.layer) for each, m in zip(values, maps, strict=True)]
        ).values

    with mode:
        learns = True
        assert cost.kept == pytest.approx(kept(run, module), rel=0.03)
        assert peak([cost]) == pytest.approx(learning(run, module), rel=0.1)
        module.requires_grad_(learns := False)
        assert cost.alone == pytest.approx(alone(run, module), rel=0.1)
