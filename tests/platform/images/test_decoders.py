"""`exact` against Pillow bit by bit, `fast` within its distance of it, and what each makes of bad files."""

from __future__ import annotations

import io
import statistics

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from megavlm.platform.demo.photos import PHOTOS
from megavlm.platform.demo.photos import photo as photograph
from megavlm.platform.errors import ConfigError
from megavlm.platform.images import BadImage, choose_grid, decode, decode_tiles, load_decoder
from megavlm.platform.images.dynamic import Dynamic
from megavlm.platform.images.fast import stretch

RULE = Dynamic(tile=448, min_tiles=1, max_tiles=6, thumbnail=True)
SMALL = Dynamic(tile=112, min_tiles=1, max_tiles=6, thumbnail=True)
SIZES = [(1280, 960), (2048, 1536), (2683, 1791), (4000, 3000), (3997, 2999)]
MEDIAN, LEAST = 42.0, 34.0  # dB: what `fast` promises


def by_pillow(data: bytes, rule: Dynamic = RULE) -> np.ndarray:
    """Tiles by Pillow alone: turned, stretched, cropped."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    cols, rows = choose_grid(*image.size, rule.tile, rule.min_tiles, rule.max_tiles)
    grid = image.resize((cols * rule.tile, rows * rule.tile), Image.Resampling.BICUBIC)
    corners = [(c * rule.tile, r * rule.tile) for r in range(rows) for c in range(cols)]
    tiles = [grid.crop((x, y, x + rule.tile, y + rule.tile)) for x, y in corners]
    if rule.thumbnail and len(tiles) > 1:
        tiles.append(image.resize((rule.tile, rule.tile), Image.Resampling.BICUBIC))
    return np.stack([np.asarray(tile) for tile in tiles])


def psnr(found: np.ndarray, truth: np.ndarray) -> float:
    assert found.shape == truth.shape and found.dtype == truth.dtype == np.uint8
    error = np.mean((found.astype(float) - truth) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def mosaic(width: int, height: int) -> Image.Image:
    """Photographs side by side at their own size: dense in detail, as a camera's pictures are."""
    out, pictures = Image.new("RGB", (width, height)), [photograph(name) for name in ("china", "coffee", "hubble")]
    for number, (x, y) in enumerate((x, y) for y in range(0, height, 400) for x in range(0, width, 600)):
        out.paste(pictures[number % 3].crop((0, 0, 600, 400)), (x, y))
    return out


@pytest.mark.parametrize(
    "rule", [RULE, Dynamic(tile=224, max_tiles=12, thumbnail=False), Dynamic(tile=336, min_tiles=2, max_tiles=4)]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_exact_is_pillow_bit_by_bit(photo, encode, mode, rule):
    for form in ("JPEG", "PNG", "WEBP"):
        data = encode(photo.convert(mode), form)
        assert np.array_equal(decode_tiles(data, rule), by_pillow(data, rule))


def test_fast_keeps_its_distance_on_photographs(encode):
    pictures = {name: photograph(name) for name in PHOTOS}
    pictures |= {"enlarged": photograph("china").resize((1280, 960), Image.Resampling.LANCZOS)}
    pictures |= {
        f"mosaic {width}": mosaic(width, height) for width, height in ((1280, 960), (2048, 1536), (4000, 3000))
    }
    found = {}
    for name, picture in pictures.items():
        data = encode(picture, "JPEG", quality=90)
        found[name] = psnr(decode_tiles(data, RULE, decoder="fast"), by_pillow(data))
    assert min(found.values()) >= LEAST, found
    assert statistics.median(found.values()) >= MEDIAN, found


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(301, 199), (1303, 901)])  # the second is decoded at half size, rounded up
def test_fast_turns_as_exif_says(encode, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph("flower").resize(size), "JPEG", quality=95, exif=exif)
    rule = Dynamic(tile=112, max_tiles=12)
    assert psnr(decode_tiles(data, rule, decoder="fast"), by_pillow(data, rule)) > LEAST


def awkward_files(photo: Image.Image, encode, png16) -> dict[str, bytes]:
    """Files that libjpeg-turbo has no business with."""
    small = photo.crop((20, 10, 140, 90))
    alpha = small.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(small.size))
    files = {form: encode(small, form) for form in ("PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF")}
    files |= {"CMYK": encode(small.convert("CMYK"), "JPEG"), "palette": encode(small.quantize(32), "PNG")}
    files |= {"alpha": encode(alpha, "PNG"), "alpha in WebP": encode(alpha, "WEBP")}
    return files | {
        "deep": png16(np.asarray(small).astype(np.uint16) * 257),
        "gray PNG": encode(small.convert("L"), "PNG"),
    }


def test_every_other_format_is_equal_in_fast_and_exact(photo, encode, png16):
    for name, data in awkward_files(photo, encode, png16).items():
        exact, fast = (decode_tiles(data, SMALL, decoder=decoder) for decoder in ("exact", "fast"))
        assert np.array_equal(fast, exact), name
        assert np.array_equal(decode(data, decoder="fast", min_side=20), decode(data)), name


def waves(width: int, height: int) -> Image.Image:
    """A picture so smooth that every good filter gives the same."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5)[:, None] / height
    planes = [128 + 100 * np.sin(3 * x + 2 * y), 128 + 100 * np.cos(4 * x - 2 * y), 128 + 100 * np.sin(4 * y + x)]
    return Image.fromarray(np.rint(np.stack(planes, axis=-1)).astype(np.uint8))


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 1500), st.integers(8, 1500), st.sampled_from([56, 112]), st.integers(1, 12), st.booleans())
def test_fast_has_the_geometry_of_exact(width, height, tile, most, thumbnail):
    out = io.BytesIO()
    waves(width, height).save(out, "JPEG", quality=98, subsampling=0)
    rule = Dynamic(tile=tile, max_tiles=most, thumbnail=thumbnail)
    fast, exact = (decode_tiles(out.getvalue(), rule, decoder=name) for name in ("fast", "exact"))
    assert fast.shape == exact.shape
    # A shift by one pixel in a hundred would cost 4 levels.
    assert np.abs(fast.astype(int) - exact).mean() < 1


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3, 20000), (20000, 3)])
def test_fast_takes_any_shape(encode, size):
    data = encode(Image.new("RGB", size, (10, 200, 90)), "JPEG", quality=95)
    fast, exact = (decode_tiles(data, Dynamic(tile=56), decoder=name) for name in ("fast", "exact"))
    assert fast.shape == exact.shape and np.abs(fast.astype(int) - exact).max() <= 2


def test_shrinking_by_a_whole_factor_is_the_mean_of_blocks():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    mean = pixels.reshape(20, 3, 45, 2, 3).mean(axis=(1, 3))
    assert np.abs(stretch(pixels, 45, 20, 90, 60) - mean).max() <= 0.51


def test_enlarging_and_shrinking_at_once():
    pixels = np.asarray(waves(200, 400))
    exact = np.asarray(Image.fromarray(pixels).resize((300, 130), Image.Resampling.BICUBIC))
    assert np.abs(stretch(pixels, 300, 130, 200, 400).astype(int) - exact).max() <= 2


@pytest.mark.parametrize(
    ("side", "shape"), [(0, (600, 900)), (301, (600, 900)), (300, (300, 450)), (80, (75 * 2, 225))]
)
def test_min_side_is_kept(encode, side, shape):
    data = encode(waves(900, 600), "JPEG", quality=95)
    found = decode(data, min_side=side, decoder="fast")
    assert found.shape == (*shape, 3)
    small = Image.fromarray(decode(data)).resize(shape[::-1], Image.Resampling.BOX)
    assert np.abs(found.astype(int) - np.asarray(small)).max() <= 4
    assert decode(data, min_side=side).shape == (600, 900, 3)


@pytest.mark.parametrize("name", ["exact", "fast"])
def test_a_bad_file_costs_itself(photo, encode, name):
    good = encode(photo, "JPEG")
    large = encode(mosaic(2000, 1500), "JPEG")
    items = [good, good[:4000], b"", large, b"<html>", large[: len(large) // 2], good]
    decoder = load_decoder(name)
    for found in (decoder.images(items), decoder.tiles(items, SMALL)):
        reasons = [one.reason if isinstance(one, BadImage) else "" for one in found]
        assert reasons == ["", "truncated", "empty", "", "not_an_image", "truncated", ""]
    assert [one.reason for one in decoder.images([large], max_pixels=10**6) if isinstance(one, BadImage)] == [
        "too_large"
    ]


def test_a_forged_end_marker_is_seen_at_reduced_size_too(encode):
    data = encode(mosaic(2000, 1500), "JPEG")
    with pytest.raises(BadImage, match="truncated"):
        decode_tiles(data[: len(data) // 2] + b"\xff\xd9", SMALL, decoder="fast")


def test_decoders_are_made_by_name_or_given():
    assert load_decoder("fast").name == "fast"
    mine = load_decoder("exact")
    assert load_decoder(mine) is mine
    with pytest.raises(ConfigError, match="unknown image decoder 'fsat'") as caught:
        load_decoder("fsat")
    assert "fast" in str(caught.value)


def test_impossible_bounds_are_no_fault_of_the_file(photo, encode):
    for name in ("exact", "fast"):
        with pytest.raises(ConfigError, match="allow no grid"):
            decode_tiles(encode(photo, "JPEG"), Dynamic(tile=112, min_tiles=4, max_tiles=3), decoder=name)


def test_decoding_starts_no_threads(photo, encode):
    decode_tiles(encode(photo, "JPEG"), SMALL, decoder="fast")
    assert cv2.getNumThreads() == 1
