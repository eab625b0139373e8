"""Layers of one expert joined in four ways, each against its formula in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megavlm.megatron_mm.connectors.multi_layer import MODES, MultiLayer
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.maps import MapShape
from megavlm.platform.errors import ConfigError

MAPS = [MapShape("clip", layer, 3, 4, 6) for layer in (3, 8, 23)]
OPTIONS: dict[str, dict[str, Any]] = {mode: {"mode": mode, "fpn_channels": 5} for mode in MODES}


def concat(maps: list[Tensor], w: dict[str, Tensor]) -> Tensor:
    return torch.cat(maps, dim=-1)


def average(maps: list[Tensor], w: dict[str, Tensor]) -> Tensor:
    return (maps[0] + maps[1] + maps[2]) / 3


def weighted(maps: list[Tensor], w: dict[str, Tensor]) -> Tensor:
    shares = w["fuser.scores"].exp() / w["fuser.scores"].exp().sum()
    return shares[0] * maps[0] + shares[1] * maps[1] + shares[2] * maps[2]


def fpn(maps: list[Tensor], w: dict[str, Tensor]) -> Tensor:
    """Level k is the sum of all 1 x 1 projections from k up, through its own 3 x 3 convolution."""
    flat = [x @ w[f"fuser.lateral.{k}.weight"][:, :, 0, 0].T + w[f"fuser.lateral.{k}.bias"] for k, x in enumerate(maps)]
    levels = []
    for k in range(3):
        merged = F.pad(torch.stack(flat[k:]).sum(0), (0, 0, 1, 1, 1, 1))
        kernel = w[f"fuser.output.{k}.weight"]
        taps = [
            merged[:, dy : dy + 3, dx : dx + 4] @ kernel[:, :, dy, dx].T for dy in range(3) for dx in range(3)
        ]  # the nine neighbours of each of 3 x 4 cells
        levels.append(torch.stack(taps).sum(0) + w[f"fuser.output.{k}.bias"])
    return torch.cat(levels, dim=-1)


STATEMENTS = {"concat": concat, "average": average, "weighted": weighted, "fpn": fpn}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_its_formula(one_process: BuildContext, drawn, features, mode: str) -> None:
    spec, given = MultiLayer(**OPTIONS[mode]), features(MAPS, 2)
    model = drawn(spec.build(one_process, MAPS, width=10))
    tokens = model(given)
    w = {name: p.double() for name, p in model.named_parameters()}
    x = STATEMENTS[mode]([each.tiles.double() for each in given], w).flatten(0, 2)
    x = F.gelu(F.linear(x, w["projector.0.weight"], w["projector.0.bias"]))
    wanted = F.linear(x, w["projector.2.weight"], w["projector.2.bias"])
    torch.testing.assert_close(tokens.values.double(), wanted, rtol=1e-5, atol=1e-4)
    assert tokens.segments.tolist() == [0] * 12 + [1] * 12
    assert spec.tokens_per_tile(MAPS) == 12


@pytest.mark.parametrize("mode", MODES)
def test_counts_are_those_of_the_module(one_process: BuildContext, mode: str) -> None:
    spec = MultiLayer(**OPTIONS[mode])
    model = spec.build(one_process, MAPS, width=10)
    parts = spec.parts(MAPS, 10)
    assert set(parts) == {name.split(".")[0] for name, _ in model.named_parameters()}
    for part, count in parts.items():
        assert count == sum(p.numel() for name, p in model.named_parameters() if name.startswith(f"{part}."))
    assert spec.parameters(MAPS, 10) == sum(p.numel() for p in model.parameters())
    matrices = [p for p in model.parameters() if p.dim() > 1]  # each is used once in every one of 12 cells
    assert spec.flops(MAPS, 10).forward == 2 * 12 * sum(p.numel() for p in matrices)


@pytest.mark.parametrize("mode", MODES)
def test_no_tiles(one_process: BuildContext, of_no_tiles, mode: str) -> None:
    of_no_tiles(MultiLayer(**OPTIONS[mode]).build(one_process, MAPS, width=10), MAPS, 10)


def test_weights_begin_as_the_mean(one_process: BuildContext) -> None:
    from megavlm.megatron_mm import backend

    model = MultiLayer(mode="weighted").build(one_process, MAPS, width=10)
    with torch.no_grad():
        model.fuser.scores.fill_(float("nan"))
    backend.initialise(model, seed=1)
    assert model.fuser.scores.tolist() == [0, 0, 0]


def test_maps_of_several_grids_want_a_common_one(one_process: BuildContext, drawn, features) -> None:
    maps = [MapShape("convnext", 3, 8, 8, 6), MapShape("convnext", 4, 4, 4, 6)]
    with pytest.raises(ConfigError, match="layer 4 of convnext has 4 x 4 cells, layer 3 has 8 x 8"):
        MultiLayer().tokens_per_tile(maps)
    spec = MultiLayer(grid=4)
    assert drawn(spec.build(one_process, maps, width=10))(features(maps, 2)).values.shape == (2 * 16, 10)
    assert spec.tokens_per_tile(maps) == 16


@pytest.mark.parametrize(
    ("mode", "maps", "said"),
    [
        ("concat", MAPS[:1], "the encoder gives 1"),
        ("concat", [*MAPS, MapShape("sam", 24, 3, 4, 6)], "sam layer 24 is not clip's"),
        ("average", [*MAPS, MapShape("clip", 24, 3, 4, 8)], "layer 24 of clip has 8 channels, layer 3 has 6"),
    ],
)
def test_maps_that_do_not_fit(mode: str, maps: list[MapShape], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MultiLayer(**OPTIONS[mode]).parameters(maps, 10)
