"""Squares against their rule written out pixel by pixel, and transformers' image processor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from megavlm.kernels.torchvision import load
from megavlm.platform.errors import InputError
from megavlm.platform.images import decode_tiles
from megavlm.platform.images.dynamic import Dynamic
from megavlm.platform.images.square import Square


def pixels(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("width", "height"), [(90, 60), (60, 91), (64, 64), (33, 200)])
def test_padded_is_the_image_in_the_middle_of_its_background(width: int, height: int) -> None:
    image, side = pixels(width, height), max(width, height)
    wanted = np.empty((side, side, 3), np.uint8)
    wanted[:] = (122, 116, 104)
    top, left = (side - height) // 2, (side - width) // 2
    wanted[top : top + height, left : left + width] = image
    assert np.array_equal(Square(tile=side).cut(image), wanted[None])
    resized = np.asarray(Image.fromarray(wanted).resize((56, 56), Image.Resampling.BICUBIC))
    assert np.array_equal(Square(tile=56).cut(image), resized[None])


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 150), height=st.integers(1, 150))
def test_cropped_is_transformers(width: int, height: int) -> None:
    """CLIPImageProcessor on Pillow's resizing, which Eagle's and LLaVA's pretraining use."""
    load()
    import transformers.models.clip as clip

    processor = clip.CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, do_normalize=False, do_rescale=False
    )
    wanted = processor(Image.fromarray(pixels(width, height)), return_tensors="np")["pixel_values"]
    found = Square(tile=24, fit="crop").cut(pixels(width, height))
    assert np.array_equal(found.transpose(0, 3, 1, 2), wanted)


@pytest.mark.parametrize("decoder", ["exact", "fast"])
def test_every_decoder_cuts_squares(encode, photo: Image.Image, decoder: str) -> None:
    for rule in (Square(tile=56), Square(tile=56, fit="crop")):
        tiles = decode_tiles(encode(photo, "PNG"), rule, decoder=decoder)
        assert np.array_equal(tiles, rule.cut(np.asarray(photo)))
        assert len(tiles) == rule.plan(*photo.size).tiles == 1


def test_an_image_without_pixels() -> None:
    for rule in (Square(tile=56), Dynamic(tile=56)):
        with pytest.raises(InputError, match="0x5 has no pixels"):
            rule.plan(0, 5)
