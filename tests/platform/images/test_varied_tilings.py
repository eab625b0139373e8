"""EVE's two tilings against their published rules written out, and every decoder's tiles of many sizes."""

from __future__ import annotations

import importlib.util
import io
import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from megavlm.platform.demo.photos import photo as photograph
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.images import BadImage, decode, decode_tiles, load_decoder
from megavlm.platform.images.fixed_area import FixedArea
from megavlm.platform.images.longer_side import LongerSide
from megavlm.platform.images.nvidia import NvidiaDecoder
from megavlm.platform.images.rules import Tiling

EVE, EVE_HD = LongerSide(), LongerSide(tile=1344, side_step=56)
EVE_V2, EVE_V2_HD = FixedArea(), FixedArea(tile=1600)
SMALL = [LongerSide(tile=112, side_step=28), FixedArea(tile=128, side_step=32)]
LEAST = 34.0  # dB: what `fast` promises of each picture (test_decoders.py)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    """Width and height from 1 to 5000, shapes up to 1:200 as often as squares."""
    longer = draw(st.integers(1, 5000))
    shorter = max(round(longer / draw(st.floats(1, 200))), 1)
    return draw(st.sampled_from([(longer, shorter), (shorter, longer)]))


def by_eve(width: int, height: int, side: int) -> tuple[int, int]:
    """EVE v1's (width, height): on CLIP's scale of 336 in patches of 14 rounded up, and then enlarged as a whole."""
    base = [336 if edge == max(width, height) else math.ceil(336 * edge / max(width, height) / 14) * 14
            for edge in (width, height)]  # fmt: skip
    return base[0] * (side // 336), base[1] * (side // 336)


def by_eve_v2(width: int, height: int, side: int) -> tuple[int, int]:
    """EVEv2's (width, height): each side over the square root of the area, at least one step of 32."""
    ratio = math.sqrt(width * height) / side
    return tuple(max(int(math.ceil(edge / ratio / 32)) * 32, 32) for edge in (width, height))


@settings(max_examples=300)
@given(sizes())
@example((1, 1))
@example((1, 40))
@example((5000, 25))
@example((640, 480))
def test_a_tile_has_the_published_size(size: tuple[int, int]) -> None:
    for rule, published in ((EVE, by_eve), (EVE_HD, by_eve), (EVE_V2, by_eve_v2), (EVE_V2_HD, by_eve_v2)):
        plan = rule.plan(*size)
        height, width = rule.size(plan)
        assert (width, height) == published(*size, rule.tile)
        assert plan.tiles == 1 and (plan.columns, plan.rows) == (width // rule.side_step, height // rule.side_step)
        assert min(height, width) > 0 and height % rule.side_step == width % rule.side_step == 0


@settings(max_examples=150)
@given(sizes())
def test_the_longer_side_is_exact_and_the_shorter_less_than_a_step_too_long(size: tuple[int, int]) -> None:
    for rule in (EVE, EVE_HD):
        height, width = rule.size(rule.plan(*size))
        assert max(height, width) == rule.tile
        assert 0 <= min(height, width) - rule.tile * min(size) / max(size) < rule.side_step
        assert (width >= height) == (size[0] >= size[1]) or height == width


@settings(max_examples=150)
@given(sizes())
def test_the_area_is_kept_to_within_a_step_of_each_side(size: tuple[int, int]) -> None:
    for rule in (EVE_V2, EVE_V2_HD):
        height, width = rule.size(rule.plan(*size))
        wide, high = (edge / math.sqrt(size[0] * size[1]) * rule.tile for edge in size)
        # 1e-9: where a side is a whole number of steps the published floats may say one more
        assert -1e-9 < width - wide <= rule.side_step + 1e-9 and -1e-9 < height - high <= rule.side_step + 1e-9


@pytest.mark.parametrize("rule", SMALL)
@settings(max_examples=25)
@given(width=st.integers(1, 90), height=st.integers(1, 90))
def test_what_is_cut_is_what_was_planned_and_pillows(rule: Tiling, width: int, height: int) -> None:
    pixels = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found, size = rule.cut(pixels), rule.size(rule.plan(width, height))
    assert found.shape == (1, *size, 3)
    assert np.array_equal(found[0], Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize("rule", SMALL)
@pytest.mark.parametrize("decoder", ["exact", "fast"])
def test_other_files_than_jpegs_are_cut_alike_by_every_decoder(
    encode: Any, photo: Image.Image, rule: Tiling, decoder: str
) -> None:
    data = encode(photo, "PNG")
    assert np.array_equal(decode_tiles(data, rule, decoder=decoder), rule.cut(decode(data)))


def psnr(found: np.ndarray, truth: np.ndarray) -> float:
    assert found.shape == truth.shape and found.dtype == truth.dtype == np.uint8
    return 10 * np.log10(255**2 / max(np.mean((found.astype(float) - truth) ** 2), 1e-9))


def by_pillow(data: bytes, rule: Tiling) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    height, width = rule.size(rule.plan(*image.size))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))[None]


@pytest.mark.parametrize("rule", [EVE, EVE_V2, *SMALL])
@pytest.mark.parametrize("orientation", [1, 6])
def test_fast_decodes_jpegs_near_pillow_as_they_are_shown(encode: Any, rule: Tiling, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph("flower").resize((1303, 901)), "JPEG", quality=95, exif=exif)
    exact, fast = (decode_tiles(data, rule, decoder=name) for name in ("exact", "fast"))
    truth = by_pillow(data, rule)
    assert (truth.shape[1] < truth.shape[2]) == (orientation == 1)
    assert np.abs(exact.astype(int) - truth).max() <= 1 and psnr(fast, truth) > LEAST
    assert not np.array_equal(fast, exact)  # it took its own way: no larger than needed, and OpenCV's filter


@pytest.mark.parametrize("rule", SMALL)
@pytest.mark.skipif(
    importlib.util.find_spec("nvidia") is None
    or not all(importlib.util.find_spec(f"nvidia.{name}") for name in ("nvimgcodec", "dali")),
    reason="nvidia-nvimgcodec-cu13 and nvidia-dali-cuda130 are not installed",
)
def test_nvidias_decoder_is_near_pillow_too(encode: Any, photo: Image.Image, rule: Tiling) -> None:
    items = [encode(photo.resize(size), "JPEG", quality=90) for size in ((301, 199), (90, 500), (640, 480))]
    found = NvidiaDecoder(device="cpu", batch_size=2).tiles([*items, b"", encode(photo, "PNG")], rule)
    for data, tile in zip(items, found, strict=False):
        assert psnr(tile, by_pillow(data, rule)) > 42
    assert isinstance(found[3], BadImage) and np.array_equal(found[4], rule.cut(np.asarray(photo)))


@settings(max_examples=25)
@given(st.integers(8, 1500), st.integers(8, 1500), st.sampled_from(SMALL))
@example(1500, 8, SMALL[0])
@example(8, 1500, SMALL[1])
def test_fast_has_the_geometry_of_exact(width: int, height: int, rule: Tiling) -> None:
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5)[:, None] / height
    planes = [128 + 100 * np.sin(3 * x + 2 * y), 128 + 100 * np.cos(4 * x - 2 * y), 128 + 100 * np.sin(4 * y + x)]
    out = io.BytesIO()
    picture = Image.fromarray(np.rint(np.stack(planes, axis=-1)).astype(np.uint8))
    picture.save(out, "JPEG", quality=98, subsampling=0)
    fast, exact = (decode_tiles(out.getvalue(), rule, decoder=name).astype(int) for name in ("fast", "exact"))
    assert fast.shape == exact.shape and np.abs(fast - exact).mean() < 1


@pytest.mark.parametrize("rule", SMALL)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 1), (1, 40), (40, 1), (1, 9000), (9000, 1)])
def test_any_shape_is_cut(encode: Any, size: tuple[int, int], rule: Tiling) -> None:
    data = encode(Image.new("RGB", size, (10, 200, 90)), "JPEG", quality=95)
    for name in ("exact", "fast"):
        tile = decode_tiles(data, rule, decoder=name)
        assert tile.shape == (1, *rule.size(rule.plan(*size)), 3)
        assert np.abs(tile.astype(int) - (10, 200, 90)).max() <= 3


def line(width: int) -> bytes:
    """A black PNG of one row, by the specification."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, 1, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 + -(-width // 8)))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("decoder", ["exact", "fast"])
def test_a_line_longer_than_steps_can_count_costs_itself(encode: Any, photo: Image.Image, decoder: str) -> None:
    """A manifest holds columns and rows as int16; 25 * sqrt(width) of them are too many from 1.72 million pixels on."""
    good, thin = encode(photo, "PNG"), line(2_000_000)
    found = load_decoder(decoder).tiles([good, thin, good], EVE_V2)
    assert isinstance(found[1], BadImage) and found[1].reason == "too_thin" and "2000000x1" in str(found[1])
    assert np.array_equal(found[0], found[2])
    with pytest.raises(BadImage, match="32767 steps"):
        EVE_V2.plan(1, 1_720_000)
    assert EVE_V2.plan(1, 1_700_000).rows <= 32767 and EVE.plan(2_000_000, 1)[1:] == (24, 1)


@given(sizes(), st.sampled_from([EVE, EVE_HD, EVE_V2, EVE_V2_HD]))
def test_a_manifest_holds_every_plan(size: tuple[int, int], rule: Tiling) -> None:
    plan = rule.plan(*size)
    assert tuple(np.array(plan).astype(np.int16)) == plan


def test_an_image_without_pixels_and_steps_that_do_not_fit() -> None:
    for rule in SMALL:
        with pytest.raises(InputError, match="0x5 has no pixels"):
            rule.plan(0, 5)
    with pytest.raises(ConfigError, match="does not divide") as raised:
        LongerSide(tile=690)
    assert "model.tiling.tile=672" in str(raised.value)
    with pytest.raises(ConfigError, match="40000 steps"):
        LongerSide(tile=40000, side_step=1)
