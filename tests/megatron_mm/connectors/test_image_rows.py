"""EVE's tokens of many images at once, against the published embedding of one image after another."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import eve_statement as published
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm.config import ModelConfig, Parallel
from megavlm.megatron_mm.connectors.image_rows import ImageRows
from megavlm.megatron_mm.connectors.segments import BLOCK, softmax_means
from megavlm.megatron_mm.contracts import BuildContext, FeatureMap
from megavlm.megatron_mm.encoders.eve import Eve
from megavlm.megatron_mm.encoders.eve_v2 import EveV2
from megavlm.megatron_mm.maps import MapShape
from megavlm.platform.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_process")

HERE = BuildContext(torch.float32)
CHANNELS, WIDTH, HIDDEN, PATCH = 16, 24, 40, 2
EVE = {"image_size": 24, "patch_size": PATCH, "channels": CHANNELS}
WEIGHTS = published.drawn(published.eve_shapes(CHANNELS, PATCH, WIDTH, HIDDEN))
OURS = published.part(WEIGHTS, "connector.")
Grids = list[tuple[int, int]]


def one(rows: int = 3, columns: int = 4, channels: int = CHANNELS) -> tuple[MapShape, ...]:
    return (MapShape("eve", -1, rows, columns, channels),)


def built(**change: Any) -> Any:
    spec = ImageRows.parse({"hidden": HIDDEN, **change})
    model = spec.build(HERE, one(), WIDTH if spec.layers else CHANNELS)
    wanted = {name: value for name, value in OURS.items() if name in model.state_dict()}
    model.load_state_dict(wanted)  # strictly
    return model


def varied(grids: Grids, seed: int = 0) -> FeatureMap:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(rows * columns for rows, columns in grids), CHANNELS, generator=draw)
    return FeatureMap(values, None, torch.arange(len(grids)), "eve", -1, tuple(grids))


def pieces(feature: FeatureMap) -> list[Tensor]:
    parts = feature.values.split([rows * columns for rows, columns in feature.grids])
    return [part.view(*grid, -1) for part, grid in zip(parts, feature.grids, strict=True)]


def some(count: int, seed: int) -> Grids:
    draw = random.Random(seed)
    return [(draw.randint(1, 11), draw.randint(1, 11)) for _ in range(count)]


def kept(*prefixes: str) -> published.Weights:
    return {name: value for name, value in OURS.items() if name.startswith(prefixes)}


POINTS = {
    "EVE": ({}, OURS),
    "no class attention": ({"class_attention": False}, kept("class", "split", "projector")),
    "no MLP": ({"layers": 0, "hidden": None}, kept("class", "split", "global")),
    "EVEv2": ({"class_attention": False, "layers": 0, "hidden": None}, kept("class", "split")),
}


@pytest.mark.parametrize("point", POINTS)
def test_equals_the_published_tokens_of_each_image(point: str) -> None:
    """200 grids in ten batches; one cell, and a row and a column of a whole block and one cell more, among them."""
    change, weights = POINTS[point]
    model = built(**change)
    for batch in range(10):
        feature = varied([*some(17, batch), (1, 1), (1, BLOCK), (BLOCK + 1, 1)], seed=batch)
        tokens = model([feature])
        alone = [published.rows_of_tokens(weights, cells) for cells in pieces(feature)]
        torch.testing.assert_close(tokens.values, torch.cat(alone), rtol=1e-5, atol=1e-5)
        assert tokens.segments.tolist() == [tile for tile, each in enumerate(alone) for _ in each]


def test_encoder_and_connector_equal_eve_from_the_bytes_forward_and_backward() -> None:
    tiles = published.images([(8, 20), (4, 4), (40, 4), (24, 24)])
    encoder, connector = Eve.parse(EVE).build(HERE), built()
    encoder.load_state_dict(published.part(WEIGHTS, "encoder."))
    values = connector(encoder(tiles)).values
    loop = {name: value.clone().requires_grad_() for name, value in WEIGHTS.items()}
    seen = [published.eve_map(published.part(loop, "encoder."), tile) for tile in tiles.each()]
    wanted = torch.cat([published.rows_of_tokens(published.part(loop, "connector."), cells) for cells in seen])
    torch.testing.assert_close(values, wanted, rtol=1e-5, atol=1e-5)
    down = torch.randn(values.shape, generator=torch.Generator().manual_seed(5))
    values.backward(down)
    wanted.backward(down)
    for axis, module in (("encoder", encoder), ("connector", connector)):
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, loop[f"{axis}.{name}"].grad, rtol=1e-4, atol=1e-4)


def test_maps_of_one_grid_and_of_many_are_the_same() -> None:
    feature = varied([(3, 4)] * 2)
    alike = FeatureMap(feature.values, (3, 4), feature.images, "eve", -1)
    assert built()([alike]).values.equal(built()([feature]).values)


def test_no_tiles(drawn: Callable[[nn.Module], nn.Module], of_no_tiles: Callable[[nn.Module, Any, int], None]) -> None:
    of_no_tiles(built(), one(), WIDTH)
    of_no_tiles(built(class_attention=False, layers=0, hidden=None), one(), CHANNELS)
    assert built()([varied([])]).values.shape == (0, WIDTH)


def test_a_softmax_of_far_away_scores_is_that_of_each_tile() -> None:
    """No common maximum would do: one tile's scores are 1e4 below another's."""
    counts, draw = [3, 40, 1, 64], torch.Generator().manual_seed(2)
    cells = torch.randn(sum(counts), 8, generator=draw, dtype=torch.float64)
    cells[3:43] -= 1e4
    cells.requires_grad_()
    queries = torch.rand(2, 8, generator=draw, dtype=torch.float64)
    ours = softmax_means(cells, queries, counts)
    alone = [(queries @ part.T).softmax(-1) @ part for part in cells.split(counts)]
    torch.testing.assert_close(ours, torch.stack(alone))
    down = torch.randn(ours.shape, generator=draw, dtype=torch.float64)
    (mine,) = torch.autograd.grad(ours, cells, down)
    (theirs,) = torch.autograd.grad(torch.stack(alone), cells, down)
    torch.testing.assert_close(mine, theirs)


def test_it_repeats_to_the_bit_and_a_tile_knows_no_other() -> None:
    feature, model = varied(some(9, 4)), built()
    all_at_once = model([feature])
    assert all_at_once.values.equal(model([feature]).values)
    for tile, cells in enumerate(pieces(feature)):
        grid = cells.shape[:2]
        alone = FeatureMap(cells.flatten(0, 1), None, torch.arange(1), "eve", -1, (tuple(grid),))
        mine = all_at_once.values[all_at_once.segments == tile]
        torch.testing.assert_close(mine, model([alone]).values, rtol=1e-5, atol=1e-5)


def test_parameters_flops_and_first_values() -> None:
    maps = one(5, 7)
    for change, _ in POINTS.values():
        spec, model = ImageRows.parse({"hidden": HIDDEN, **change}), built(**change)
        width = WIDTH if spec.layers else CHANNELS
        assert sum(p.numel() for p in model.parameters()) == spec.parameters(maps, width)
        totals = []
        for tiles in (1, 3):  # what is done once for all tiles is not counted
            counter = FlopCounterMode(display=False)
            with counter, torch.no_grad():
                model.requires_grad_(False)([varied([(5, 7)] * tiles)])
            totals.append(counter.get_total_flops())
        blocks = 2 * BLOCK - 35  # cells of padding in which a tile's two blocks end
        padding = spec.class_attention * 4 * blocks * spec.heads * CHANNELS
        assert (totals[1] - totals[0]) / 2 == spec.flops(maps, width).forward + padding
        assert (model.class_embedding.init_std, model.split_embedding.init_std) == (1.0, 1.0)


def eve(size: int, step: int) -> ModelConfig:
    return ModelConfig.parse(
        {
            "tiling": {"name": "longer_side", "tile": size, "side_step": step},
            "encoder": {"name": "eve", "image_size": size},
            "connector": "image_rows",
            "injection": {"name": "inline", "tags": "none"},
            "decoder": {
                "name": "llama", "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 32, "ffn": 11008,
                "vocab": 32000, "max_positions": 4096, "rope_base": 1e4, "norm_eps": 1e-5,
            },
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "step", "image", "tokens"),
    [
        (672, 28, (500, 500), 601), (672, 28, (1920, 1080), 351), (672, 28, (640, 480), 451),
        (672, 28, (480, 640), 457), (672, 28, (4000, 100), 26), (672, 28, (1, 40), 49), (672, 28, (1, 1), 601),
        (1344, 56, (500, 500), 2353), (1344, 56, (640, 480), 1765), (1344, 56, (1920, 1080), 1373),
    ],
)  # fmt: skip
def test_an_image_costs_the_published_tokens(size: int, step: int, image: tuple[int, int], tokens: int) -> None:
    """Width and height of the image; the counts with class and row ends, measured on the published code."""
    model = eve(size, step)
    assert model.tile_tokens(model.tiling.plan(*image)) == tokens


def test_eve_7bs_embedding_has_the_published_parameters() -> None:
    model = eve(672, 28)
    axes = model.parts
    assert axes["encoder"] + axes["connector"] == 29_982_720
    assert eve(1344, 56).parts == axes, "HD has the same weights"


def test_evev2s_embedding_has_the_published_parameters() -> None:
    """Two embeddings of 3584 beside the convolutions, nothing else; the largest 800 x 800 image has 25 x 25 cells."""
    spec = ImageRows.parse({"class_attention": False, "layers": 0})
    assert spec.parameters(EveV2().maps, 3584) == 2 * 3584
    assert spec.tokens_per_tile(EveV2().maps) == 25 * 26 + 1


def test_the_mlp_is_split_over_tensor_parallelism_and_nothing_else() -> None:
    ImageRows().check(Parallel(tp=8))
    ImageRows.parse({"layers": 0}).check(Parallel(tp=7))
    with pytest.raises(ConfigError, match="connector.hidden 40 does not divide"):
        ImageRows.parse({"hidden": 40}).check(Parallel(tp=3))


@pytest.mark.parametrize(
    ("change", "channels", "said"),
    [
        ({"layers": 0}, 20, "20 channels are not the decoder's 24"),
        ({"heads": 3}, 16, "channels of the encoder 16 does not divide by connector.heads 3"),
    ],
)
def test_impossible_shapes(change: dict[str, Any], channels: int, said: str) -> None:
    spec = ImageRows.parse({**change, "class_attention": "heads" in change})
    with pytest.raises(ConfigError, match=said):
        spec.parameters(one(channels=channels), WIDTH)
    with pytest.raises(ConfigError, match="takes one feature map"):
        spec.tokens_per_tile([*one(), *one()])


def test_a_width_between_no_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="hidden 7 between layers, and there are none"):
        ImageRows.parse({"layers": 0, "hidden": 7})
