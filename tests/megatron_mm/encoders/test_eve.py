"""EVE's encoder, many images at once, against the published embedding of one image after another."""

from __future__ import annotations

import random
from typing import Any

import eve_statement as published
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.contracts import BuildContext, FeatureMap
from megavlm.megatron_mm.encoders.eve import Eve
from megavlm.megatron_mm.encoders.looking import look
from megavlm.megatron_mm.tiles import VariedTiles
from megavlm.platform.errors import ConfigError

SHAPE: dict[str, Any] = {"image_size": 24, "patch_size": 2, "channels": 16}
CELL = 4
WEIGHTS = published.part(published.drawn(published.eve_shapes(16, 2, 24, 40)), "encoder.")


def built(ctx: BuildContext | None = None, **change: Any) -> Any:
    model = Eve.parse({**SHAPE, **change}).build(ctx or BuildContext(torch.float32))
    wanted = {k: v for k, v in WEIGHTS.items() if model.local_attention is not None or "attention" not in k}
    model.load_state_dict(wanted)  # strictly: exactly the published names
    return model


def sizes(count: int, seed: int, most: int = 9) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    return [(CELL * draw.randint(1, most), CELL * draw.randint(1, most)) for _ in range(count)]


def parts(feature: FeatureMap) -> list[torch.Tensor]:
    """Each tile's [rows, columns, channels]."""
    pieces = feature.values.split([rows * columns for rows, columns in feature.grids])
    return [piece.view(*grid, -1) for piece, grid in zip(pieces, feature.grids, strict=True)]


@pytest.mark.parametrize("batch", range(10))
def test_equals_the_published_embedding_of_each_image(batch: int) -> None:
    """200 sizes in ten batches; 1 x 1 cells, a long row and a long column among them."""
    tiles = published.images([*sizes(18, batch), (CELL, CELL * (2 * batch + 20)), (CELL * 21, CELL)], seed=batch)
    (feature,) = built()(tiles)
    assert feature.grid is None and feature.images.tolist() == list(range(20))
    for cells, tile in zip(parts(feature), tiles.each(), strict=True):
        torch.testing.assert_close(cells, published.eve_map(WEIGHTS, tile), rtol=1e-5, atol=1e-5)


def test_gradients_of_weights_and_pixels_equal_those_of_the_loop() -> None:
    tiles = published.images(sizes(5, 77))
    model, loop = built(), {name: value.clone().requires_grad_() for name, value in WEIGHTS.items()}
    ours, theirs = (tiles.pixels.float().requires_grad_() for _ in range(2))
    (feature,) = model(VariedTiles(ours, tiles.sizes))
    down = torch.randn(feature.values.shape, generator=torch.Generator().manual_seed(5))
    feature.values.backward(down)
    alone = [published.eve_map(loop, tile).flatten(0, 1) for tile in VariedTiles(theirs, tiles.sizes).each()]
    torch.cat(alone).backward(down)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, loop[name].grad, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: n + m)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_tensor_of_equal_tiles_is_the_same_as_tiles_of_many_sizes() -> None:
    tiles = published.images([(12, 20)] * 3)
    (varied,), (alike,) = built()(tiles), built()(tiles.pixels.view(3, 3, 12, 20))
    assert alike.grid == (3, 5) and alike.grids == () and varied.grids == ((3, 5),) * 3
    assert alike.tiles.shape == (3, 3, 5, 16) and alike.values.equal(varied.values)


def test_without_window_attention_a_cell_is_the_mean_of_its_patches() -> None:
    tiles = published.images(sizes(4, 1))
    (feature,) = built(window_attention=False)(tiles)
    alone = published.part(WEIGHTS, "patch")
    for cells, tile in zip(parts(feature), tiles.each(), strict=True):
        wanted = published.eve_map({f"patch{name}": value for name, value in alone.items()}, tile)
        torch.testing.assert_close(cells, wanted, rtol=1e-5, atol=1e-5)


def test_windows_of_three_patches() -> None:
    tiles = published.images([(6, 18), (12, 6)])
    (feature,) = built(pool=3)(tiles)
    for cells, tile in zip(parts(feature), tiles.each(), strict=True):
        torch.testing.assert_close(cells, published.eve_map(WEIGHTS, tile, pool=3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tiles", [torch.empty(0, 3, 24, 24, dtype=torch.uint8), published.images([])])
def test_no_tiles_give_no_cells_and_gradients_of_zero(tiles: Any) -> None:
    model = built()
    (feature,) = model(tiles)
    assert feature.values.shape == (0, 16) and feature.images.shape == (0,)
    feature.values.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_recomputed_it_learns_the_same_and_frozen_it_keeps_no_graph() -> None:
    tiles, grads = published.images(sizes(3, 9)), []
    for recompute in ("none", "full"):
        model = built(BuildContext(torch.float32, recompute=recompute))
        model(tiles)[0].values.square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again, rtol=0, atol=0)
    (feature,) = look(model.requires_grad_(False), tiles)
    assert not feature.values.requires_grad


def test_honours_the_dtype_and_is_built_on_meta_for_nothing() -> None:
    (feature,) = built(BuildContext(torch.bfloat16))(published.images([(8, 12)]))
    assert feature.values.dtype == torch.bfloat16
    with torch.device("meta"):
        assert all(p.is_meta for p in Eve().build(BuildContext(torch.bfloat16)).parameters())


def test_maps_and_flops_follow_the_size() -> None:
    spec = Eve.parse(SHAPE)
    tall = spec.at(40, 8)
    assert spec.maps[0].grid == (6, 6) and tall.maps[0].grid == (10, 2)
    assert spec.maps[0].grid == (6, 6), "the spec itself stays as it is"
    assert tall.at(24, 24).flops() == spec.flops()
    for each, size in ((spec, (24, 24)), (tall, (40, 8))):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            built()(published.images([size]))
        assert counter.get_total_flops() == each.flops().forward


def test_parameters_and_grids_are_eve_7bs() -> None:
    with torch.device("meta"):
        model = Eve().build(BuildContext(torch.bfloat16))
        larger = Eve.parse({"image_size": 1344}).build(BuildContext(torch.bfloat16))
    assert sum(p.numel() for p in model.parameters()) == Eve().parameters() == 602_112 + 4_199_424
    assert Eve().maps[0][1:] == (-1, 24, 24, 1024)
    assert larger.spec.maps[0].grid == (48, 48)
    assert {k: v.shape for k, v in larger.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert Eve.parse({"window_attention": False}).parameters() == 602_112


def test_fits_every_layout_and_splits_nothing() -> None:
    Eve().check(Parallel(tp=7, pp=3))
    assert Eve().fp8_widths(Parallel()) == [] and Eve().parts == {} and Eve.any_size and Eve().cell == 28


@pytest.mark.parametrize(
    ("change", "said"),
    [({"image_size": 26}, "26 does not divide by 4"), ({"heads": 3}, "encoder.channels 16 does not divide")],
)
def test_impossible_shapes(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Eve.parse({**SHAPE, **change})


def test_a_side_of_no_whole_cells_is_named_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="24 x 22 pixels is not made of whole cells of 4 x 4") as raised:
        Eve.parse(SHAPE).at(24, 22)
    assert "multiple of 4" in raised.value.fix
    with pytest.raises(ConfigError, match="22 x 24 pixels"):
        built()(published.images([(8, 8), (22, 24)]))
