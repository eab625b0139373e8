"""Tiles of many sizes in one run of memory, against a list of tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megavlm.megatron_mm.data.assemble import grey, side_by_side_tiles
from megavlm.megatron_mm.tiles import VariedTiles, as_tiles, in_passes, joined

SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=12)
EDGES = st.none() | st.integers(-15, 15)


def tensors(sizes: list[tuple[int, int]], seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), generator=draw, dtype=torch.uint8) for size in sizes]


def varied(plain: list[Tensor]) -> VariedTiles:
    flat = side_by_side_tiles([tile[None].numpy() for tile in plain], None)
    made = as_tiles(flat, tuple(tuple(tile.shape[1:]) for tile in plain))
    assert isinstance(made, VariedTiles)
    return made


def same(found: VariedTiles, wanted: list[Tensor]) -> bool:
    assert len(found) == len(wanted) and found.sizes == tuple(tuple(tile.shape[1:]) for tile in wanted)
    assert found.pixels.dtype == torch.uint8 and found.pixels.numel() == sum(tile.numel() for tile in wanted)
    return all(torch.equal(*pair) for pair in zip(found.each(), wanted, strict=True))


@given(SIZES)
def test_tiles_come_out_as_they_went_in(sizes: list[tuple[int, int]]) -> None:
    plain = tensors(sizes)
    tiles = varied(plain)
    assert same(tiles, plain) and same(tiles.to("cpu"), plain) and VariedTiles.of(tiles) is tiles
    assert tiles.device == torch.device("cpu") and not tiles.requires_grad


@given(SIZES, st.none() | st.integers(-15, 15), st.none() | st.integers(-15, 15))
def test_slices_are_those_of_a_list_and_views(
    sizes: list[tuple[int, int]], first: int | None, last: int | None
) -> None:
    plain = tensors(sizes)
    tiles = varied(plain)
    run = tiles[first:last]
    assert same(run, plain[first:last])
    run.pixels.fill_(7)
    assert all((tile == 7).all() for tile in tiles.each()[first:last])


@given(st.lists(SIZES, min_size=1, max_size=4))
def test_joined_is_part_after_part(parts: list[list[tuple[int, int]]]) -> None:
    plain = [tensors(sizes, seed) for seed, sizes in enumerate(parts)]
    assert same(joined([varied(part) for part in plain]), [tile for part in plain for tile in part])


def test_tiles_of_one_size_join_as_a_tensor_and_with_others_as_tiles_of_many() -> None:
    one, two = torch.stack(tensors([(2, 3)] * 2)), torch.stack(tensors([(2, 3)] * 3, seed=1))
    other = tensors([(4, 1), (1, 1)], seed=2)
    assert torch.equal(joined([one, two]), torch.cat([one, two]))
    for parts in ([one, varied(other), two], [varied(other), one, two]):
        wanted = [tile for part in parts for tile in (part.each() if isinstance(part, VariedTiles) else part)]
        assert same(joined(parts), wanted)
    assert same(VariedTiles.of(two), list(two))
    assert same(joined([varied([]), torch.zeros(0, 3, 9, 9, dtype=torch.uint8)]), [])


@given(SIZES, st.integers(0, 60))
def test_passes_are_all_tiles_in_their_order_and_as_large_as_may_be(sizes: list[tuple[int, int]], most: int) -> None:
    plain = tensors(sizes)
    passes = [part.sizes for part in in_passes(varied(plain), most)]
    areas = [[height * width for height, width in part] for part in passes]
    assert [size for part in passes for size in part] == sizes
    assert len(passes) == 1 or all(areas)
    assert all(sum(part) <= most or len(part) == 1 for part in areas)
    assert all(sum(part) + following[0] > most for part, following in zip(areas, areas[1:], strict=False))
    assert same(joined(list(in_passes(varied(plain), most))), plain)


@given(st.integers(0, 9), st.integers(0, 80))
def test_passes_of_tiles_of_one_size_are_those_of_many(n: int, most: int) -> None:
    tiles = torch.stack(tensors([(3, 4)] * n)) if n else torch.zeros(0, 3, 3, 4, dtype=torch.uint8)
    found = list(in_passes(tiles, most))
    assert [len(part) for part in found] == [len(part) for part in in_passes(VariedTiles.of(tiles), most)]
    assert torch.equal(joined(found), tiles)


def test_every_tile_of_a_float_batch_gets_its_own_gradient() -> None:
    flat = torch.rand(3 * (2 * 3 + 4 * 1), requires_grad=True)
    tiles = VariedTiles(flat, ((2, 3), (4, 1)))
    assert tiles.requires_grad and tiles[1:].requires_grad
    tiles[1:].each()[0].sum().backward()
    assert torch.equal(flat.grad, torch.cat([torch.zeros(18), torch.ones(12)]))


def test_a_step_is_refused_and_grey_has_a_tiles_size() -> None:
    with pytest.raises(ValueError, match="steps of 2"):
        varied(tensors([(1, 1)] * 4))[::2]
    flat = side_by_side_tiles([grey(1, (2, 3)), grey(1, (4, 1))], None)
    assert np.array_equal(flat, np.full(30, 128, np.uint8))
    assert side_by_side_tiles([], None).shape == (0,) and side_by_side_tiles([], 4).shape == (0, 3, 4, 4)
