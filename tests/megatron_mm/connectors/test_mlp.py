"""The projector against LLaVA's nn.Sequential, and its size against Eagle's published ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.connectors.mlp import MLP, mlp_parameters
from megavlm.megatron_mm.connectors.mlp_model import Projector
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.maps import MapShape
from megavlm.platform.errors import ConfigError

CELLS = MapShape("clip", -2, 3, 4, 6)


def sequential(widths: list[int], weights: dict[str, Tensor]) -> nn.Sequential:
    """LLaVA's mlpNx_gelu in float64, with the projector's weights by their names."""
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for before, after in zip(widths[1:], widths[2:], strict=False):
        layers += [nn.GELU(), nn.Linear(before, after)]
    theirs = nn.Sequential(*layers).double()
    theirs.load_state_dict(weights)
    return theirs


@pytest.mark.parametrize(
    ("hidden", "layers", "widths"),
    [(None, 1, [6, 10]), (None, 2, [6, 10, 10]), (8, 2, [6, 8, 10]), (8, 3, [6, 8, 8, 10]), (8, 4, [6, 8, 8, 8, 10])],
)
def test_projector_is_llavas(one_process: BuildContext, drawn, hidden: int | None, layers: int, widths: list[int]):
    model = drawn(Projector(one_process, 6, 10, hidden, layers))
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    wanted = sequential(widths, dict(model.named_parameters()))(x.double())
    torch.testing.assert_close(model(x).double(), wanted, rtol=1e-5, atol=1e-5)
    assert mlp_parameters(6, 10, hidden, layers) == sum(p.numel() for p in model.parameters())


def test_tokens_are_the_cells_tile_after_tile(one_process: BuildContext, drawn, features) -> None:
    model = drawn(MLP().build(one_process, [CELLS], width=10))
    (feature,) = features([CELLS], 2)
    tokens = model([feature])
    wanted = sequential([6, 10, 10], dict(model.projector.named_parameters()))(feature.values.double())
    torch.testing.assert_close(tokens.values.double(), wanted, rtol=1e-5, atol=1e-5)
    assert tokens.segments.tolist() == [0] * 12 + [1] * 12
    assert MLP().tokens_per_tile([CELLS]) == 12
    assert MLP().parameters([CELLS], 10) == sum(p.numel() for p in model.parameters())


def test_no_tiles(one_process: BuildContext, of_no_tiles) -> None:
    of_no_tiles(MLP().build(one_process, [CELLS], width=10), [CELLS], 10)


@pytest.mark.parametrize(
    ("channels", "width", "millions"),
    [(6656, 4096, 44.0), (7680, 4096, 48.2), (6656, 5120, 60.3), (7680, 5120, 65.5), (7680, 7168, 106.4)],
    ids=["X4 7B", "X5 7B", "X4 13B", "X5 13B", "X5 34B"],
)
def test_sizes_of_the_released_models(channels: int, width: int, millions: float) -> None:
    assert mlp_parameters(channels, width) / 1e6 == pytest.approx(millions, abs=0.06)


def test_flops_are_two_per_weight_and_token() -> None:
    assert MLP().flops([CELLS], 10).forward == 2 * 12 * (6 * 10 + 10 * 10)
    shape = MapShape("x", -1, 5, 1, 6)
    assert MLP(hidden=8, layers=3).flops([shape], 10).forward == 2 * 5 * (6 * 8 + 8 * 8 + 8 * 10)


def test_one_map_and_no_more() -> None:
    with pytest.raises(ConfigError, match="sam layer 24"):
        MLP().tokens_per_tile([CELLS, MapShape("sam", 24, 3, 4, 6)])


def test_a_hidden_width_stands_between_layers() -> None:
    with pytest.raises(ConfigError, match="hidden 24 between layers"):
        MLP(layers=1, hidden=24)


def test_a_width_that_cannot_be_split() -> None:
    with pytest.raises(ConfigError, match=r"connector.hidden 24 .*parallel.tp 5"):
        MLP(hidden=24).check(Parallel(tp=5))


@pytest.mark.parametrize("layers", [1, 3])
def test_inputs_that_cannot_be_split(one_process: BuildContext, layers: int) -> None:
    """Of an odd number of linears the first is split over its inputs."""
    four = dataclasses.replace(one_process, parallel=Parallel(tp=4))
    with pytest.raises(ConfigError, match=r"channels of the connector's input 6 .*parallel.tp 4"):
        Projector(four, 6, 8, layers=layers)
