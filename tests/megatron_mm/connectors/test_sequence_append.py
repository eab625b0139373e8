"""Sequence append: the order of its tokens, each map's own MLP, Eagle's published sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megavlm.megatron_mm.connectors.sequence_append import SequenceAppend
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.maps import MapShape
from megavlm.platform.errors import ConfigError

MAPS = (MapShape("clip", 24, 3, 3, 6), MapShape("convnext", 4, 2, 2, 8))
CLIP, CONVNEXT = MapShape("clip", 24, 24, 24, 1024), MapShape("convnext", 4, 32, 32, 3072)
SAM = MapShape("sam", 24, 32, 32, 1024)


def test_a_tiles_maps_one_after_another(one_process: BuildContext, drawn, features) -> None:
    spec, given = SequenceAppend(grid=2), features(MAPS, 2)
    model = drawn(spec.build(one_process, MAPS, width=10))
    tokens = model(given)
    w = {name: p.double() for name, p in model.projectors.named_parameters()}
    place = 0
    for tile in range(2):
        for shape, feature in zip(MAPS, given, strict=True):
            x = feature.tiles[tile].double().movedim(-1, 0)[None]
            x = F.interpolate(x, size=(2, 2), mode="bilinear", align_corners=True)[0].flatten(1).T
            one, two = (f"{shape.expert}.{index}" for index in (0, 2))
            x = F.gelu(x @ w[f"{one}.weight"].T + w[f"{one}.bias"]) @ w[f"{two}.weight"].T + w[f"{two}.bias"]
            torch.testing.assert_close(tokens.values[place : place + 4].double(), x, rtol=1e-5, atol=1e-5)
            place += 4
    assert place == len(tokens.values) == 2 * spec.tokens_per_tile(MAPS)
    assert tokens.segments.tolist() == [0] * 8 + [1] * 8


def test_counts_are_those_of_the_module(one_process: BuildContext) -> None:
    spec = SequenceAppend(grid=2, hidden=12)
    model = spec.build(one_process, MAPS, width=10)
    for name, count in spec.parts(MAPS, 10).items():  # a part is what begins with connector.projectors.NAME
        of_part = [p for key, p in model.named_parameters() if key.split(".")[1] == name]
        assert count == sum(p.numel() for p in of_part)
    assert spec.parameters(MAPS, 10) == sum(p.numel() for p in model.parameters())
    assert spec.flops(MAPS, 10).forward == 2 * 4 * (6 * 12 + 12 * 10 + 8 * 12 + 12 * 10)


def test_no_tiles(one_process: BuildContext, of_no_tiles) -> None:
    of_no_tiles(SequenceAppend(grid=2).build(one_process, MAPS, width=10), MAPS, 10)


def test_sizes_of_eagles_table_4() -> None:
    spec = SequenceAppend()
    parts = spec.parts((CLIP, CONVNEXT), 4096)
    assert [count / 1e6 for count in parts.values()] == pytest.approx([20.98, 29.37], abs=0.01)
    assert 303.5 + 846.5 + spec.parameters((CLIP, CONVNEXT), 4096) / 1e6 == pytest.approx(1200, abs=1)
    assert 303.5 + 846.5 + 307.7 + spec.parameters((CLIP, CONVNEXT, SAM), 4096) / 1e6 == pytest.approx(1529, abs=1)
    assert [spec.tokens_per_tile(maps) for maps in ((CLIP, CONVNEXT), (CLIP, CONVNEXT, SAM))] == [2048, 3072]


def test_layers_of_one_expert_are_told_apart() -> None:
    layers = (MapShape("clip", 12, 2, 2, 6), MapShape("clip", -1, 2, 2, 6), MapShape("sam", 24, 2, 2, 8))
    assert list(SequenceAppend().parts(layers, 10)) == ["clip_12", "clip_-1", "sam"]
    with pytest.raises(ConfigError, match="2 are called clip_12"):
        SequenceAppend().parts((layers[0], layers[0]), 10)
