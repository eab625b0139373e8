"""Pictures made by means that owe nothing to the code under test."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from importlib import resources

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A photograph, RGB, cropped to an odd size so that chroma blocks do not line up; no profile, no EXIF."""
    data = resources.files("sklearn.datasets.images").joinpath("china.jpg").read_bytes()
    return Image.fromarray(np.asarray(Image.open(io.BytesIO(data)))[:199, :301])


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """encode(image or array, format, **options) -> bytes, by Pillow."""

    def run(picture: Image.Image | np.ndarray, form: str, **options: object) -> bytes:
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        out = io.BytesIO()
        image.save(out, form, **options)
        return out.getvalue()

    return run


@pytest.fixture(scope="session")
def png16() -> Callable[..., bytes]:
    """png16(uint16 [H, W, channels], trns=b"") -> a PNG, by the specification: Pillow writes no 16-bit colour."""

    def run(samples: np.ndarray, trns: bytes = b"") -> bytes:
        height, width, channels = samples.shape
        color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
        rows = samples.astype(">u2").tobytes()
        step, pixel = 2 * width * channels, 2 * channels
        lines = b"".join(_line(rows[y * step : (y + 1) * step], pixel, sub=y % 2 == 1) for y in range(height))
        header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
        parts = [
            (b"IHDR", header),
            *([(b"tRNS", trns)] if trns else []),
            (b"IDAT", zlib.compress(lines)),
            (b"IEND", b""),
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)

    return run


def _line(row: bytes, pixel: int, sub: bool) -> bytes:
    """One filtered scan line: filter 0 (none), or 1 (sub: each byte less the one a pixel before)."""
    if not sub:
        return b"\0" + row
    values = np.frombuffer(row, np.uint8)
    before = np.concatenate([np.zeros(pixel, np.uint8), values[:-pixel]])
    return b"\1" + (values - before).tobytes()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
