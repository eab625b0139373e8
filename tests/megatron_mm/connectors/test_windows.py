"""Attention to co-located windows against a loop over cells, and Mini-Gemini's size."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavlm.megatron_mm.connectors.windows import Windows
from megavlm.megatron_mm.contracts import BuildContext, FeatureMap
from megavlm.megatron_mm.maps import MapShape
from megavlm.platform.errors import ConfigError

GRID = 2
ASKING = MapShape("clip", 24, 3, 3, 6)
TWICE, ODD = MapShape("convnext", 4, 4, 4, 8), MapShape("eva", 24, 5, 3, 10)  # 5 x 3 becomes 6 x 4
SPEC = Windows(grid=GRID, dim=5)


def resized(feature: FeatureMap, rows: int, columns: int) -> Tensor:
    x = feature.tiles.double().movedim(-1, 1)
    return F.interpolate(x, size=(rows, columns), mode="bilinear", align_corners=True).movedim(1, -1)


def normed(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * w[f"{name}.0.weight"] + w[f"{name}.0.bias"]
    return w[f"{name}.1.weight"] @ x + w[f"{name}.1.bias"]


def brute_force(model: nn.Module, given: list[FeatureMap], sizes: list[tuple[int, int]]) -> Tensor:
    """Cell by cell, in float64: sizes are those that the other maps are resized to."""
    w = {name: p.double() for name, p in model.named_parameters()}
    asking = resized(given[0], GRID, GRID)
    others = [resized(each, *size) for each, size in zip(given[1:], sizes, strict=True)]
    out = []
    for n, y, x in torch.cartesian_prod(torch.arange(len(asking)), torch.arange(GRID), torch.arange(GRID)).tolist():
        scores, values = [], []
        for index, other in enumerate(others):
            down, across = other.shape[1] // GRID, other.shape[2] // GRID
            for cell in other[n, y * down : (y + 1) * down, x * across : (x + 1) * across].reshape(down * across, -1):
                query = normed(w, "fuser.queries", asking[n, y, x])
                scores.append(query @ normed(w, f"fuser.keys.{index}", cell) / math.sqrt(5))
                values.append(normed(w, f"fuser.values.{index}", cell))
        chances = torch.stack(scores).softmax(0)
        out.append(asking[n, y, x] + sum(c * v for c, v in zip(chances, values, strict=True)))
    hidden = F.gelu(F.linear(torch.stack(out), w["projector.0.weight"], w["projector.0.bias"]))
    return F.linear(hidden, w["projector.2.weight"], w["projector.2.bias"])


@pytest.mark.parametrize(
    ("others", "sizes"),
    [([TWICE], [(4, 4)]), ([ODD], [(6, 4)]), ([TWICE, ODD], [(4, 4), (6, 4)])],
    ids=["multiple", "no multiple", "two"],
)
def test_every_cell_sees_its_own_place(
    one_process: BuildContext, drawn, features, others: list[MapShape], sizes: list[tuple[int, int]]
) -> None:
    maps = [ASKING, *others]
    model, given = drawn(SPEC.build(one_process, maps, width=12)), features(maps, 2)
    tokens = model(given)
    torch.testing.assert_close(tokens.values.double(), brute_force(model, given, sizes), rtol=1e-5, atol=1e-5)
    assert tokens.segments.tolist() == [0] * 4 + [1] * 4


def test_counts_are_those_of_the_module(one_process: BuildContext) -> None:
    maps = [ASKING, TWICE, ODD]
    model = SPEC.build(one_process, maps, width=12)
    for name, count in SPEC.parts(maps, 12).items():
        assert count == sum(p.numel() for key, p in model.named_parameters() if key.startswith(f"{name}."))
    assert SPEC.parameters(maps, 12) == sum(p.numel() for p in model.parameters())
    cells = [16, 24]  # of the other maps, resized
    flops = SPEC.flops(maps, 12)
    mlp, queries = 4 * (6 * 12 + 12 * 12), 4 * 6 * 5
    assert flops.weights == 2 * (mlp + queries + (5 + 6) * (cells[0] * 8 + cells[1] * 10))
    assert flops.mixing == 2 * sum(cells) * (5 + 6)


def test_no_tiles(one_process: BuildContext, of_no_tiles) -> None:
    of_no_tiles(SPEC.build(one_process, [ASKING, ODD], width=12), [ASKING, ODD], 12)


def test_a_window_of_one_cell_leaves_nothing_to_choose(one_process: BuildContext, drawn, features) -> None:
    maps = [ASKING, MapShape("convnext", 4, GRID, GRID, 8)]
    model = drawn(SPEC.build(one_process, maps, width=12))
    model(features(maps, 2)).values.square().sum().backward()
    idle = {name for name, p in model.named_parameters() if not p.grad.any()}
    assert idle == {name for name, _ in model.named_parameters() if name.startswith(("fuser.queries", "fuser.keys"))}


def test_size_of_mini_geminis() -> None:
    """With CLIP-L and ConvNeXt-XXL, as Mini-Gemini builds it. Eagle's table 4 says 1201, of dims that are unpublished."""
    maps = (MapShape("clip", 24, 24, 24, 1024), MapShape("convnext", 4, 32, 32, 3072))
    assert 303.5 + 846.5 + Windows().parameters(maps, 4096) / 1e6 == pytest.approx(1178.3, abs=0.1)


def test_one_map_has_nowhere_to_look() -> None:
    with pytest.raises(ConfigError, match="clip layer 24 alone"):
        SPEC.parameters([ASKING], 12)
