"""Every pixel format against arrays worked out in numpy, and the fast path against Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from megavlm.platform.images import BadImage, decode, probe
from megavlm.platform.images.decode import decode_pillow, decode_turbo

# Measured: both run libjpeg-turbo's accurate integer IDCT and fancy upsampling, so no pixel differs.
IDCT_TOLERANCE = 0


def by_both_paths(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    fast = decode_turbo(data, Image.open(io.BytesIO(data)))
    assert fast is not None
    return fast, decode_pillow(data, Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("quality", "subsampling"), [(30, 2), (75, 1), (90, 2), (95, 0)])
def test_fast_path_equals_pillow(photo, encode, mode, progressive, quality, subsampling):
    data = encode(photo.convert(mode), "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    fast, exact = by_both_paths(data)
    truth = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(exact, truth)
    assert np.abs(fast.astype(int) - truth.astype(int)).max() <= IDCT_TOLERANCE
    assert np.array_equal(decode(data), fast)


def test_jpeg_stored_as_rgb(photo, encode):
    fast, exact = by_both_paths(encode(photo, "JPEG", quality=90, keep_rgb=True))
    assert np.array_equal(fast, exact)


def turn(stored: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF 2.32, 4.6.4: the sides of the display on which row 0 and column 0 of the stored image lie."""
    row0, column0 = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    shown = stored if row0 in ("top", "bottom") else stored.swapaxes(0, 1)
    shown = shown[::-1] if "bottom" in (row0, column0) else shown
    return shown[:, ::-1] if "right" in (row0, column0) else shown


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(photo, encode, form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    # Read without the tag: TIFF alone is turned by Pillow, so there the original (lossless) is the stored image.
    plain = np.asarray(photo if form != "JPEG" else Image.open(io.BytesIO(encode(photo, form))))
    expected = turn(plain, orientation)
    assert np.array_equal(decode(data), expected)
    assert np.array_equal(expected, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    info = probe(data)
    assert (info.height, info.width, info.format) == (*expected.shape[:2], form)
    if form == "JPEG":
        assert all(np.array_equal(pixels, expected) for pixels in by_both_paths(data))


def test_a_broken_exif_block_costs_nothing(photo, encode):
    data = encode(photo, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert decode(data).shape == (199, 301, 3)


def test_gray_png_of_16_bits_covers_every_value(png16):
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    expected = np.rint(samples / 257).astype(np.uint8)
    assert np.array_equal(decode(png16(samples)), np.repeat(expected, 3, axis=2))


def test_colour_png_of_16_bits(png16):
    samples = np.random.default_rng(0).integers(0, 65536, (40, 50, 3), dtype=np.uint16)
    assert np.array_equal(decode(png16(samples)), np.rint(samples / 257).astype(np.uint8))


@pytest.mark.parametrize("channels", [2, 4])
def test_png_of_16_bits_with_alpha_lies_on_white(png16, channels):
    samples = np.random.default_rng(1).integers(0, 65536, (40, 50, channels), dtype=np.uint16)
    color, alpha = samples[..., :-1].astype(float), samples[..., -1:] / 65535
    exact = (color * alpha + 65535 * (1 - alpha)) / 257
    found = decode(png16(samples)).astype(float)
    assert np.abs(found - exact).max() <= 1.5  # three roundings of half a level


def test_transparent_value_of_a_16_bit_png(png16):
    gray = np.array([[[1000], [1001]]], np.uint16)
    assert decode(png16(gray, trns=b"\x03\xe8"))[0, :, 0].tolist() == [255, 4]
    color = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint16)
    assert decode(png16(color, trns=bytes([0, 1, 0, 2, 0, 3]))).tolist() == [[[255] * 3, [0] * 3]]


def test_alpha_lies_on_white(encode):
    pixels = np.random.default_rng(2).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    alpha = pixels[..., 3:] / 255
    exact = pixels[..., :3] * alpha + 255 * (1 - alpha)
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert np.abs(decode(encode(pixels, form, **options)) - exact).max() <= 1


def palette_image(indices: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    colors = np.random.default_rng(3).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(indices, "L").convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(colors.tobytes())
    return image, colors


def test_palette_png(encode):
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image, colors = palette_image(indices)
    assert np.array_equal(decode(encode(image, "PNG")), colors[indices])


def test_palette_png_with_transparency(encode):
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image, colors = palette_image(indices)
    alphas = np.random.default_rng(4).integers(0, 256, 256, dtype=np.uint8)
    alpha = alphas[indices][..., None] / 255
    exact = colors[indices] * alpha + 255 * (1 - alpha)
    assert np.abs(decode(encode(image, "PNG", transparency=alphas.tobytes())) - exact).max() <= 1


def test_bilevel_png(encode):
    bits = np.random.default_rng(5).integers(0, 2, (9, 13)).astype(bool)
    assert np.array_equal(decode(encode(bits, "PNG")), np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))


def test_cmyk_without_loss(encode):
    inks = np.random.default_rng(6).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    data = encode(Image.fromarray(inks, "CMYK"), "TIFF")
    exact = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255
    assert np.abs(decode(data) - exact).max() <= 1


def test_cmyk_jpeg_is_not_a_negative(photo, encode):
    found = decode(encode(photo.convert("CMYK"), "JPEG", quality=95, subsampling=0))
    assert np.abs(found.astype(int) - np.asarray(photo)).mean() < 3


def test_first_frame_of_a_gif(encode):
    red, blue = (Image.new("RGB", (12, 8), color) for color in ("red", "blue"))
    data = encode(red, "GIF", save_all=True, append_images=[blue])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.array_equal(decode(data), np.broadcast_to(np.uint8([255, 0, 0]), (8, 12, 3)))


@pytest.mark.parametrize("form", ["BMP", "TIFF", "PNG", "WEBP", "JPEG2000"])
def test_other_lossless_formats(photo, encode, form):
    data = encode(photo, form, **({"lossless": True} if form == "WEBP" else {}))
    assert np.array_equal(decode(data), np.asarray(photo))
    assert (probe(data).width, probe(data).height) == photo.size


def test_pixels_without_a_range_are_refused(encode):
    with pytest.raises(BadImage) as caught:
        decode(encode(np.ones((4, 4), np.float32), "TIFF"))
    assert caught.value.reason == "unreadable"
