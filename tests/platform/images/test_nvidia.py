"""NVIDIA's decoder against Pillow. On the CPU where its wheels are installed, on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest
from PIL import Image

from megavlm.platform.errors import ConfigError, MissingPackage
from megavlm.platform.images import BadImage, load_decoder
from megavlm.platform.images.dynamic import Dynamic
from megavlm.platform.images.nvidia import NvidiaDecoder

RULE = Dynamic(tile=112)
INSTALLED = importlib.util.find_spec("nvidia") is not None and all(
    importlib.util.find_spec(f"nvidia.{name}") is not None for name in ("nvimgcodec", "dali")
)
GPU = shutil.which("nvidia-smi") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="nvidia-nvimgcodec-cu13 and nvidia-dali-cuda130 are not installed")
DEVICES = [
    pytest.param("cpu", marks=needed),
    pytest.param("gpu", marks=[needed, pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="no GPU")]),
]


def psnr(found: np.ndarray, truth: np.ndarray) -> float:
    assert found.shape == truth.shape and found.dtype == truth.dtype == np.uint8
    return 10 * np.log10(255**2 / max(np.mean((found.astype(float) - truth) ** 2), 1e-9))


@pytest.fixture(scope="module")
def files(photo, encode) -> list[bytes]:
    """Good and bad ones mixed, more than a batch; two that are not nvImageCodec's business."""
    good = encode(photo, "JPEG", quality=90)
    sides = [encode(photo.resize(size), "JPEG", quality=90) for size in ((500, 90), (90, 500), (640, 480))]
    turned = Image.Exif()
    turned[0x0112] = 6
    rest = [encode(photo.convert("L"), "JPEG"), encode(photo, "JPEG", exif=turned), encode(photo, "PNG")]
    return [good, good[:3000], *sides, b"", *rest, b"GIF", encode(photo.convert("CMYK"), "JPEG")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("thumbnail", [True, False])
def test_tiles_are_near_pillows_and_a_bad_file_costs_itself(files, device, thumbnail):
    rule = RULE.model_copy(update={"thumbnail": thumbnail})
    decoder = NvidiaDecoder(device=device, batch_size=2)
    for _ in range(2):  # the pipeline is used again
        for found, exact in zip(decoder.tiles(files, rule), load_decoder("exact").tiles(files, rule), strict=True):
            if isinstance(exact, BadImage):
                assert isinstance(found, BadImage) and found.reason == exact.reason
            else:
                assert psnr(found, exact) > 42


@pytest.mark.parametrize("device", DEVICES)
def test_images_are_pillows(files, device):
    found, exact = NvidiaDecoder(device=device).images(files), load_decoder("exact").images(files)
    least = 99 if device == "cpu" else 40  # there it is libjpeg-turbo too
    for one, truth in zip(found, exact, strict=True):
        assert isinstance(truth, BadImage) and isinstance(one, BadImage) or psnr(one, truth) > least


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_and_nothing_good(device):
    decoder = NvidiaDecoder(device=device)
    assert decoder.tiles([], RULE) == []
    assert [one.reason for one in decoder.images([b"", b"x"])] == ["empty", "not_an_image"]


@pytest.mark.skipif(GPU, reason="this machine has a GPU")
def test_without_the_wheels_or_without_a_gpu_it_says_so(photo, encode):
    with pytest.raises(ConfigError if INSTALLED else MissingPackage) as caught:
        load_decoder("nvidia").images([encode(photo, "JPEG")])
    assert "device=cpu" in str(caught.value) if INSTALLED else "[gpu]" in str(caught.value)
