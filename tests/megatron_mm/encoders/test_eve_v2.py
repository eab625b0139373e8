"""EVEv2's encoder, many images at once, against its two convolutions on one image after another."""

from __future__ import annotations

import random
from typing import Any

import eve_statement as published
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.eve_v2 import EveV2
from megavlm.megatron_mm.tiles import VariedTiles
from megavlm.platform.errors import ConfigError

SHAPE: dict[str, Any] = {"image_size": 24, "patch_size": 4, "hidden": 12, "channels": 20}
CELL = 8
WEIGHTS = published.drawn(
    {
        "patch_embedding.0.weight": (12, 3, 4, 4),
        "patch_embedding.0.bias": (12,),
        "patch_embedding.2.weight": (20, 12, 2, 2),
        "patch_embedding.2.bias": (20,),
    }
)


def built(**change: Any) -> Any:
    model = EveV2.parse({**SHAPE, **change}).build(BuildContext(torch.float32))
    model.load_state_dict(WEIGHTS)  # strictly: exactly the published names
    return model


def tiles(count: int, seed: int) -> VariedTiles:
    draw = random.Random(seed)
    return published.images([(CELL * draw.randint(1, 12), CELL * draw.randint(1, 12)) for _ in range(count)], seed)


def looped(weights: published.Weights, of: VariedTiles) -> torch.Tensor:
    return torch.cat([published.eve_v2_map(weights, tile).flatten(0, 1) for tile in of.each()])


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_published_embedding_of_each_image(seed: int) -> None:
    """200 sizes in four batches, each a cell's column and row longer than any other."""
    edge = published.images([(CELL * 40, CELL), (CELL, CELL * 40)])
    for of in (tiles(48, seed), edge):
        (feature,) = built()(of)
        assert feature.grids == tuple((height // CELL, width // CELL) for height, width in of.sizes)
        torch.testing.assert_close(feature.values, looped(WEIGHTS, of), rtol=1e-5, atol=1e-5)


def test_gradients_of_weights_and_pixels_equal_those_of_the_loop() -> None:
    of, model = tiles(5, 9), built()
    loop = {name: value.clone().requires_grad_() for name, value in WEIGHTS.items()}
    ours, theirs = (of.pixels.float().requires_grad_() for _ in range(2))
    (feature,) = model(VariedTiles(ours, of.sizes))
    down = torch.randn(feature.values.shape, generator=torch.Generator().manual_seed(5))
    feature.values.backward(down)
    looped(loop, VariedTiles(theirs, of.sizes)).backward(down)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, loop[name].grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_no_tiles_give_no_cells_and_gradients_of_zero() -> None:
    model = built()
    (feature,) = model(published.images([]))
    assert feature.values.shape == (0, 20) and feature.grids == ()
    feature.values.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_flops_are_those_that_are_done() -> None:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        built()(published.images([(40, 16)]))
    assert counter.get_total_flops() == EveV2.parse(SHAPE).at(40, 16).flops().forward


def test_parameters_and_grids_are_the_published_ones() -> None:
    """Conv2d(3, 1024, 16) and Conv2d(1024, 3584, 2), both with a bias."""
    with torch.device("meta"):
        model = EveV2().build(BuildContext(torch.bfloat16))
    wanted = 3 * 16 * 16 * 1024 + 1024 + 1024 * 4 * 3584 + 3584
    assert sum(p.numel() for p in model.parameters()) == EveV2().parameters() == wanted == 15_471_104
    assert EveV2().maps[0].grid == (25, 25) and EveV2.parse({"image_size": 1600}).maps[0].grid == (50, 50)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())


def test_fits_every_layout_and_says_which_sizes_do_not() -> None:
    EveV2().check(Parallel(tp=7, pp=3))
    assert EveV2.any_size and EveV2().cell == 32
    with pytest.raises(ConfigError, match="800 x 810 pixels is not made of whole cells of 32 x 32"):
        EveV2().at(800, 810)
    with pytest.raises(ConfigError, match="encoder.image_size 816 does not divide by 32") as raised:
        EveV2.parse({"image_size": 816})
    assert "832" in raised.value.fix
