"""Images that cannot be used: each with its reason, none with anything but BadImage."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from megavlm.platform.errors import InputError
from megavlm.platform.images import BadImage, decode, probe
from megavlm.platform.images.decode import decode_pillow, decode_turbo

FORMATS = ["JPEG", "PROGRESSIVE", "GRAY", "CMYK", "PNG", "GIF", "WEBP", "BMP", "TIFF", "DEEP"]


class Files(dict[str, bytes]):
    """Intact files by format; hypothesis would print every byte of a plain dict."""

    def __repr__(self) -> str:
        return f"Files({', '.join(self)})"


@pytest.fixture(scope="module")
def whole(photo, encode, png16) -> Files:
    small = photo.crop((200, 100, 260, 145))
    files = {form: encode(small, form) for form in ("PNG", "GIF", "WEBP", "BMP", "TIFF")}
    files |= {"JPEG": encode(small, "JPEG"), "PROGRESSIVE": encode(small, "JPEG", progressive=True)}
    files |= {"GRAY": encode(small.convert("L"), "JPEG"), "CMYK": encode(small.convert("CMYK"), "JPEG")}
    files["DEEP"] = png16(np.asarray(small).astype(np.uint16) * 257)
    return Files(files)


def reason(data: bytes, **options: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, **options)
    assert isinstance(caught.value, InputError)
    return caught.value.reason


def test_no_bytes():
    assert reason(b"") == "empty"


@pytest.mark.parametrize(
    "data", [b"a caption, saved as .jpg", b"\0" * 4096, b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_not_an_image(data):
    assert reason(data) == "not_an_image"
    with pytest.raises(BadImage):
        probe(data)


def test_pillow_is_left_strict():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("form", ["JPEG", "PROGRESSIVE", "GRAY"])
@settings(max_examples=60, deadline=None)
@given(part=st.floats(0, 1, exclude_max=True))
def test_both_paths_see_a_truncated_jpeg(whole, form, part):
    data = whole[form]
    scan = data.index(b"\xff\xda") + 16  # behind the header of the first scan
    cut = data[: scan + int((len(data) - scan) * part)]
    assert reason(cut) == "truncated"
    with pytest.raises(BadImage, match="truncated"):
        decode_pillow(cut, Image.open(io.BytesIO(cut)))
    try:  # the fast path says so itself, or leaves it to Pillow; it never returns padded pixels
        assert decode_turbo(cut, Image.open(io.BytesIO(cut))) is None
    except BadImage as error:
        assert error.reason == "truncated"


def test_a_forged_end_marker_does_not_hide_the_cut(whole):
    data = whole["JPEG"]
    forged = data[: len(data) // 2 + 200] + b"\xff\xd9"
    Image.open(io.BytesIO(forged)).load()  # Pillow alone would take it
    assert reason(forged) == "truncated"


@pytest.mark.parametrize("form", ["JPEG", "PROGRESSIVE", "GRAY", "CMYK"])
def test_a_jpeg_cut_inside_its_header(whole, form):
    for length in range(3, whole[form].index(b"\xff\xda") + 2):
        assert reason(whole[form][:length]) == "truncated"


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=60, deadline=None)
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_never_decoded_wrongly(whole, form, part):
    data = whole[form]
    try:
        found = decode(data[: int(len(data) * part)])
    except BadImage as error:
        assert error.reason in {"empty", "not_an_image", "truncated", "unreadable"}
    else:  # only what follows the pixels was cut
        assert np.array_equal(found, decode(data))


@pytest.mark.parametrize("form", ["CMYK", "PNG", "GIF", "WEBP", "BMP", "TIFF", "DEEP"])
def test_half_a_file_is_called_truncated(whole, form):
    data = whole[form]
    assert reason(data[: len(data) // 2]) == "truncated"


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_damaged_byte_raises_nothing_else(whole, form, place, value):
    data = bytearray(whole[form])
    data[int(len(data) * place)] = value
    try:
        found = decode(bytes(data), max_pixels=1_000_000)
    except BadImage:
        return
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3


@settings(max_examples=100, deadline=None)
@given(
    magic=st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"BM", b"II*\0"]),
    tail=st.binary(),
)
def test_a_magic_number_and_noise(magic, tail):
    assert reason(magic + tail, max_pixels=1_000_000) in {"not_an_image", "truncated", "unreadable", "too_large"}


def png_header(width: int, height: int) -> bytes:
    """A PNG with a header and no pixel at all: whoever judges it too large has read nothing else."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\0IDAT"


def test_bombs_are_judged_by_their_header(whole):
    jpeg = bytearray(whole["JPEG"])
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = struct.pack(">HH", 60000, 60000)
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0" + b"," + b"\0" * 9 + b"\2"
    for bomb in (png_header(60000, 60000), png_header(13378, 13378), bytes(jpeg), gif):
        assert reason(bomb) == "too_large"
        with pytest.raises(BadImage, match="too_large"):
            probe(bomb)


def test_max_pixels_is_inclusive(whole):
    pixels = 60 * 45
    assert decode(whole["PNG"], max_pixels=pixels).shape == (45, 60, 3)
    assert reason(whole["PNG"], max_pixels=pixels - 1) == "too_large"
