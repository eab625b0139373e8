"""Pixel shuffle against the published table, and the connector against its layers written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.connectors.pixel_shuffle_mlp import PixelShuffleMLP
from megavlm.megatron_mm.connectors.pixel_shuffle_mlp_model import pixel_shuffle
from megavlm.megatron_mm.contracts import BuildContext, FeatureMap
from megavlm.megatron_mm.maps import MapShape
from megavlm.platform.errors import ConfigError

SPEC, ONE = PixelShuffleMLP(hidden=24), PixelShuffleMLP(layers=1)


def maps(channels: int, rows: int = 4, columns: int = 4) -> tuple[MapShape]:
    return (MapShape("any", -1, rows, columns, channels),)


def test_the_published_4x4_table() -> None:
    tokens = torch.arange(16).view(1, 4, 4, 1)
    assert pixel_shuffle(tokens).flatten(0, 2).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def published(x: torch.Tensor) -> torch.Tensor:
    """The view and permute of the published "v2" code, step by step."""
    n, w, h, c = x.shape
    x = x.reshape(n, w, h // 2, c * 2).permute(0, 2, 1, 3).contiguous()
    return x.view(n, h // 2, w // 2, c * 4).permute(0, 2, 1, 3).contiguous()


@pytest.mark.parametrize("shape", [(1, 4, 4, 1), (2, 32, 32, 3), (3, 4, 4, 5)])
def test_equals_the_published_operations(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert torch.equal(pixel_shuffle(x), published(x))


def test_connector_equals_its_layers(one_process: BuildContext) -> None:
    model = SPEC.build(one_process, maps(6), width=10)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.5, generator=draw)
    feature = FeatureMap(torch.randn(2 * 16, 6, generator=draw), (4, 4), torch.arange(2), "internvit", -1)
    tokens = model([feature])
    x = published(feature.tiles).reshape(8, 24)
    x = F.layer_norm(x, (24,), model.norm.weight, model.norm.bias, 1e-5)
    x = F.gelu(x @ model.mlp.linear_fc1.weight.T, approximate="none") @ model.mlp.linear_fc2.weight.T
    torch.testing.assert_close(tokens.values, x, rtol=1e-5, atol=1e-5)
    assert tokens.segments.tolist() == [0] * 4 + [1] * 4


def test_one_layer_is_norm_and_linear(one_process: BuildContext) -> None:
    model = ONE.build(one_process, maps(6), width=10)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.5, generator=draw)
    feature = FeatureMap(torch.randn(16, 6, generator=draw), (4, 4), torch.arange(1), "internvit", -1)
    x = F.layer_norm(published(feature.tiles).reshape(4, 24), (24,), model.norm.weight, model.norm.bias, 1e-5)
    torch.testing.assert_close(model([feature]).values, x @ model.mlp.linear.weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"layers": 1, "hidden": 24}])
def test_a_hidden_width_stands_between_two_layers_alone(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="layer.* and hidden"):
        PixelShuffleMLP(**options)


@pytest.mark.parametrize(
    ("spec", "channels", "width", "stated"),
    [
        (SPEC, 6, 10, None),
        (ONE, 6, 10, None),
        (PixelShuffleMLP(hidden=29568), 3200, 8192, 0.6207e9),
        (PixelShuffleMLP(hidden=20480), 3200, 7168, 0.4090e9),
        (ONE, 3200, 8192, 0.105e9),
        (ONE, 3200, 7168, 0.092e9),
    ],
    ids=["tiny", "tiny, one layer", "NVLM-D 72B", "NVLM-D 34B", "NVLM-X 72B", "NVLM-X 34B"],
)
def test_parameters(
    one_process: BuildContext, spec: PixelShuffleMLP, channels: int, width: int, stated: float | None
) -> None:
    with torch.device("meta"):
        built = sum(p.numel() for p in spec.build(one_process, maps(channels), width).parameters())
    assert spec.parameters(maps(channels), width) == built
    assert stated is None or built == pytest.approx(stated, rel=3e-3)


def test_tokens_per_tile() -> None:
    assert SPEC.tokens_per_tile(maps(6, 32, 32)) == 256
    with pytest.raises(ConfigError, match="takes one feature map"):
        SPEC.tokens_per_tile(maps(6) * 2)
    with pytest.raises(ConfigError, match="3 x 4"):
        SPEC.tokens_per_tile(maps(6, 3, 4))


def test_a_width_that_cannot_be_split() -> None:
    with pytest.raises(ConfigError, match="connector.hidden 24 .*parallel.tp 5"):
        SPEC.check(Parallel(tp=5))
