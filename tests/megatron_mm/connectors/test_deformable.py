"""The deformable connector against its formulas in double precision, on maps of several grids and widths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm.backend import initialise
from megavlm.megatron_mm.connectors.deformable import DeformableConnector
from megavlm.megatron_mm.contracts import BuildContext, FeatureMap
from megavlm.megatron_mm.flops import Flops
from megavlm.megatron_mm.maps import MapShape
from megavlm.platform.errors import ConfigError

WIDTH, TILES, GRID, HEADS, POINTS = 6, 2, 3, 2, 3
MAPS = [MapShape("clip", -1, 3, 4, 8), MapShape("convnext", -1, 5, 2, 12), MapShape("sam", -1, 1, 6, 4)]
SPEC = DeformableConnector(grid=GRID, heads=HEADS, points=POINTS)


Features = Callable[[Sequence[MapShape], int], list[FeatureMap]]


@torch.no_grad()
def perturbed(model: nn.Module) -> nn.Module:
    initialise(model, seed=3)
    draw = torch.Generator().manual_seed(4)
    for p in model.parameters():
        p.add_(0.5 * torch.randn(p.shape, generator=draw))
    return model


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def normed(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return linear(weights, f"{name}.1", scaled * weights[f"{name}.0.weight"] + weights[f"{name}.0.bias"])


def read(level: Tensor, x: float, y: float) -> Tensor:
    """Bilinear at (x, y) in cells of `level` [rows, columns, d], cells' centres at halves; nothing outside."""
    total = torch.zeros(level.shape[2], dtype=level.dtype)
    for row in range(level.shape[0]):
        for column in range(level.shape[1]):
            share = max(0.0, 1 - abs(x - column - 0.5)) * max(0.0, 1 - abs(y - row - 0.5))
            total += share * level[row, column]
    return total


def stated(w: dict[str, Tensor], maps: list[FeatureMap], tile: int) -> Tensor:
    """What comes of one tile before the MLP, float64: loops over cells, heads, levels and points."""
    first, *others = (m.tiles[tile].double() for m in maps)
    resized = F.interpolate(first.permute(2, 0, 1)[None], (GRID, GRID), mode="bilinear", align_corners=True)
    first = resized[0].permute(1, 2, 0)
    rows, columns, channels = first.shape
    query = normed(w, "query_proj", first)
    values = [linear(w, "attention.value_proj", normed(w, f"level_proj.{i}", x)) for i, x in enumerate(others)]
    many = (rows, columns, HEADS, len(others), POINTS)
    offsets = linear(w, "attention.sampling_offsets", query).view(*many, 2)
    logits = linear(w, "attention.attention_weights", query).view(*many[:3], -1)
    shares = (logits.exp() / logits.exp().sum(-1, keepdim=True)).view(many)
    out = torch.zeros(rows, columns, HEADS, channels // HEADS, dtype=torch.float64)
    for row, column, head, level, point in torch.cartesian_prod(*map(torch.arange, many)).tolist():
        value = values[level].unflatten(-1, (HEADS, -1))[:, :, head]
        dx, dy = offsets[row, column, head, level, point].tolist()
        x = (column + 0.5) / columns * value.shape[
            1
        ] + dx  # the same place of the picture; offsets in the level's cells
        y = (row + 0.5) / rows * value.shape[0] + dy
        out[row, column, head] += shares[row, column, head, level, point] * read(value, x, y)
    return (first + linear(w, "attention.output_proj", out.flatten(2))).flatten(0, 1)


@pytest.mark.parametrize("count", [2, 3])
def test_equals_the_formulas_in_double_precision(one_process: BuildContext, features: Features, count: int) -> None:
    maps = MAPS[:count]
    model = perturbed(SPEC.build(one_process, maps, WIDTH))
    given = features(maps, TILES)
    weights = {name.removeprefix("fuser."): p.detach().double() for name, p in model.named_parameters()}
    fused = torch.cat([stated(weights, given, tile) for tile in range(TILES)])
    wanted = linear(weights, "projector.2", F.gelu(linear(weights, "projector.0", fused)))
    tokens = model(given)
    torch.testing.assert_close(tokens.values.double(), wanted, rtol=1e-5, atol=1e-5)
    assert tokens.segments.tolist() == [0] * 9 + [1] * 9
    assert SPEC.tokens_per_tile(maps) == 9
    assert SPEC.parameters(maps, WIDTH) == sum(p.numel() for p in model.parameters())
    assert SPEC.parts(maps, WIDTH)["fuser"] == sum(p.numel() for p in model.fuser.parameters())


def test_flops_are_those_that_torch_counts(one_process: BuildContext, features: Features) -> None:
    model = perturbed(SPEC.build(one_process, MAPS, WIDTH))
    with FlopCounterMode(display=False) as counter:
        model(features(MAPS, TILES))
    sampled = 9 * HEADS * POINTS * 2 * 4 * 8 // HEADS  # queries, heads, points, levels, corners, a head's channels
    resizing = 2 * 8 * (3 * 3 * 4 + 3 * 3 * 4)  # from 3 x 4: a matrix for the rows, one for the columns
    assert SPEC.flops(MAPS, WIDTH) == Flops(counter.get_total_flops() / TILES - resizing, mixing=2.0 * sampled)


def test_recomputation_changes_nothing(one_process: BuildContext, features: Features) -> None:
    grads = []
    for recompute in ("none", "full"):
        model = perturbed(SPEC.build(dataclasses.replace(one_process, recompute=recompute), MAPS, WIDTH))
        model(features(MAPS, TILES)).values.square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(grads[0][name], grads[1][name]) and grads[0][name].any() for name in grads[0])


def test_of_no_tiles_come_no_tokens(
    one_process: BuildContext, of_no_tiles: Callable[[nn.Module, Sequence[MapShape], int], None]
) -> None:
    of_no_tiles(SPEC.build(one_process, MAPS, WIDTH), MAPS, WIDTH)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="the encoder gives one: clip"):
        SPEC.parameters(MAPS[:1], WIDTH)
    with pytest.raises(ConfigError, match="channels of clip's map 9 does not divide by connector.heads 2"):
        SPEC.parameters([MAPS[0]._replace(channels=9), *MAPS[1:]], WIDTH)
