"""Resizing onto a common grid against torch's interpolation, forward and backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megavlm.megatron_mm.connectors.common_grid import on_grid
from megavlm.megatron_mm.contracts import FeatureMap

SIDES = st.integers(1, 12)


def a_map(tiles: int, rows: int, columns: int, dtype: torch.dtype = torch.float64) -> FeatureMap:
    values = torch.randn(tiles * rows * columns, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return FeatureMap(values.to(dtype).requires_grad_(), (rows, columns), torch.arange(tiles), "clip", -1)


def by_torch(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x.movedim(-1, 1), size=size, mode="bilinear", align_corners=True).movedim(1, -1)


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SIDES, SIDES)
def test_is_torchs_interpolation_with_aligned_corners(rows: int, columns: int, new_rows: int, new_columns: int) -> None:
    ours, theirs = a_map(2, rows, columns), a_map(2, rows, columns)
    got, wanted = on_grid(ours, new_rows, new_columns), by_torch(theirs.tiles, (new_rows, new_columns))
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    weights = torch.rand(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=wanted.dtype)
    (got * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(ours.values.grad, theirs.values.grad, rtol=1e-10, atol=1e-10)


def test_eagles_own_sizes_in_float32() -> None:
    """CLIP's 24, Pix2Struct's 45 and EVA-02's 64 to 32."""
    for side in (24, 45, 64):
        feature = a_map(1, side, side, torch.float32)
        torch.testing.assert_close(on_grid(feature, 32, 32), by_torch(feature.tiles, (32, 32)), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_resized_in_float32_and_rounded_once() -> None:
    feature = a_map(1, 24, 24, torch.bfloat16)
    got = on_grid(feature, 32, 32)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, by_torch(feature.tiles.float(), (32, 32)).bfloat16(), rtol=2**-7, atol=1e-6)


def test_a_map_of_that_grid_stays_as_it_is() -> None:
    feature = a_map(2, 3, 4)
    assert on_grid(feature, 3, 4).data_ptr() == feature.values.data_ptr()


def test_no_tiles() -> None:
    assert on_grid(a_map(0, 3, 4), 5, 6).shape == (0, 5, 6, 3)
