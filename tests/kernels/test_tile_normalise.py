"""tile_normalise against a convolution, against a loop over pixels, and the Triton twin against the reference."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import conv2d

from megavlm.kernels.tile_normalise import tile_normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tiles(n: int, height: int, width: int, layout: str = "nchw") -> torch.Tensor:
    values = torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return values if layout == "nchw" else values.permute(0, 2, 3, 1).contiguous()


def test_patches_times_the_kernel_are_the_convolution() -> None:
    pixels, weight = tiles(3, 28, 42), torch.randn(8, 3, 14, 14)
    scaled = (pixels.double() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    wanted = conv2d(scaled, weight.double(), stride=14).flatten(2).transpose(1, 2)
    found = tile_normalise(pixels, 14, MEAN, STD).double() @ weight.double().reshape(8, -1).T
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_every_value_stands_where_the_definition_says(layout: str) -> None:
    patch, pixels = 2, tiles(2, 4, 6, layout)
    found = tile_normalise(pixels, patch, MEAN, STD, layout=layout)
    assert found.shape == (2, 6, 12)
    for n in range(2):
        for y in range(4):
            for x in range(6):
                for c in range(3):
                    byte = pixels[n, c, y, x] if layout == "nchw" else pixels[n, y, x, c]
                    place = c * 4 + (y % patch) * patch + x % patch
                    wanted = (byte.item() / 255 - MEAN[c]) / STD[c]
                    assert found[n, y // patch * 3 + x // patch, place].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_twin_equals_the_reference(triton_device: str, layout: str, dtype: torch.dtype) -> None:
    pixels = tiles(3, 28, 42, layout).to(triton_device)
    wanted = tile_normalise(pixels, 7, MEAN, STD, layout=layout, dtype=dtype, backend="torch")
    found = tile_normalise(pixels, 7, MEAN, STD, layout=layout, dtype=dtype, backend="triton")
    assert found.dtype == dtype and found.shape == wanted.shape
    # One unit in the last place: a compiler may contract the division and the subtraction.
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_crop_is_read_where_it_lies(request: pytest.FixtureRequest, backend: str) -> None:
    """A border narrower than a patch, every other tile: as if what is read had been copied first."""
    device = request.getfixturevalue("triton_device") if backend == "triton" else "cpu"
    crop = tiles(4, 30, 45).to(device)[::2, :, :28, 1:43]
    found = tile_normalise(crop, 14, MEAN, STD, backend=backend)
    torch.testing.assert_close(found, tile_normalise(crop.contiguous(), 14, MEAN, STD), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_float_pixels_have_a_gradient(backend: str) -> None:
    """d(patch value) / d(pixel) = 1 / (255 std), each at its place."""
    pixels = tiles(2, 4, 6).float().requires_grad_()
    weight = torch.arange(144.0).view(2, 6, 12)
    (tile_normalise(pixels, 2, MEAN, STD, backend=backend) * weight).sum().backward()
    for n, c, y, x in [(0, 0, 0, 0), (0, 1, 3, 2), (1, 2, 1, 5)]:
        wanted = weight[n, y // 2 * 3 + x // 2, c * 4 + y % 2 * 2 + x % 2] / (255 * STD[c])
        assert pixels.grad[n, c, y, x].item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_no_tiles_give_no_patches(request: pytest.FixtureRequest, backend: str) -> None:
    device = request.getfixturevalue("triton_device") if backend == "triton" else "cpu"
    assert tile_normalise(tiles(0, 28, 28).to(device), 14, MEAN, STD, backend=backend).shape == (0, 4, 588)


@pytest.mark.parametrize(
    ("pixels", "patch", "layout"),
    [
        (tiles(1, 28, 28), 13, "nchw"),
        (tiles(1, 28, 28), 14, "nhwc"),
        (tiles(1, 28, 28).long(), 14, "nchw"),
        (tiles(1, 28, 28)[0], 14, "nchw"),
        (tiles(1, 28, 28), 14, "chwn"),
    ],
)
def test_other_shapes_are_refused(pixels: torch.Tensor, patch: int, layout: str) -> None:
    with pytest.raises(ValueError):
        tile_normalise(pixels, patch, MEAN, STD, layout=layout)


def test_the_reference_does_not_import_triton() -> None:
    code = (
        "import sys, torch; import megavlm.kernels.merge_tokens;"
        "from megavlm.kernels.tile_normalise import tile_normalise;"
        "before = 'triton' in sys.modules;"
        "tile_normalise(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 2, (0.5,) * 3, (0.5,) * 3);"
        "sys.exit('triton' in sys.modules and not before)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
