"""What the connectors' tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from megavlm.megatron_mm.contracts import FeatureMap
from megavlm.megatron_mm.maps import MapShape


@pytest.fixture
def drawn() -> Callable[[nn.Module], nn.Module]:
    """`drawn(module)`: the module, every weight random, norms and biases too."""

    @torch.no_grad()
    def draw(module: nn.Module) -> nn.Module:
        source = torch.Generator().manual_seed(0)
        for p in module.parameters():
            p.normal_(0.0, 0.5, generator=source)
        return module

    return draw


@pytest.fixture
def features() -> Callable[[Sequence[MapShape], int], list[FeatureMap]]:
    """`features(maps, tiles)`: random feature maps of these shapes."""

    def make(maps: Sequence[MapShape], tiles: int) -> list[FeatureMap]:
        source, images = torch.Generator().manual_seed(1), torch.arange(tiles)
        sizes = [(tiles * each.rows * each.columns, each.channels) for each in maps]
        values = [torch.randn(size, generator=source) for size in sizes]
        shaped = zip(maps, values, strict=True)
        return [FeatureMap(each, shape.grid, images, shape.expert, shape.layer) for shape, each in shaped]

    return make


@pytest.fixture
def of_no_tiles(
    features: Callable[[Sequence[MapShape], int], list[FeatureMap]], drawn: Callable[[nn.Module], nn.Module]
) -> Callable[[nn.Module, Sequence[MapShape], int], None]:
    """`of_no_tiles(module, maps, width)`: of a pack of text come no tokens, and gradients that are zero."""

    def check(module: nn.Module, maps: Sequence[MapShape], width: int) -> None:
        tokens = drawn(module)(features(maps, 0))
        assert tokens.values.shape == (0, width)
        assert tokens.segments.shape == (0,)
        tokens.values.sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in module.parameters())

    return check
